"""Replies hold what the events say, in the form that the official client reads."""

from __future__ import annotations

import json
import math

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from rmas_jax.serving.openai.replies import Reply
from rmas_jax.serving.openai.schemas import chat_request
from rmas_jax.serving.requests import Crossing, DoneEvent, EndEvent, StageEvent, TextEvent

CROSSED = {"planner->critic": Crossing([1.5, math.inf], [[("a", 0.5)], [("b", -0.25)]])}
EVENTS = [
    StageEvent(1, "planner", 0.5, CROSSED, None, 0, None),
    StageEvent(2, "planner", 0.25, {}, "text", 3, math.nan),
    TextEvent(1, "so", [("s", -0.5), ("o", -math.inf)]),
    TextEvent(0, "he", [("he", -0.25)]),
    TextEvent(0, "y\u2028", [("\ufffd", -1.0)]),
    EndEvent(1, "length", 2),
    EndEvent(0, "stop", 3),
    DoneEvent(10, 3, 5, 8, 2, {"queue": 0.1, "rounds": 0.2, "answer": 0.3}),
]
ACCOUNT = {
    "channel": "latent",
    "rounds": 2,
    "latents": 8,
    "message_tokens": 3,
    "seconds": {"queue": 0.1, "rounds": 0.2, "answer": 0.3},
}
USAGE = {
    "prompt_tokens": 10,
    "completion_tokens": 8,
    "total_tokens": 18,
    "completion_tokens_details": {"reasoning_tokens": 3},
}


def reply(**fields):
    messages = [{"role": "user", "content": "Who?"}]
    chat = chat_request({"model": "m", "messages": messages, "n": 2, **fields})
    return Reply(chat, "latent", created=5, id="chatcmpl-1")


def chunks(**fields):
    made = reply(stream=True, **fields)
    found = [*made.opening(), *(chunk for event in EVENTS for chunk in made.chunks(event))]
    for chunk in found:
        json.dumps(chunk, allow_nan=False)
        ChatCompletionChunk.model_validate(chunk)
    return found


def test_a_whole_reply():
    found = reply(logprobs=True).whole(EVENTS)
    json.dumps(found, allow_nan=False)
    parsed = ChatCompletion.model_validate(found)
    assert [choice.message.content for choice in parsed.choices] == ["hey\u2028", "so"]
    assert [choice.finish_reason for choice in parsed.choices] == ["stop", "length"]
    first, second = (choice.logprobs.content for choice in parsed.choices)
    assert [token.logprob for token in first] == [-0.25, -1.0]
    assert [token.logprob for token in second] == [-0.5, -9999.0]
    assert [token.bytes for token in first] == [[104, 101], None]
    assert found["usage"] == USAGE and parsed.usage.total_tokens == 18
    stages = found["rmas"].pop("stages")
    assert found["rmas"] == ACCOUNT
    assert stages[0] == {
        "round": 1,
        "role": "planner",
        "seconds": 0.5,
        "sent": {
            "planner->critic": {"norms": [1.5, None], "nearest": [[["a", 0.5]], [["b", -0.25]]]}
        },
        "text": None,
        "tokens": 0,
        "change": None,
        "sweeps": None,
        "compiled": False,
    }
    assert (stages[1]["text"], stages[1]["tokens"], stages[1]["change"]) == ("text", 3, None)


def test_a_reply_without_stages_and_log_probabilities():
    found = reply().whole(EVENTS[2:])
    assert found["rmas"] == ACCOUNT
    assert [choice["logprobs"] for choice in found["choices"]] == [None, None]


def test_a_stream_adds_up_to_the_whole_reply():
    whole = reply(logprobs=True).whole(EVENTS)
    found = chunks(logprobs=True, rmas={"watch": True}, stream_options={"include_usage": True})
    for choice in whole["choices"]:
        parts = [
            part for chunk in found for part in chunk["choices"] if part["index"] == choice["index"]
        ]
        assert parts[0]["delta"] == {"role": "assistant", "content": ""}
        text = "".join(part["delta"].get("content", "") for part in parts)
        assert text == choice["message"]["content"]
        tokens = [
            token for part in parts if part["logprobs"] for token in part["logprobs"]["content"]
        ]
        assert tokens == choice["logprobs"]["content"]
        reasons = [part["finish_reason"] for part in parts]
        assert reasons == [None] * (len(parts) - 1) + [choice["finish_reason"]]
    stages = [chunk["rmas"]["stage"] for chunk in found if "stage" in chunk.get("rmas", {})]
    assert stages == whole["rmas"].pop("stages")
    assert found[-1]["usage"] == whole["usage"] and found[-1]["rmas"] == whole["rmas"]
    assert all(chunk["usage"] is None for chunk in found[:-1])
    assert {chunk["id"] for chunk in found} == {"chatcmpl-1"}


@pytest.mark.parametrize(
    ("fields", "last"),
    [
        ({}, None),
        ({"stream_options": {"include_usage": False}}, None),
        ({"stream_options": {"include_usage": True}}, {"usage"}),
        ({"rmas": {}}, {"rmas"}),
    ],
)
def test_chunks_without_choices_come_only_where_they_are_asked_for(fields, last):
    found = chunks(**fields)[2:]
    told = [chunk for chunk in found if "rmas" not in chunk or "stage" not in chunk["rmas"]]
    empty = [set(chunk) & {"usage", "rmas"} for chunk in told if not chunk["choices"]]
    assert empty == ([] if last is None else [last])
