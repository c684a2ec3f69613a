"""What a chat request may hold, and the engine's request that it stands for.

A field is used, has no effect here and may have any value (`WITHOUT_EFFECT`), may only have values
that change nothing (`NEUTRAL`), or is refused: nothing is ignored in silence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from rmas_jax.config.limits import MAX_NEAREST, MAX_ROUNDS, MAX_SEED, MAX_TOKENS
from rmas_jax.host.errors import shown
from rmas_jax.prompts import Question
from rmas_jax.serving.conversation import Turn, question_of
from rmas_jax.serving.openai.errors import ApiError
from rmas_jax.serving.requests import Request

MAX_MESSAGES = 1_000
MAX_PARTS = 100  # of a message's content
MAX_STOPS = 4
MAX_STOP = 256  # characters of a stop string
MAX_CHOICES = 128
MAX_COLUMNS = 64
MAX_TEMPERATURE = 2.0
# Fields for the service behind OpenAI's API, not for the answer.
WITHOUT_EFFECT = (
    "metadata",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
)
# Field -> the values besides null that leave an answer as it is, the only ones allowed.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "tool_choice": ("auto", "none"),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}


def _without_nulls(value: Any) -> Any:
    """An object without fields that are null, which count as missing."""
    if isinstance(value, dict):
        return {name: item for name, item in value.items() if item is not None}
    return value


def _as_parts(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class _Object(BaseModel):
    """An object of JSON: no other fields, no other types, no infinite numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class TextPart(_Object):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class Message(_Object):
    """A message of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[TextPart], Field(max_length=MAX_PARTS), BeforeValidator(_as_parts)]
    type: Literal["text"] = "text"  # lm-evaluation-harness adds it

    @property
    def turn(self) -> Turn:
        """The message as a turn; its parts are lines."""
        return Turn(self.role, "\n".join(part.text for part in self.content))


class StreamOptions(_Object):
    """Options of a stream."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class TeamOptions(_Object):
    """The field `rmas`: how the team works, and what is told of it."""

    channel: str | None = None
    rounds: Annotated[int, Field(ge=1, le=MAX_ROUNDS)] | None = None
    tolerance: Annotated[float, Field(ge=0)] = 0.0
    watch: bool = False
    nearest: Annotated[int, Field(ge=0, le=MAX_NEAREST)] = 0
    columns: Annotated[dict[str, str], Field(max_length=MAX_COLUMNS)] = {}


Nullable = BeforeValidator(_without_nulls)


class ChatRequest(_Object):
    """A request of `/v1/chat/completions`, without fields that have no effect."""

    model: str
    messages: list[Annotated[Message, Nullable]] = Field(min_length=1, max_length=MAX_MESSAGES)
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    stream: bool = False
    stream_options: Annotated[StreamOptions, Nullable] | None = None
    max_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=MAX_STOP)]],
        Field(max_length=MAX_STOPS),
        BeforeValidator(_as_list),
    ] = []
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    temperature: float | None = Field(None, ge=0, le=MAX_TEMPERATURE)
    top_p: float | None = Field(None, ge=0, le=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=0)
    rmas: Annotated[TeamOptions, Nullable] | None = None


def chat_request(raw: Mapping[str, Any]) -> ChatRequest:
    """The request in a JSON object.

    Raises:
      ApiError: names the first field that is wrong, its value and what is allowed.
    """
    fields = {}
    for name, value in raw.items():
        if value is None or name in WITHOUT_EFFECT:
            continue
        if name not in ChatRequest.model_fields and name not in NEUTRAL:
            raise _unsupported(shown(name)[1:-1], f"must be unset, got {shown(value)}")
        if (allowed := NEUTRAL.get(name)) is None:
            fields[name] = value
        elif value not in allowed:
            words = " or ".join(["unset", *map(shown, allowed)])
            raise _unsupported(name, f"must be {words}, got {shown(value)}")
    try:
        chat = ChatRequest.model_validate(fields)
    except ValidationError as error:
        raise _wrong(error) from None
    _check_together(chat)
    return chat


def engine_request(chat: ChatRequest, *, columns: tuple[str, ...]) -> Request:
    """The engine's request; `columns` are those of the team's prompts.

    Raises:
      RequestError: the messages hold no question.
      ApiError: the columns differ.
    """
    team = chat.rmas or TeamOptions()
    text = question_of([message.turn for message in chat.messages])
    if set(team.columns) != set(columns):
        listed = ", ".join(columns) or "none"
        message = f"rmas.columns must be those of the prompts ({listed}), got "
        raise ApiError(400, message + shown(sorted(team.columns)), field="rmas.columns")
    question: Question = {**team.columns, "question": text} if columns else text
    return Request(
        question=question,
        channel=team.channel,
        rounds=team.rounds,
        tolerance=team.tolerance,
        temperature=chat.temperature,
        top_p=chat.top_p,
        seed=chat.seed,
        max_tokens=chat.max_completion_tokens or chat.max_tokens,
        stop=tuple(chat.stop),
        n=chat.n,
        is_watched=team.watch,
        nearest=team.nearest,
    )


def _check_together(chat: ChatRequest) -> None:
    """Refuses fields that contradict each other, or have no effect beside the others."""
    both = chat.max_completion_tokens, chat.max_tokens
    if None not in both and both[0] != both[1]:
        message = f"must be unset or {both[0]}, as max_completion_tokens is, got {both[1]}"
        raise _invalid("max_tokens", message)
    if chat.stream_options and not chat.stream:
        raise _invalid("stream_options", "must be unset without stream: true, got an object")
    if chat.rmas and chat.rmas.nearest and not chat.rmas.watch:
        raise _invalid("rmas.nearest", f"must be 0 without watch: true, got {chat.rmas.nearest}")


# Of pydantic's messages: "List should have at least 1 item after validation, not 0".
SHOULD = re.compile(r"\b[A-Z]\w+ should\b")
OBJECT = re.compile(r"a valid dictionary or instance of \w+")


def _wrong(error: ValidationError) -> ApiError:
    """The first fault that pydantic has found."""
    fault = error.errors(include_url=False)[0]
    field = ""
    for part in fault["loc"]:
        field += f"[{part}]" if isinstance(part, int) else f".{shown(part)[1:-1]}"
    field = field.removeprefix(".")
    if fault["type"] == "extra_forbidden":
        return _unsupported(field, f"must be unset, got {shown(fault['input'])}")
    if fault["type"] == "missing":
        return _invalid(field, "must be given, got none")
    allowed = OBJECT.sub("an object", SHOULD.sub("must", fault["msg"]))
    return _invalid(field, f"{allowed}, got {shown(fault['input'])}")


def _invalid(field: str, message: str) -> ApiError:
    return ApiError(400, f"{field} {message}", field=field)


def _unsupported(field: str, message: str) -> ApiError:
    return ApiError(400, f"{field} {message}", field=field, code="unsupported_parameter")
