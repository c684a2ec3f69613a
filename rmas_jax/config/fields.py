"""Descriptions of configuration fields: meaning, default and allowed values."""

import dataclasses
import math
import re
import typing
from collections.abc import Iterator
from typing import Any

# Limits of fields that set none.
MAX_INT = 2**31 - 1
MAX_FLOAT = 1e30  # results stay within float32
MAX_TEXT = 4096  # bytes; the longest path
MAX_ITEMS = 1000  # of a list or mapping

KINDS = {bool: "true or false", int: "an integer", float: "a number", str: "text (not empty)"}


@dataclasses.dataclass(frozen=True)
class Option:
    """A field's meaning and allowed values. In a list, the limits hold for each item."""

    help: str
    choices: tuple[str, ...] = ()
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    pattern: str | None = None  # a regular expression that the whole text matches
    longest: int = MAX_TEXT  # bytes of a text
    distinct: bool = False  # a list has at least one item and no item twice
    path: str | None = None  # of a file or folder: a kind of `rmas_jax.config.paths`

    def admits(self, kind: type, value: Any) -> bool:
        """Whether `value` is of the scalar type `kind` and within the limits."""
        if kind is float:
            # A bool is an int in Python, but not here; infinities and nan fail the comparison.
            typed = type(value) in (int, float) and abs(value) <= MAX_FLOAT
        elif kind is str:
            typed = isinstance(value, str) and bool(value.strip()) and self._is_writable(value)
        else:
            typed = (
                isinstance(value, int)
                and type(value) is kind
                and abs(value) <= max(MAX_INT, self.at_most or 0)
            )
        return (
            typed
            and (not self.choices or value in self.choices)
            and (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
            and (self.above is None or value > self.above)
            and (self.pattern is None or re.fullmatch(self.pattern, value) is not None)
        )

    def _is_writable(self, text: str) -> bool:
        """Whether a path or a file can contain a text."""
        try:
            return len(text.encode()) <= self.longest and "\0" not in text
        except UnicodeEncodeError:  # a lone surrogate
            return False

    def allowed(self, expected: Any, got: Any = None) -> str:
        """The allowed values of a field of type `expected`, in words.

        Names limits common to all fields only if the value `got` exceeds them.
        """
        kind, is_nullable = split_optional(expected)
        if dataclasses.is_dataclass(kind):
            text = f"a section with {', '.join(field.name for field in dataclasses.fields(kind))}"
        elif typing.get_origin(kind) is dict:
            is_text = typing.get_args(kind)[1] is str
            text = f"a mapping of names to {'text' if is_text else 'whole numbers'}"
            if isinstance(got, dict) and len(got) > MAX_ITEMS:
                return f"at most {MAX_ITEMS} names"
        elif typing.get_origin(kind) is tuple:
            item = self.allowed(typing.get_args(kind)[0])
            text = f"a list{' without repeats, not empty' * self.distinct}; each item {item}"
            if isinstance(got, list) and len(got) > MAX_ITEMS:
                return f"at most {MAX_ITEMS} items"
        elif self.choices:
            text = f"one of {', '.join(self.choices)}"
        else:
            text = KINDS[kind]
            if self.above is not None:
                text += f" above {self.above}"
            if self.at_least is not None:
                text += f" of at least {self.at_least}"
            if self.at_most is not None:
                text += f" and at most {self.at_most}"
            if self.pattern is not None:
                text += f" that matches {self.pattern}"
            text += self._common_limit(kind, got)
        return text + " or null" * is_nullable

    def _common_limit(self, kind: type, got: Any) -> str:
        """The limit of all fields of a kind, if `got` exceeds it."""
        if kind is str:
            if isinstance(got, str) and not self._is_writable(got):
                return f" of at most {self.longest} bytes in UTF-8, without NUL"
            return f" of at most {self.longest} bytes" * (self.longest < MAX_TEXT)
        most = {int: MAX_INT, float: MAX_FLOAT}.get(kind, math.inf)
        is_beyond = type(got) in (int, float) and abs(got) > most
        return f" and at most {most}" * (is_beyond and self.at_most is None)


def option(help: str, default: Any = dataclasses.MISSING, **limits: Any) -> Any:
    """A dataclass field with its description; without a default it is required."""
    return dataclasses.field(default=default, metadata={"option": Option(help, **limits)})


def split_optional(expected: Any) -> tuple[Any, bool]:
    """`X | None` -> (X, True); any other type X -> (X, False)."""
    arguments = typing.get_args(expected)
    return (arguments[0], True) if type(None) in arguments else (expected, False)


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the configuration; `conflicts` checks combinations of fields."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Yields (field, message) for values that conflict with others."""
        return iter(())
