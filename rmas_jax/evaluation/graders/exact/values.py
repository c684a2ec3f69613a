"""Values of answers; expressions and matrices are sympy's."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

import sympy

DEGREE = sympy.Symbol("degree", positive=True)  # a unit of angles, pi/180 inside functions


NUMBER_SETS = ("R", "Z", "N", "Q", "C")
_INTEGERS, _COMPLEX = ("k", "m", "n"), ("z", "w")


def symbol_of(name: str) -> sympy.Symbol:
    """The symbol of a name: of a whole number, of a complex one, or, in general, of a real one."""
    if name[0] in _COMPLEX:
        return sympy.Symbol(name)
    return (
        sympy.Symbol(name, integer=True) if name[0] in _INTEGERS else sympy.Symbol(name, real=True)
    )


def words_of(text: str) -> frozenset[str]:
    """The words of a text: a table in few lines."""
    return frozenset(text.split())


class UnreadableError(ValueError):
    """The text is no answer that the reader knows."""


class TooLargeError(ValueError):
    """An exact value would take more memory or time than an answer is worth."""


@dataclasses.dataclass(frozen=True)
class Words:
    """An answer in words, in lower case."""

    text: str


@dataclasses.dataclass(frozen=True)
class Quantity:
    """A value with a unit: unit -> exponent, in the order of their names."""

    value: Value
    unit: tuple[tuple[str, int], ...]


@dataclasses.dataclass(frozen=True)
class Numeral:
    """A number written in a base other than ten."""

    digits: str
    base: int


@dataclasses.dataclass(frozen=True)
class Residue:
    """A value modulo another: 2 (mod 5)."""

    value: sympy.Expr
    modulus: sympy.Expr


@dataclasses.dataclass(frozen=True)
class Ratio:
    """Two or more parts, 3:4."""

    parts: tuple[sympy.Expr, ...]


@dataclasses.dataclass(frozen=True)
class Collection:
    r"""Several values in brackets.

    Attributes:
      brackets: `()` tuple or open interval, `[]`, `[)`, `(]`, `<>`, `{}` set, `,` values without
        brackets, whose order does not count, `+` quantities in units of decreasing size; a letter
        names a set of numbers: R, Z, ...
      items: in the order in which they are written.
    """

    brackets: str
    items: tuple[Value, ...]


@dataclasses.dataclass(frozen=True)
class SetOperation:
    """Sets or conditions, joined by `union`, `intersection` or `minus`."""

    operator: str
    items: tuple[Value, ...]


@dataclasses.dataclass(frozen=True)
class Relation:
    """A chain of sides: a < x <= b. Operators: = < <= > >= != ~ (approximately), in, equiv."""

    sides: tuple[Value, ...]
    operators: tuple[str, ...]


Value: TypeAlias = Any  # sympy.Expr, sympy.ImmutableMatrix, or a class of this file


def is_expression(value: Value) -> bool:
    """Whether a value is a number or a term."""
    return isinstance(value, sympy.Expr) and not isinstance(value, sympy.MatrixBase)
