"""Against a real server on loopback, which sends the responses of each test."""

import contextlib
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rmas_jax.tools import SearchError, SearchResult, TavilySearch, open_tavily

DEEP = "[" * 10**5 + "]" * 10**5
KEY = "tvly-very-secret"
FOUND = {"results": [{"title": "A", "url": "https://a.example", "content": "text", "score": 0.5}]}


@pytest.fixture
def server(monkeypatch):
    """Gives the address and the list of answers to come: (status, body) or "silence"; keeps what
    was asked in `asked`."""
    monkeypatch.setenv("TAVILY_API_KEY", KEY)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            here.asked.append((self.headers["Authorization"], json.loads(body)))
            answer = here.answers.pop(0)
            if answer == "silence":
                time.sleep(0.5)
                return
            status, body = answer
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(BrokenPipeError):
                self.wfile.write(body.encode())

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as here:
        here.asked, here.answers = [], []
        here.address = f"http://127.0.0.1:{here.server_port}/search"
        thread = threading.Thread(target=here.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield here
        here.shutdown()
        thread.join()


def search(server, **options):
    return TavilySearch(address=server.address, pause_s=0.01, **options).search("who?")


def test_a_search_sends_key_and_query_and_reads_the_answer(server):
    server.answers = [(200, json.dumps(FOUND))]
    assert search(server) == [SearchResult("A", "https://a.example", "text")]
    question = {"query": "who?", "search_depth": "advanced", "max_results": 4}
    assert server.asked == [(f"Bearer {KEY}", question)]


def test_a_page_without_a_title_is_a_result(server):
    page = {"title": None, "url": "https://a.example", "content": "text"}
    server.answers = [(200, json.dumps({"results": [page]}))]
    assert search(server) == [SearchResult("", "https://a.example", "text")]


def test_what_network_or_server_failed_is_tried_again(server):
    server.answers = ["silence", (503, ""), (429, ""), (200, json.dumps(FOUND))]
    assert len(search(server, attempts=4, timeout_s=0.2)) == 1
    assert len(server.asked) == 4


def test_attempts_end_and_the_last_failure_is_named(server):
    server.answers = [(503, ""), (500, ""), (200, json.dumps(FOUND))]
    with pytest.raises(SearchError, match="status 500 in the last of 2 attempts"):
        search(server, attempts=2)
    assert len(server.asked) == 2


def test_a_refusal_is_not_tried_again_and_the_key_is_not_told(server):
    server.answers = [(401, KEY), (200, json.dumps(FOUND))]
    with pytest.raises(SearchError, match="status 401") as caught:
        search(server)
    assert KEY not in str(caught.value) and KEY not in repr(TavilySearch())
    assert len(server.asked) == 1


@pytest.mark.parametrize("body", ["no json", "[]", "{}", '{"results": [{"title": "A"}]}', DEEP])
def test_an_answer_in_another_form_is_an_error(server, body):
    server.answers = [(200, body)]
    with pytest.raises(SearchError, match="must be JSON with results"):
        search(server)


def test_a_key_that_no_header_can_hold_is_not_told(server, monkeypatch):
    monkeypatch.setenv("TAVILY_API_KEY", "secret\nkey")
    with pytest.raises(SearchError) as caught:
        search(server)
    assert "secret" not in str(caught.value)


def test_without_key_or_library_there_is_no_provider(monkeypatch):
    monkeypatch.setenv("TAVILY_API_KEY", " ")
    with pytest.raises(SearchError, match="TAVILY_API_KEY must be set"):
        open_tavily()
    monkeypatch.setenv("TAVILY_API_KEY", KEY)
    open_tavily()
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(ImportError, match=r"httpx2: pip install 'rmas_jax\[search\]'"):
        open_tavily()
