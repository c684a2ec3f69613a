"""The chat API over a real engine: replies, streams, errors, keys, metrics."""

from __future__ import annotations

import dataclasses
import json

import pytest
from openai.types.chat import ChatCompletion
from served import CHAT, MODEL, asked, client_of, service_of, small
from starlette.testclient import TestClient
from teams import QUESTIONS, broken, build_team, with_agents

from rmas_jax.rounds.channels import LATENT, TEXT
from rmas_jax.serving.engine import Engine
from rmas_jax.serving.openai.app import build_app

KEY, OTHER = "key-of-this-server", "another-key-of-it"


@pytest.fixture(scope="module")
def team(tmp_path_factory):
    """The team and its links; its answerer rarely ends a text."""
    return build_team(tmp_path_factory.mktemp("team"))


@pytest.fixture(scope="module")
def engine(team):
    made = Engine(*team, small())
    made.start()
    yield made
    made.close(finish=False)


@pytest.fixture(scope="module")
def client(engine):
    return client_of(engine)


def told(response):
    """The object of an error in OpenAI's form."""
    assert response.headers["content-type"] == "application/json"
    (error,) = response.json().values()
    assert set(error) == {"message", "type", "param", "code"}
    return error


def answer(client, **fields):
    response = client.post(CHAT, json=asked(**fields))
    assert response.status_code == 200, response.text
    ChatCompletion.model_validate(response.json())
    return response.json()


def texts(reply):
    return [choice["message"]["content"] for choice in reply["choices"]]


def stream(client, **fields):
    """The chunks of a stream."""
    with client.stream("POST", CHAT, json=asked(stream=True, **fields)) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line.startswith("data: ")]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def streamed(chunks, index=0):
    parts = [part for chunk in chunks for part in chunk["choices"] if part["index"] == index]
    return "".join(part["delta"].get("content", "") for part in parts)


def test_a_reply_is_the_same_whole_streamed_and_again(client):
    first = answer(client)
    (text,) = texts(first)
    assert text and first["model"] == MODEL and first["object"] == "chat.completion"
    assert texts(answer(client)) == [text]
    chunks = stream(client)
    assert streamed(chunks) == text
    reason = first["choices"][0]["finish_reason"]
    assert chunks[-1]["choices"][0]["finish_reason"] == reason
    assert first["rmas"]["channel"] == LATENT and first["rmas"]["rounds"] == 2
    assert first["rmas"]["latents"] > 0 and set(first["rmas"]["seconds"]) == {
        "queue",
        "rounds",
        "answer",
    }


def test_usage_counts_the_tokens(client):
    found = answer(client, max_tokens=3)
    assert found["usage"]["completion_tokens"] == 3
    assert found["choices"][0]["finish_reason"] == "length"
    assert found["usage"]["prompt_tokens"] > 0
    chunks = stream(client, max_tokens=3, stream_options={"include_usage": True})
    assert chunks[-1]["usage"] == found["usage"] and not chunks[-1]["choices"]


def test_drawn_texts_follow_from_their_seed(client):
    drawn = {"temperature": 2.0, "n": 3}
    first, again = (texts(answer(client, seed=5, **drawn)) for _ in range(2))
    assert first == again and len(set(first)) > 1
    assert texts(answer(client, seed=6, **drawn)) != first
    chunks = stream(client, seed=5, **drawn)
    assert [streamed(chunks, index) for index in range(3)] == first


def test_a_text_ends_before_a_stop_string(client):
    (text,) = texts(answer(client))
    stop = text[4:7]
    found = answer(client, stop=[stop, "never to be found"])
    assert texts(found) == [text[: text.lower().index(stop.lower())].rstrip()]
    assert found["choices"][0]["finish_reason"] == "stop"
    assert streamed(stream(client, stop=stop)).rstrip() == texts(found)[0]


def test_log_probabilities_of_the_tokens(client):
    found = answer(client, logprobs=True, max_tokens=4)
    tokens = found["choices"][0]["logprobs"]["content"]
    assert len(tokens) == 4 and all(token["logprob"] <= 0 for token in tokens)
    assert answer(client)["choices"][0]["logprobs"] is None


def test_how_a_team_works_is_chosen_and_told(client):
    watched = {"rounds": 1, "watch": True, "nearest": 2}
    found = answer(client, rmas=watched)["rmas"]
    assert found["rounds"] == 1
    stages = found["stages"]
    assert [stage["role"] for stage in stages] == ["planner", "critic"]
    crossing = stages[0]["sent"]["planner->critic"]
    assert len(crossing["norms"]) == len(crossing["nearest"]) == 3  # latents
    assert all(len(row) == 2 for row in crossing["nearest"])
    chunks = stream(client, rmas=watched)
    told = [chunk["rmas"]["stage"] for chunk in chunks if "stage" in chunk.get("rmas", {})]
    assert [(x["round"], x["role"], x["sent"]) for x in told] == [
        (x["round"], x["role"], x["sent"]) for x in stages
    ]
    assert chunks[-1]["rmas"]["rounds"] == 1
    assert texts(answer(client, rmas={"rounds": 2})) == texts(answer(client))


def test_messages_in_text_count_as_reasoning(client):
    found = answer(client, rmas={"channel": TEXT, "rounds": 1})
    details = found["usage"]["completion_tokens_details"]
    assert details["reasoning_tokens"] == found["rmas"]["message_tokens"] > 0
    assert found["rmas"]["latents"] == 0


def test_a_conversation_is_one_question(client):
    turns = [
        {"role": "system", "content": "be short"},
        {"role": "user", "content": "w"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "b"},
    ]
    one = "System: be short\n\nUser: w\n\nAssistant: a\n\nUser: b"
    assert texts(answer(client, messages=turns)) == texts(answer(client, question=one))


@pytest.mark.parametrize(
    ("fields", "status", "param", "code"),
    [
        ({"model": "other"}, 404, "model", "model_not_found"),
        ({"tools": [{"type": "function"}]}, 400, "tools", "unsupported_parameter"),
        ({"max_tokens": 13}, 400, "max_tokens", None),
        ({"question": "from a to b " * 100}, 400, "messages", "context_length_exceeded"),
        ({"rmas": {"channel": "smoke"}}, 400, "rmas.channel", None),
        ({"n": 100}, 400, "n", None),
        ({"question": " "}, 400, "messages", None),
        ({"rmas": {"columns": {"facts": "f"}}}, 400, "rmas.columns", None),
    ],
)
def test_what_is_refused_before_any_work(client, fields, status, param, code):
    for how in ({}, {"stream": True}):
        response = client.post(CHAT, json=asked(**{**how, **fields}))
        error = told(response)
        assert response.status_code == status and error["type"] == "invalid_request_error"
        if code != "context_length_exceeded":
            assert error["param"] == param and error["code"] == code
        else:
            assert (error["param"], error["code"]) == (param, code)
        assert response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/v1/chat/completions/", 404),
        ("GET", CHAT, 405),
        ("DELETE", "/v1/models", 405),
        ("OPTIONS", CHAT, 405),
        ("GET", "/v1/models/other", 404),
    ],
)
def test_paths_and_methods_that_are_not_there(client, method, path, status):
    response = client.request(method, path)
    assert response.status_code == status and told(response)["type"] == "invalid_request_error"


def test_bodies_that_are_not_taken(engine):
    client = client_of(engine, body_bytes=1000)
    for content, kind, status in (
        (b"{}", "text/plain", 415),
        (b"{}", None, 415),
        (b"{", "application/json", 400),
        (b" " * 1001, "application/json", 413),
        (b" " * 100_000, "application/json; charset=utf-8", 413),
    ):
        headers = {} if kind is None else {"content-type": kind}
        response = client.post(CHAT, content=content, headers=headers)
        assert response.status_code == status
        assert told(response)["type"] == "invalid_request_error"
    answer(client)


def test_models_team_health_and_page(client, team):
    (model,) = client.get("/v1/models").json()["data"]
    assert model == client.get(f"/v1/models/{MODEL}").json()
    assert model["id"] == MODEL and model["object"] == "model"
    card = client.get("/v1/rmas").json()
    assert card["topology"]["order"] == ["planner", "critic", "solver"]
    assert card["topology"]["edges"][0] == "planner->critic"
    assert card["topology"]["feedback"] == ["solver->planner"]
    assert card["latent_steps"] == team[0].system.latent_steps and card["columns"] == []
    assert card["channels"][0] == LATENT and card["rounds"]["default"] == 2
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready"}
    page = client.get("/")
    assert "<html" in page.text and "sha256-" in page.headers["content-security-policy"]


def samples(client, **how):
    """Metrics by name and labels."""
    lines = client.get("/metrics", **how).text.splitlines()
    return {
        name: float(value)
        for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")
    }


def test_metrics_count_what_happens(engine):
    client = client_of(engine)
    before = samples(client)
    answer(client, max_tokens=3, rmas={"rounds": 1})
    client.post(CHAT, json=asked(model="other"))
    client.get("/nowhere")
    client.get("/v1/models/other")
    after = samples(client)

    def grown(name):
        return after[name] - before.get(name, 0.0)

    assert grown(f'rmas_http_requests_total{{path="{CHAT}",status="200"}}') == 1
    assert grown(f'rmas_http_requests_total{{path="{CHAT}",status="404"}}') == 1
    assert grown('rmas_http_requests_total{path="other",status="404"}') == 1
    assert grown('rmas_http_requests_total{path="/v1/models/{id}",status="404"}') == 1
    assert grown("rmas_answer_tokens_total") == 3
    assert grown("rmas_latents_total") > 0 and grown("rmas_prompt_tokens_total") > 0
    assert grown("rmas_request_seconds_count") == grown("rmas_first_text_seconds_count") == 1
    assert after["rmas_rows"] == 4 and after["rmas_running_rows"] == 0
    assert after["rmas_engine_alive"] == 1
    assert any(name.startswith("rmas_engine_seconds_total{") for name in after)


def test_keys(engine):
    client = client_of(engine, keys=(KEY, OTHER))
    wrong = ("", "Bearer", f"Bearer {KEY}x", f"Basic {KEY}", KEY, f"Bearer {KEY} {KEY}", "Bearer é")
    for header in wrong:
        response = client.get("/v1/models", headers={"authorization": header.encode()})
        assert response.status_code == 401 and told(response)["code"] == "invalid_api_key"
        assert KEY not in response.text and response.headers["www-authenticate"] == "Bearer"
    for path in ("/v1/nowhere", "/metrics", "/v1/rmas", CHAT):
        assert client.get(path).status_code == 401
    for path in ("/", "/health", "/ready"):
        assert client.get(path).status_code == 200
    for key in (KEY, OTHER):
        assert client.get("/v1/models", headers={"authorization": f"bearer {key}"}).is_success
    assert samples(client, headers={"authorization": f"Bearer {KEY}"})


def test_hosts_of_a_server_without_keys(engine):
    client = client_of(engine, hosts=("localhost", "127.0.0.1", "[::1]"))
    for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:80", "[::1]:8000", "[::1]"):
        assert client.get("/health", headers={"host": host}).status_code == 200
    for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "", "[::2]"):
        response = client.get("/health", headers={"host": host})
        assert response.status_code == 403 and "Host" in told(response)["message"]


def test_other_origins_are_allowed_by_name_alone(engine):
    preflight = {
        "origin": "https://a.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    allowed = client_of(engine, origins=("https://a.example",), keys=(KEY,))
    response = allowed.options(CHAT, headers=preflight)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == "https://a.example"
    other = allowed.options(CHAT, headers={**preflight, "origin": "https://b.example"})
    assert "access-control-allow-origin" not in other.headers
    response = client_of(engine).options(CHAT, headers=preflight)
    assert response.status_code == 405
    assert "access-control-allow-origin" not in response.headers


def test_an_answer_that_takes_too_long_is_given_up(team):
    engine = Engine(*team, small())  # not started: nothing is answered
    client = client_of(engine, answer_seconds=0.2)
    response = client.post(CHAT, json=asked())
    assert response.status_code == 504 and told(response)["code"] == "timeout"
    assert response.headers["x-should-retry"] == "false"
    with client.stream("POST", CHAT, json=asked(stream=True)) as response:
        lines = [line for line in response.iter_lines() if line.startswith("data: ")]
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "timeout"
    engine.start()
    engine.close(finish=True)
    assert engine.statistics().by_outcome["cancelled"] == 2


def test_a_full_queue_is_told_with_the_time_to_come_again(team):
    engine = Engine(*team, small(queue=1))
    client = client_of(engine)
    waiting = engine.submit(_request())
    response = client.post(CHAT, json=asked())
    assert response.status_code == 429 and told(response)["code"] == "rate_limit_exceeded"
    assert int(response.headers["retry-after"]) >= 1
    assert response.headers["x-should-retry"] == "true"
    waiting.cancel()
    engine.start()
    answer(client)
    engine.close(finish=True)


def _request():
    from rmas_jax.serving.requests import Request

    return Request(question=QUESTIONS[0])


def test_a_server_that_closes_takes_no_more(team):
    engine = Engine(*team, small())
    engine.start()
    service = service_of(engine)
    client = TestClient(build_app(service))
    answer(client)
    service.is_closing = True
    for response in (client.post(CHAT, json=asked()), client.get("/ready")):
        assert response.status_code == 503 and told(response)["type"] == "server_error"
        assert response.headers["retry-after"]
    assert client.get("/health").status_code == 200
    engine.close(finish=True)
    service.is_closing = False
    assert client.post(CHAT, json=asked()).status_code in (429, 503)


def test_numbers_that_are_not_finite_fail_their_request_alone(team):
    whole, links = team
    critic = whole.members["critic"]
    (token,) = critic.tokenizer(" to", add_special_tokens=False)["input_ids"]
    bad = with_agents(whole, {"critic": broken(critic.agent, token)})
    engine = Engine(bad, links, small())
    engine.start()
    client = client_of(engine)
    response = client.post(CHAT, json=asked(question="from a to b"))
    error = told(response)
    assert response.status_code == 500 and error["code"] == "failed"
    assert "critic" in error["message"]
    assert response.headers["x-should-retry"] == "false"
    answer(client, question="w")
    engine.close(finish=False)


def test_an_unexpected_error_of_the_server_tells_nothing_of_itself(team, monkeypatch):
    engine = Engine(*team, small())
    monkeypatch.setattr(engine, "submit", lambda request: 1 / 0)
    response = client_of(engine).post(CHAT, json=asked())
    assert response.status_code == 500 and "division" not in response.text
    assert told(response)["type"] == "server_error"


def test_a_dead_engine_is_told(team, monkeypatch):
    engine = Engine(*team, small())
    dead = dataclasses.replace(engine.statistics(), is_alive=False)
    monkeypatch.setattr(engine, "statistics", lambda: dead)
    client = client_of(engine)
    for response in (client.get("/health"), client.get("/ready"), client.post(CHAT, json=asked())):
        assert response.status_code == 503 and told(response)["type"] == "server_error"
