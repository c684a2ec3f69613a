"""Sets of real numbers: intervals, conditions on one symbol, and what joins them."""

from __future__ import annotations

import contextlib
import itertools

import sympy

from .values import Collection, Relation, SetOperation, UnreadableError, Value, is_expression

FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!=", "~": "~"}
MOST_LISTED = 64  # members of a set
_INEQUALITIES = frozenset({"<", ">", "<=", ">=", "!="})
_SETS = {
    "R": sympy.S.Reals,
    "Z": sympy.S.Integers,
    "N": sympy.S.Naturals,
    "Q": sympy.S.Rationals,
    "C": sympy.S.Complexes,
}


def real_set(value: Value) -> sympy.Set | None:
    """The set of real numbers of an interval, a condition on one symbol, ...; None for others."""
    with contextlib.suppress(TypeError, ValueError, NotImplementedError, AttributeError):
        if isinstance(value, Collection):
            return _set_of_collection(value)
        if isinstance(value, SetOperation):
            parts = [part for item in value.items if (part := real_set(item)) is not None]
            if len(parts) < len(value.items):
                return None
            if value.operator == "minus":
                return parts[0] - parts[1]
            join = sympy.Union if value.operator == "union" else sympy.Intersection
            return _listed(join(*parts))
        if isinstance(value, Relation):
            return _set_of_relation(value)
    return None


def unknowns(value: Value) -> set[sympy.Symbol]:
    """The symbols that conditions are on."""
    if isinstance(value, SetOperation):
        return set().union(*map(unknowns, value.items))
    if not isinstance(value, Relation) or value.operators[-1] == "in":
        return set()
    return {side for side in value.sides if isinstance(side, sympy.Symbol)}


def set_of(element: Value, condition: Value) -> Value:
    """The set {element | condition}; the element is a letter, perhaps with its domain: x \\in D."""
    domain: Value = None
    if isinstance(element, Relation) and element.operators == ("in",):
        element, domain = element.sides
    if not isinstance(element, sympy.Symbol) or element not in _letters_of(condition):
        raise UnreadableError("a set must be of values, or of a letter with a condition on it")
    if isinstance(condition, Relation) and condition.operators == ("=",):
        name, value = condition.sides
        if name != element:
            raise UnreadableError("a set's equation must be solved")
        condition = Collection("{}", (value,))
    if domain is None or domain == Collection("R", ()):
        return condition
    return SetOperation("intersection", (domain, condition))


def _letters_of(condition: Value) -> set[sympy.Symbol]:
    """The letters in the expressions of a condition."""
    if isinstance(condition, SetOperation):
        return set().union(*map(_letters_of, condition.items))
    if not isinstance(condition, Relation):
        return set()
    return set().union(*(side.free_symbols for side in condition.sides if is_expression(side)))


def _listed(value: sympy.Set) -> sympy.Set:
    """A short range of whole numbers as its members."""
    is_short = (
        isinstance(value, sympy.Range) and value.size.is_Integer and value.size <= MOST_LISTED
    )
    return sympy.FiniteSet(*value) if is_short else value


def _set_of_collection(value: Collection) -> sympy.Set | None:
    if value.brackets in _SETS:
        return _SETS[value.brackets]
    if value.brackets == "{}" and all(map(_is_real_constant, value.items)):
        return sympy.FiniteSet(*value.items)
    if value.brackets not in ("()", "[]", "(]", "[)") or len(value.items) != 2:
        return None
    low, high = value.items
    if not (_is_real_constant(low) and _is_real_constant(high) and low < high):
        return None
    return sympy.Interval(low, high, value.brackets[0] == "(", value.brackets[1] == ")")


def _set_of_relation(value: Relation) -> sympy.Set | None:
    sides, operators = value.sides, value.operators
    if operators == ("in",) and isinstance(sides[0], sympy.Symbol):
        return real_set(sides[1])
    if not {*operators} <= _INEQUALITIES:
        return None
    places = [i for i, side in enumerate(sides) if isinstance(side, sympy.Symbol)]
    if len(places) != 1 or not all(
        _is_real_constant(side) for i, side in enumerate(sides) if i != places[0]
    ):
        return None
    sets = []
    for (left, right), operator in zip(itertools.pairwise(sides), operators, strict=True):
        if right is sides[places[0]]:
            left, right, operator = right, left, FLIPPED[operator]
        if left is not sides[places[0]]:
            return None
        sets.append(_half_line(operator, right))
    return sympy.Intersection(*sets)


def _half_line(operator: str, end: sympy.Expr) -> sympy.Set:
    if operator == "!=":
        return sympy.S.Reals - sympy.FiniteSet(end)
    if operator in ("<", "<="):
        return sympy.Interval(-sympy.oo, end, True, operator == "<")
    return sympy.Interval(end, sympy.oo, operator == ">", True)


def _is_real_constant(value: Value) -> bool:
    return isinstance(value, sympy.Expr) and bool(value.is_extended_real) and not value.free_symbols
