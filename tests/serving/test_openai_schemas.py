"""Fields of chat requests: used, without effect, or refused with what is allowed."""

from __future__ import annotations

import openai.types.chat.completion_create_params as oracle
import pytest

from rmas_jax.serving.openai.errors import ApiError
from rmas_jax.serving.openai.schemas import (
    NEUTRAL,
    WITHOUT_EFFECT,
    ChatRequest,
    chat_request,
    engine_request,
)
from rmas_jax.serving.requests import Request

ASKED = [{"role": "user", "content": "Who?"}]


def read(**fields):
    return chat_request({"model": "m", "messages": ASKED, **fields})


def asked(*, columns=(), **fields):
    return engine_request(read(**fields), columns=columns)


def test_a_request_without_options_leaves_all_to_the_engine():
    assert asked() == Request(question="Who?")


def test_every_option_reaches_the_engine():
    rmas = {"channel": "text", "rounds": 2, "tolerance": 0.5, "watch": True, "nearest": 3}
    found = asked(
        temperature=1, top_p=0.5, seed=7, max_completion_tokens=9, stop=["a", "b"], n=2, rmas=rmas
    )
    assert found == Request(
        question="Who?",
        channel="text",
        rounds=2,
        tolerance=0.5,
        temperature=1.0,
        top_p=0.5,
        seed=7,
        max_tokens=9,
        stop=("a", "b"),
        n=2,
        is_watched=True,
        nearest=3,
    )
    assert asked(max_tokens=5).max_tokens == 5
    assert asked(max_tokens=5, max_completion_tokens=5).max_tokens == 5
    assert asked(stop="a").stop == ("a",)


def test_content_may_be_parts_and_fields_may_be_null():
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages = [
        {"role": "user", "content": "a", "type": "text"},  # as lm-evaluation-harness writes it
        {"role": "assistant", "content": "b", "refusal": None, "tool_calls": None},
        {"role": "user", "content": parts},
    ]
    found = asked(messages=messages, temperature=None, tools=None, stop=None, rmas=None)
    assert found == Request(question="User: a\n\nAssistant: b\n\nUser: one\ntwo")


def test_columns_of_prompts():
    found = asked(columns=("facts",), rmas={"columns": {"facts": "f"}})
    assert found.question == {"question": "Who?", "facts": "f"}
    for columns, given in ((("facts",), {}), ((), {"facts": "f"}), (("facts",), {"other": "f"})):
        with pytest.raises(ApiError, match=r"rmas\.columns must be those of the prompts"):
            asked(columns=columns, rmas={"columns": given})


def test_fields_without_effect_and_values_that_change_nothing_are_accepted():
    for name in WITHOUT_EFFECT:
        assert asked(**{name: {"any": ["value"]}}) == Request(question="Who?")
    for name, values in NEUTRAL.items():
        for value in (None, *values):
            assert asked(**{name: value}) == Request(question="Who?")


def test_every_field_of_the_official_client_has_its_place():
    """New fields of OpenAI's are refused by name until they are put into one of the tables."""
    theirs = set(oracle.CompletionCreateParamsBase.__annotations__) | {"stream"}
    ours = {*ChatRequest.model_fields, *NEUTRAL, *WITHOUT_EFFECT}
    assert ours - theirs == {"rmas"}
    assert theirs - ours == set()


NAN, DEEP = float("nan"), 10**400


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"tools": [{"type": "function"}]}, "tools", "must be unset or [], got [{"),
        ({"tool_choice": "required"}, "tool_choice", "must be unset or 'auto' or 'none', got"),
        ({"functions": [{}]}, "functions", "must be unset or [], got [{}]"),
        ({"audio": {}}, "audio", "must be unset, got {}"),
        ({"modalities": ["text", "audio"]}, "modalities", "must be unset or ['text'], got"),
        ({"response_format": {"type": "json_object"}}, "response_format", "must be unset or {"),
        ({"logit_bias": {"1": 1}}, "logit_bias", "must be unset or {}"),
        ({"presence_penalty": 0.1}, "presence_penalty", "must be unset or 0, got 0.1"),
        ({"reasoning_effort": "low"}, "reasoning_effort", "must be unset, got 'low'"),
        ({"nonsense": 1}, "nonsense", "nonsense must be unset, got 1"),
        ({"\ud800": 1}, "\\ud800", "must be unset"),
        ({"top_logprobs": 2, "logprobs": True}, "top_logprobs", "less than or equal to 0, got 2"),
        ({"temperature": 2.1}, "temperature", "must be less than or equal to 2, got 2.1"),
        ({"temperature": -1}, "temperature", "greater than or equal to 0, got -1"),
        ({"temperature": NAN}, "temperature", "must be a finite number, got nan"),
        ({"temperature": "0"}, "temperature", "must be a valid number, got '0'"),
        ({"temperature": True}, "temperature", "must be a valid number, got True"),
        ({"temperature": DEEP}, "temperature", "got an integer of 400 digits"),
        ({"top_p": 1.5}, "top_p", "less than or equal to 1, got 1.5"),
        ({"n": 0}, "n", "greater than or equal to 1, got 0"),
        ({"n": 1.0}, "n", "must be a valid integer, got 1.0"),
        ({"n": 129}, "n", "less than or equal to 128, got 129"),
        ({"n": DEEP}, "n", "got an integer of 400 digits"),
        ({"seed": -1}, "seed", "greater than or equal to 0, got -1"),
        ({"seed": 2**32}, "seed", "less than or equal to 4294967295"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1, got 0"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "must be unset or 2"),
        ({"stop": ""}, "stop[0]", "stop[0] must have at least 1 character, got ''"),
        ({"stop": ["a"] * 5}, "stop", "at most 4 items"),
        ({"stop": ["a"] * 5000}, "stop", "at most 4 items"),
        ({"stop": ["a" * 257]}, "stop[0]", "at most 256 characters"),
        ({"stop": {"a": 1}}, "stop", "must be a valid list, got {'a': 1}"),
        ({"stop": [1]}, "stop[0]", "must be a valid string, got 1"),
        ({"stop": ["\ud800"]}, "stop[0]", "got '\\ud800'"),
        ({"stream": "yes"}, "stream", "must be a valid boolean, got 'yes'"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "without stream: true"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "must be unset"),
        ({"model": 1}, "model", "must be a valid string, got 1"),
        ({"model": None}, "model", "model must be given, got none"),
        ({"messages": None}, "messages", "messages must be given, got none"),
        ({"messages": []}, "messages", "messages must have at least 1 item"),
        ({"messages": ASKED * 1001}, "messages", "at most 1000 items"),
        ({"messages": "Who?"}, "messages", "must be a valid list, got 'Who?'"),
        ({"messages": ["Who?"]}, "messages[0]", "got 'Who?'"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role", "got 'tool'"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "must be given"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content", "got 1"),
        (
            {"messages": [{"role": "user", "content": "a", "name": "b"}]},
            "messages[0].name",
            "must be unset, got 'b'",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0].type",
            "must be 'text', got 'image_url'",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 101}]},
            "messages[0].content",
            "at most 100 items",
        ),
        ({"rmas": 1}, "rmas", "rmas must be an object, got 1"),
        ({"rmas": {"round": 1}}, "rmas.round", "must be unset, got 1"),
        ({"rmas": {"rounds": 0}}, "rmas.rounds", "greater than or equal to 1, got 0"),
        ({"rmas": {"rounds": 17}}, "rmas.rounds", "less than or equal to 16, got 17"),
        ({"rmas": {"tolerance": -1}}, "rmas.tolerance", "greater than or equal to 0"),
        ({"rmas": {"nearest": 2}}, "rmas.nearest", "must be 0 without watch: true, got 2"),
        ({"rmas": {"watch": True, "nearest": 17}}, "rmas.nearest", "less than or equal to 16"),
        ({"rmas": {"columns": {"a": 1}}}, "rmas.columns.a", "must be a valid string, got 1"),
    ],
)
def test_what_is_refused(fields, field, words):
    with pytest.raises(ApiError) as raised:
        read(**fields)
    error = raised.value
    assert error.status == 400 and error.body["error"]["param"] == field
    assert words in str(error) and str(error).startswith(field.partition("[")[0].partition(".")[0])
    assert len(str(error)) < 400
    error.response  # noqa: B018  # can be written as JSON, surrogates included
