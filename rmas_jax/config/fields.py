"""How a field of the configuration is described: its meaning, its default and what it allows."""

import dataclasses
import re
import sys
import typing
from collections.abc import Iterator
from typing import Any

KINDS = {bool: "true or false", int: "an integer", float: "a number", str: "text (not empty)"}


@dataclasses.dataclass(frozen=True)
class Option:
    """What a field means and which values it takes. In a list, the limits hold for each item."""

    help: str
    choices: tuple[str, ...] = ()
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    pattern: str | None = None  # a regular expression that the whole text matches
    distinct: bool = False  # a list has at least one item and no item twice

    def admits(self, kind: type, value: Any) -> bool:
        """Whether `value` is of the scalar type `kind` and within the limits."""
        if kind is float:
            # A bool is an int to Python, not to us; infinities and nan fail the comparison.
            typed = type(value) in (int, float) and abs(value) <= sys.float_info.max
        elif kind is str:
            typed = isinstance(value, str) and bool(value.strip())
        else:
            typed = type(value) is kind
        return (
            typed
            and (not self.choices or value in self.choices)
            and (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
            and (self.above is None or value > self.above)
            and (self.pattern is None or re.fullmatch(self.pattern, value) is not None)
        )

    def allowed(self, expected: Any) -> str:
        """In words, what a field of type `expected` takes."""
        kind, is_nullable = split_optional(expected)
        if dataclasses.is_dataclass(kind):
            text = f"a section with {', '.join(field.name for field in dataclasses.fields(kind))}"
        elif typing.get_origin(kind) is dict:
            text = "a mapping of names to text"
        elif typing.get_origin(kind) is tuple:
            item = self.allowed(typing.get_args(kind)[0])
            text = f"a list{' without repeats, not empty' * self.distinct}; each item {item}"
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
        return text + " or null" * is_nullable


def option(help: str, default: Any = dataclasses.MISSING, **limits: Any) -> Any:
    """A dataclass field with its description; without a default it is required."""
    return dataclasses.field(default=default, metadata={"option": Option(help, **limits)})


def split_optional(expected: Any) -> tuple[Any, bool]:
    """`X | None` -> (X, True); any other type -> (it, False)."""
    arguments = typing.get_args(expected)
    return (arguments[0], True) if type(None) in arguments else (expected, False)


class Section:
    """A part of the configuration; what a single field cannot say, `conflicts` does."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Yields (field, message) for values that are allowed alone but not together."""
        return iter(())
