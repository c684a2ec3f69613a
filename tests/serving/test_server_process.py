"""`rmas serve` as a process, asked by OpenAI's own client."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import openai
import pytest
from processes import limit_s
from served import QUICKSTART, SIZES, aligned_links, serving

from rmas_jax.cli.serve import chosen_keys, main
from rmas_jax.config import ConfigError
from rmas_jax.host.errors import BAD_INPUT
from rmas_jax.serving.openai.server import bind

KEY = "key-of-this-server"
QUESTION = "The pass phrase Fumes Dabil goes through one gate, red. What does it read then?"
ASKED = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def links(tmp_path_factory):
    return aligned_links(tmp_path_factory.mktemp("links"))


@pytest.fixture(scope="module")
def cache():
    return Path(os.environ["JAX_COMPILATION_CACHE_DIR"])


@pytest.fixture(scope="module")
def url(links, cache):
    with serving(*SIZES, "--links", links, cache=cache, RMAS_API_KEY=KEY) as (process, url):
        yield url
        process.send_signal(signal.SIGTERM)
        assert process.wait(limit_s()) == 0
        assert process.stderr.read() == ""


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def ask(client, **fields):
    return client.chat.completions.create(model=QUICKSTART, messages=ASKED, **fields)


def test_the_official_client_gets_a_reply(client):
    found = ask(client)
    assert found.choices[0].message.content and found.usage.completion_tokens > 0
    assert found.model == QUICKSTART and found.rmas["rounds"] == 2
    assert [model.id for model in client.models.list()] == [QUICKSTART]
    assert client.models.retrieve(QUICKSTART).owned_by == "rmas_jax"


def test_the_official_client_reads_a_stream(client):
    whole = ask(client).choices[0].message.content
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(x.choices[0].delta.content or "" for x in chunks if x.choices) == whole
    assert chunks[-1].usage.total_tokens > 0
    assert [x.choices[0].finish_reason for x in chunks if x.choices][-1] == "stop"


def test_the_official_client_reads_the_stages_of_a_team(client):
    watched = {"rmas": {"watch": True, "nearest": 1}}
    chunks = list(ask(client, stream=True, extra_body=watched))
    stages = [x.rmas["stage"] for x in chunks if getattr(x, "rmas", {}).get("stage")]
    assert [stage["role"] for stage in stages] == [
        "planner",
        "critic",
        "solver",
        "planner",
        "critic",
    ]


def test_several_drawn_texts_stop_strings_and_log_probabilities(client):
    drawn = {"n": 3, "seed": 3, "temperature": 1.5, "logprobs": True, "top_logprobs": 0}
    first, again = (ask(client, **drawn) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices] and len(set(texts)) > 1
    assert all(choice.logprobs.content for choice in first.choices)
    text = ask(client).choices[0].message.content
    assert ask(client, stop=text[3:5]).choices[0].message.content == text[:3].rstrip()


def test_a_conversation_goes_on_with_the_clients_own_messages(client):
    first = ask(client).choices[0].message
    messages = [*ASKED, first, {"role": "user", "content": "And backwards?"}]
    found = client.chat.completions.create(model=QUICKSTART, messages=messages)
    assert found.choices[0].message.content is not None


def test_errors_are_those_of_the_official_client(client, url):
    with pytest.raises(openai.BadRequestError, match="tools must be unset") as raised:
        ask(client, tools=[{"type": "function", "function": {"name": "f"}}])
    assert raised.value.param == "tools" and raised.value.code == "unsupported_parameter"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=ASKED)
    with pytest.raises(openai.AuthenticationError):
        ask(openai.OpenAI(base_url=f"{url}/v1", api_key="wrong"))
    with pytest.raises(openai.APITimeoutError):
        ask(client, timeout=0.001)
    with ask(client, stream=True) as stream:
        next(iter(stream))  # and goes away
    assert ask(client).choices


def test_many_at_once_are_answered_as_one_alone(client):
    alone = ask(client).choices[0].message.content
    found = {}

    def work(i):
        found[i] = ask(client).choices[0].message.content

    threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(found.values()) == [alone] * 16


def test_sigterm_finishes_what_runs(links, cache):
    with serving(*SIZES, "--links", links, "--no-warm", cache=cache) as (process, url):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        chunks = iter(ask(client, stream=True, n=4, temperature=1.0, seed=0))
        parts = [next(chunks)]
        process.send_signal(signal.SIGTERM)
        parts += chunks  # to the end
        reasons = [x.choices[0].finish_reason for x in parts if x.choices]
        assert len([reason for reason in reasons if reason]) == 4
        assert process.wait(limit_s()) == 0
        with pytest.raises(openai.APIConnectionError):
            ask(client)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--port", "65536"), "--port must be at least 0 and at most 65,535, got 65536"),
        (("--host", "256.1.1.1"), "--host '256.1.1.1' --port 8000 must be a free address"),
        (("--host", "a" * 300), "must be a free address"),
        (("--timeout", "0"), "--timeout must be at least 1.0"),
        (("--max-body", "65"), "--max-body must be at least 1 and at most 64, got 65"),
        (("--allow-origin", "example.org"), "--allow-origin must be like https://example.org"),
        (("--api-key-file", "nowhere.txt"), "nowhere.txt: no such file"),
        (("--rows", "0"), "--rows must be at least 1"),
        (("--widths", "64,x"), "--widths must be whole numbers"),
        (("--widths", "64,32"), "widths must be whole numbers above 0, ascending"),
        (("--channels", "latent,smoke"), "channels must be one or more of"),
        (("--rounds", "17"), "--rounds must be at least 1 and at most 16, got 17"),
        ((), "no links"),
    ],
)
def test_bad_input_is_named(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    common = ["--config", QUICKSTART, "--set", f"output_dir={tmp_path}"]
    assert main([*common, *arguments]) == BAD_INPUT
    assert message in capsys.readouterr().err


def test_a_port_that_is_taken(tmp_path, capsys):
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["--config", QUICKSTART, "--port", port]) == BAD_INPUT
    assert f"--port {port} must be a free address" in capsys.readouterr().err


def test_keys_come_from_a_file_or_the_environment(tmp_path):
    file = tmp_path / "keys.txt"
    file.write_text(f"# of alice\n{KEY}\n\n  another-key \n")
    assert chosen_keys(str(file), "ignored-key") == (KEY, "another-key")
    assert chosen_keys(None, f"{KEY}\nsecond-key") == (KEY, "second-key")
    assert chosen_keys(None, "") == ()
    for text, words in (
        ("short", "line 1 must be a key of 8 to 512 printable ASCII"),
        (f"{KEY}\nwith spaces in it", "line 2 must be a key"),
        ("geheimnüsse", "line 1 must be a key"),
        ("# nothing\n", "must hold a key per line, got none"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError) as raised:
            chosen_keys(str(file), "")
        assert words in str(raised.value) and text not in str(raised.value)
