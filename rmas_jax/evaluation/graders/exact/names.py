"""Names that only one of two answers may have: x = 5, f(x) = x + 1, (x, y) = (1, 2)."""

from __future__ import annotations

import re

import sympy

from .proofs import are_equal
from .values import Collection, Relation, Residue, Value, Words, is_expression, words_of

_DENIALS = words_of("not no never isn't except without")


def without_name(gold: Value, given: Value) -> tuple[Value, Value]:
    """Both, without the name in `x = 5` if only one has it.

    The values of `x = 1, y = 2` are a tuple, if the other is one, in the order of its names, as in
    `(x, y) = (1, 2)`, or, without names, if those of the values are in alphabetical order.
    """
    if isinstance(gold, Relation) and _is_list(given):
        gold = _equations(gold)
    elif isinstance(given, Relation) and _is_list(gold):
        given = _equations(given)
    if isinstance(gold, Collection) and isinstance(given, Collection):
        if gold.brackets == "()":
            return gold, _as_tuple(given)
        if given.brackets == "()":
            return _as_tuple(gold), given
    if isinstance(gold, Relation) and isinstance(given, Relation):
        if {*gold.operators} == {*given.operators} == {"="}:
            return _collapsed(gold), _collapsed(given)
        return _unapproximated(gold), _unapproximated(given)
    if isinstance(gold, Relation):
        gold = _assigned(gold, names_only=True)
    elif isinstance(given, Relation):
        given = _assigned(given, names_only=False)
    return gold, given


def _is_list(value: Value) -> bool:
    """Whether a value is several, without brackets."""
    return isinstance(value, Collection) and value.brackets == ","


def _equations(relation: Relation) -> Value:
    """(x, y) = (1, 2) as x = 1, y = 2; other relations as they are."""
    names, values = relation.sides[0], relation.sides[-1]
    if relation.operators != ("=",) or not _is_tuple(names) or not _is_tuple(values):
        return relation
    if len(names.items) != len(values.items) or not _is_name(names, True):
        return relation
    pairs = zip(names.items, values.items, strict=True)
    return Collection(",", tuple(Relation(pair, ("=",)) for pair in pairs))


def _is_tuple(value: Value) -> bool:
    return isinstance(value, Collection) and value.brackets == "()"


def _as_tuple(value: Collection) -> Collection:
    """The tuple of x = 1, y = 2, whose names are in alphabetical order; others as they are."""
    if value.brackets != "," or not all(
        is_equation(item) and len(item.sides) == 2 and _is_letter(item.sides[0])
        for item in value.items
    ):
        return value
    names = [_place(item.sides[0]) for item in value.items]
    if names != sorted({*names}):
        return value
    return Collection("()", tuple(item.sides[1] for item in value.items))


def _is_letter(side: Value) -> bool:
    """Whether a side is a Latin letter, perhaps with a whole number as its index."""
    return (
        isinstance(side, sympy.Symbol) and re.fullmatch(r"[A-Za-z](_\d+)?", str(side)) is not None
    )


def _place(letter: sympy.Symbol) -> tuple[str, int]:
    name, _, index = str(letter).partition("_")
    return name, int(index or 0)


def _unapproximated(value: Relation) -> Value:
    """A relation without the decimals at its end: x = 1/3 ~ 0.33."""
    if value.operators[-1] != "~" or len(value.operators) < 2:
        return value
    return Relation(value.sides[:-1], value.operators[:-1])


def _assigned(relation: Relation, *, names_only: bool) -> Value:
    """The value in `x = 5`, `f(x) = x + 1`, `x = 2 + 3 = 5` and `x \\in (0, 1)`; else the relation.

    Args:
      relation: of any kind.
      names_only: whether a sum or product of names, as in m + n = 7, is no name.
    """
    sides, operators = relation.sides, relation.operators
    if operators[-1] == "~" and not (len(operators) == 1 and _is_name(sides[0], True)):
        sides, operators = sides[:-1], operators[:-1]  # 1/3 ~ 0.33 is 1/3
    if not operators:
        return sides[0]
    if not {*operators} <= {"=", "~", "in", "equiv"}:
        return relation
    if "equiv" in operators and not isinstance(sides[-1], Residue):
        return relation
    if operators == ("=",) and _is_name(sides[1], True) and not _is_name(sides[0], True):
        return sides[0]
    if _is_name(sides[0], names_only or "in" in operators) and len(sides) > 1:
        sides = sides[1:]
    return sides[-1] if _is_chain(sides) and not _has_symbols(relation, sides) else relation


def _collapsed(relation: Relation) -> Relation:
    """x = 2 + 3 = 5 as x = 5."""
    if len(relation.sides) < 3 or not _is_chain(relation.sides[1:]):
        return relation
    return Relation((relation.sides[0], relation.sides[-1]), ("=",))


def _is_chain(sides: tuple[Value, ...]) -> bool:
    """Whether all sides are the same."""
    return len(sides) == 1 or (
        all(map(is_expression, sides)) and all(are_equal(sides[0], side) for side in sides[1:])
    )


def _has_symbols(relation: Relation, sides: tuple[Value, ...]) -> bool:
    """Whether nothing was taken away, and the sides are more than numbers."""
    return sides is relation.sides and any(
        not is_expression(side) or side.free_symbols for side in sides
    )


def _is_name(side: Value, names_only: bool) -> bool:
    if isinstance(side, Words):
        return not _DENIALS & {*side.text.split()}
    if isinstance(side, Collection):  # (x, y) = (1, 2)
        return bool(side.items) and all(isinstance(item, sympy.Symbol) for item in side.items)
    if not is_expression(side):
        return False
    if side.is_Symbol:
        return True
    if isinstance(side, sympy.core.function.AppliedUndef):
        return True
    return (
        not names_only
        and all(part.is_Symbol for part in side.args)
        and isinstance(side, sympy.Add | sympy.Mul)
    )


def is_equation(value: Value) -> bool:
    """Whether a value is a relation with an equals sign."""
    return isinstance(value, Relation) and "=" in value.operators


def without_names(items: tuple[Value, ...]) -> tuple[Value, ...]:
    """Values of x = 1, x = 2 or x_1 = 1, x_2 = 2; those of several names stay as they are."""
    names = {str(item.sides[0]).partition("_")[0] for item in items if is_equation(item)}
    if len(names) != 1:
        return items
    return tuple(
        _assigned(item, names_only=True) if isinstance(item, Relation) else item for item in items
    )
