"""Whether an engine can answer a request, by its settings."""

from __future__ import annotations

import dataclasses
import math
import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rmas_jax.config.limits import MAX_SEED
from rmas_jax.host.errors import shown
from rmas_jax.models.generation import ALLOWED
from rmas_jax.prompts.columns import texts_of
from rmas_jax.rounds.channels import TEXT
from rmas_jax.serving.requests import Request, RequestError
from rmas_jax.serving.settings import EngineSettings

MAX_STOPS, MAX_STOP = 64, 1_000  # strings of a request, and characters of one
MAX_TOLERANCE = 1e9
Check = tuple[str, str, Callable[[Any], bool]]  # field, the allowed values in words and as a test


def with_defaults(request: Request, settings: EngineSettings) -> Request:
    """The request with a value in every field."""
    defaults: dict[str, Any] = {
        "channel": settings.channels[0],
        "rounds": settings.rounds,
        "temperature": settings.sampling.temperature,
        "top_p": settings.sampling.top_p,
        "seed": secrets.randbelow(MAX_SEED + 1),
        "max_tokens": settings.max_tokens,
    }
    missing = {name: of for name, of in defaults.items() if getattr(request, name) is None}
    return dataclasses.replace(request, **missing)


def check_request(request: Request, settings: EngineSettings, columns: Sequence[str]) -> None:
    """Checks a request of `with_defaults`, apart from the length of its question.

    Args:
      request: with a value in every field.
      settings: of the engine.
      columns: names of the texts that a question has beside itself.

    Raises:
      RequestError: names the field, the allowed values and the one that it has.
    """
    for field, allowed, is_allowed in _checks(settings):
        if not is_allowed(value := getattr(request, field)):
            raise RequestError(f"{field} must be {allowed}, got {shown(value)}", field)
    if request.channel == TEXT and request.tolerance:
        raise RequestError(
            f"tolerance must be 0 where text crosses the edges, got {request.tolerance}",
            "tolerance",
        )
    if {*texts_of(request.question)} != {"question", *columns}:
        raise RequestError(
            f"question must have the texts question{''.join(f', {name}' for name in columns)}, got "
            f"{shown(sorted(texts_of(request.question)))}",
            "question",
        )


def _checks(settings: EngineSettings) -> Iterator[Check]:
    whole = {
        "rounds": (1, settings.max_rounds),
        "seed": (0, MAX_SEED),
        "max_tokens": (1, settings.max_tokens),
        "n": (1, settings.max_n),
        "nearest": (0, settings.nearest),
    }
    yield "channel", f"one of {', '.join(settings.channels)}", lambda x: x in settings.channels
    for field, (least, most) in whole.items():
        yield field, f"a whole number from {least:,} to {most:,}", _whole_number(least, most)
    for field in ("temperature", "top_p"):
        allowed, is_allowed = ALLOWED[field]
        yield field, allowed, _number(is_allowed)
    yield (
        "tolerance",
        f"a number from 0 to {MAX_TOLERANCE:g}",
        _number(lambda x: 0 <= x <= MAX_TOLERANCE),
    )
    yield (
        "stop",
        f"at most {MAX_STOPS} texts of 1 to {MAX_STOP:,} characters",
        lambda stops: len(stops) <= MAX_STOPS and all(0 < len(x) <= MAX_STOP for x in stops),
    )


def _whole_number(least: int, most: int) -> Callable[[Any], bool]:
    return lambda x: type(x) is int and least <= x <= most


def _number(is_allowed: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda x: type(x) in (int, float) and math.isfinite(x) and is_allowed(x)
