"""When two values of answers are equal.

Expressions: equal rational numbers are compared; other expressions are first refuted at points
(an error bound, not digits, says that a difference is not zero), then proved equal by rewriting
their difference to zero. Where neither succeeds they count as different, and a doubt is noted:
agreement of digits proves nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Callable, Iterator

import sympy

from .values import (
    DEGREE,
    Collection,
    Numeral,
    Quantity,
    Ratio,
    Relation,
    SetOperation,
    Value,
    Words,
    symbol_of,
)

POINTS = 6
PRECISION, MOST_PRECISION = 20, 400  # digits
MOST_ITEMS = 64  # of a set or list without order
_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!=", "~": "~"}
_INFINITE = (sympy.oo, -sympy.oo, sympy.zoo, sympy.nan)
_INEQUALITIES = frozenset({"<", ">", "<=", ">=", "!="})
_SETS = {
    "R": sympy.S.Reals,
    "Z": sympy.S.Integers,
    "N": sympy.S.Naturals,
    "Q": sympy.S.Rationals,
    "C": sympy.S.Complexes,
}


class Comparison:
    """A comparison of two answers.

    Attributes:
      doubts: pairs that could be neither proved equal nor told apart.
    """

    def __init__(self) -> None:
        self.doubts: list[str] = []

    def equal(self, gold: Value, given: Value) -> bool:
        """Whether two answers are equal; the names in `x = 5` need not be repeated."""
        gold, given = _without_name(gold, given)
        if isinstance(gold, Quantity) or isinstance(given, Quantity):
            return self._same_quantity(gold, given)
        if isinstance(gold, Relation) and isinstance(given, Relation):
            return self._same_relation(gold, given) or self._same_set(gold, given)
        if isinstance(gold, Ratio) or isinstance(given, Ratio):
            return self._same_ratio(gold, given)
        if isinstance(gold, sympy.MatrixBase) or isinstance(given, sympy.MatrixBase):
            return (
                isinstance(gold, sympy.MatrixBase)
                and isinstance(given, sympy.MatrixBase)
                and gold.shape == given.shape
                and all(map(self.same, gold, given))
            )
        if isinstance(gold, Collection) and isinstance(given, Collection):
            return self._same_collection(gold, given) or self._same_set(gold, given)
        if isinstance(gold, Relation | SetOperation) or isinstance(given, Relation | SetOperation):
            return self._same_operation(gold, given) or self._same_set(gold, given)
        if isinstance(gold, Words | Numeral) or isinstance(given, Words | Numeral):
            return gold == given
        if isinstance(gold, Collection) or isinstance(given, Collection):
            return False
        return self.same(gold, given)

    # Units, ratios.

    def _same_quantity(self, gold: Value, given: Value) -> bool:
        if isinstance(gold, Quantity) and isinstance(given, Quantity):
            return gold.unit == given.unit and self.equal(gold.value, given.value)
        with_unit, other = (gold, given) if isinstance(gold, Quantity) else (given, gold)
        assert isinstance(with_unit, Quantity)
        value = with_unit.value
        if isinstance(value, Ratio | Numeral):
            return self.equal(value, other)
        if not isinstance(value, sympy.Expr) or not isinstance(other, sympy.Expr):
            return False
        if other.has(DEGREE) and not value.has(DEGREE):
            in_radians = other.subs(DEGREE, sympy.pi / 180)
            return with_unit.unit == (("radian", 1),) and self.same(value, in_radians)
        if self.same(value, other):
            return True
        if with_unit.unit == (("%", 1),):
            return self.same(value / 100, other)
        if all(len(name) == 1 and name.isalpha() for name, _ in with_unit.unit):  # 5 m, 5\text{ m}
            symbols = [symbol_of(name) ** power for name, power in with_unit.unit]
            return sympy.Mul(value, *symbols) == other
        return False

    def _same_ratio(self, gold: Value, given: Value) -> bool:
        a, b = (
            value.parts if isinstance(value, Ratio) else (value, sympy.Integer(1))
            for value in (gold, given)
        )
        if len(a) != len(b) or not all(isinstance(part, sympy.Expr) for part in (*a, *b)):
            return False
        if any(part.is_zero for part in (*a, *b)):
            return gold == given
        return all(self.same(x * b[0], y * a[0]) for x, y in zip(a, b, strict=True))

    # Lists and sets.

    def _same_collection(self, gold: Collection, given: Collection) -> bool:
        kinds = {gold.brackets, given.brackets}
        if kinds <= {",", "{}"}:
            return self._same_items(gold.items, given.items, is_set=kinds == {"{}"})
        if len(kinds) > 1 or len(gold.items) != len(given.items):
            return False
        return all(map(self.equal, gold.items, given.items))

    def _same_items(
        self, gold: tuple[Value, ...], given: tuple[Value, ...], *, is_set: bool
    ) -> bool:
        """Whether values are the same in any order; of a set, however often each is written."""
        if max(len(gold), len(given)) > MOST_ITEMS:
            return gold == given
        gold, given = _without_names(gold), _without_names(given)
        if any(_is_equation(value) for value in gold) != any(
            _is_equation(value) for value in given
        ):
            return False  # which of 2, 3 is x is not said
        if is_set:
            return all(
                any(self.equal(x, y) for y in others)
                for values, others in ((gold, given), (given, gold))
                for x in values
            )
        if len(gold) != len(given):
            return False
        left = list(given)
        for value in gold:
            match = next((i for i, other in enumerate(left) if self.equal(value, other)), None)
            if match is None:
                return False
            del left[match]
        return True

    def _same_operation(self, gold: Value, given: Value) -> bool:
        """Whether both join the same sets by the same operator."""
        if not isinstance(gold, SetOperation) or not isinstance(given, SetOperation):
            return False
        if gold.operator != given.operator:
            return False
        if gold.operator == "minus":
            return all(map(self.equal, gold.items, given.items))
        a, b = (tuple(_flat(value, gold.operator)) for value in (gold, given))
        return self._same_items(a, b, is_set=True)

    def _same_set(self, gold: Value, given: Value) -> bool:
        """Whether both are the same set of real numbers: 2 < x <= 3 and (2, 3]."""
        a, b = _real_set(gold), _real_set(given)
        if a is None or b is None or len(_unknowns(gold) | _unknowns(given)) > 1:
            return False
        if isinstance(gold, Collection) and isinstance(given, Collection):
            return "R" in (gold.brackets, given.brackets) and bool(a == b)
        return bool(a == b)

    # Relations.

    def _same_relation(self, gold: Relation, given: Relation) -> bool:
        for other in (given, _reversed(given)):
            if other.operators == gold.operators and all(map(self.equal, gold.sides, other.sides)):
                return True
        if len(gold.operators) > 1 or len(given.operators) > 1:
            return False
        (sides, (operator,)), (others, (other_operator,)) = (
            (relation.sides, relation.operators) for relation in (gold, given)
        )
        if not all(isinstance(side, sympy.Expr) for side in (*sides, *others)):
            return False
        factor = self._factor(sides[0] - sides[1], others[0] - others[1])
        if factor is None:
            return False
        if operator in ("=", "!="):
            return operator == other_operator
        if not factor.is_real:
            return False
        return other_operator == (operator if factor > 0 else _FLIPPED.get(operator))

    def _factor(self, a: sympy.Expr, b: sympy.Expr) -> sympy.Expr | None:
        """The constant, not zero, by which two expressions differ."""
        symbols = a.free_symbols
        if not symbols or symbols != b.free_symbols or a.has(*_INFINITE) or b.has(*_INFINITE):
            return None
        for point in _points(symbols):
            top, bottom = a.subs(point), b.subs(point)
            if not bottom.is_zero and not top.is_zero:
                factor = sympy.nsimplify(top / bottom) if (top / bottom).is_Rational else None
                if factor is None:
                    factor = sympy.radsimp(sympy.cancel(sympy.together(a / b)))
                if factor.free_symbols or not factor.is_number:
                    return None
                return factor if self.same(a, factor * b) else None
        return None

    # Expressions.

    def same(self, a: sympy.Expr, b: sympy.Expr) -> bool:
        """Whether two expressions are equal wherever both have a value."""
        if a == b:
            return True
        if a.has(*_INFINITE) or b.has(*_INFINITE):
            return False
        if a.has(DEGREE) != b.has(DEGREE):  # an angle in degrees: in radians, or its number
            in_degrees, other = (a, b) if a.has(DEGREE) else (b, a)
            return any(
                self.same(in_degrees.subs(DEGREE, unit), other)
                for unit in (sympy.pi / 180, sympy.Integer(1))
            )
        if a.is_Rational and b.is_Rational:
            return False
        difference = a - b
        if difference == 0:
            return True
        if _is_refuted(a, b, difference):
            return False
        if any(_is_zero(prove, difference) for prove in _PROOFS):
            return True
        self.doubts.append("equal at points, but neither proved equal nor told apart")
        return False


def _is_refuted(a: sympy.Expr, b: sympy.Expr, difference: sympy.Expr) -> bool:
    """Whether two expressions certainly differ at a point at which both are real."""
    symbols = a.free_symbols | b.free_symbols
    if not symbols:
        return _is_not_zero(difference)
    is_complex = difference.has(sympy.I)
    for point in _points(symbols):
        with contextlib.suppress(TypeError, ValueError, ZeroDivisionError):
            if not is_complex and not all(_is_real(side.subs(point)) for side in (a, b)):
                continue
            if _is_not_zero(difference.subs(point)):
                return True
    return False


def _points(symbols: set[sympy.Symbol]) -> Iterator[dict[sympy.Symbol, sympy.Rational]]:
    """Values of both signs, the same in every process; positive ones first."""
    chosen = random.Random(0)
    names = sorted(symbols, key=lambda symbol: symbol.name)
    for number in range(POINTS):
        point = {}
        for symbol in names:
            value = sympy.Rational(chosen.randint(20, 400), 1 if symbol.is_integer else 101)
            negative = number % 2 and not symbol.is_positive and chosen.random() < 0.7
            point[symbol] = -value if negative else value
        yield point


def _is_real(value: sympy.Expr) -> bool:
    number = value.evalf(PRECISION, maxn=MOST_PRECISION)
    return bool(number.is_finite) and bool(number.is_real)


def _is_not_zero(value: sympy.Expr) -> bool:
    """Whether a constant is not zero for certain."""
    if value.is_Rational:
        return value != 0
    number = value.evalf(PRECISION, maxn=MOST_PRECISION)
    parts = number.as_real_imag() if number.is_number else ()
    return any(part.is_Float and part._prec > 1 and part != 0 for part in parts)


def _is_zero(rewrite: Callable[[sympy.Expr], sympy.Expr], difference: sympy.Expr) -> bool:
    try:
        return bool(rewrite(difference) == 0)
    except MemoryError:
        raise
    except Exception:  # sympy raises errors of many kinds where a rewriting does not apply
        return False


def _minimal_polynomial(difference: sympy.Expr) -> sympy.Expr:
    """Zero if the constant is algebraic and zero."""
    if difference.free_symbols:
        return difference
    x = sympy.Dummy("x")
    return sympy.minimal_polynomial(difference, x) - x


def _logarithms(difference: sympy.Expr) -> sympy.Expr:
    return sympy.simplify(sympy.expand_log(difference, force=True))


_PROOFS: tuple[Callable[[sympy.Expr], sympy.Expr], ...] = (
    sympy.expand,
    lambda difference: sympy.expand(sympy.together(difference).as_numer_denom()[0]),
    lambda difference: sympy.cancel(sympy.together(difference)),
    lambda difference: sympy.expand(sympy.radsimp(difference)),
    lambda difference: sympy.expand(sympy.sqrtdenest(difference)),
    sympy.trigsimp,
    lambda difference: sympy.gammasimp(sympy.expand_func(difference)),
    _minimal_polynomial,
    sympy.simplify,
    _logarithms,
    lambda difference: sympy.simplify(difference.rewrite(sympy.exp)),
)


def _without_name(gold: Value, given: Value) -> tuple[Value, Value]:
    """Both, without the name in `x = 5` if only one has it."""
    if isinstance(gold, Relation) and isinstance(given, Relation):
        if {*gold.operators} == {*given.operators} == {"="}:
            return gold, given
        return _unapproximated(gold), _unapproximated(given)
    if isinstance(gold, Relation):
        gold = _assigned(gold, names_only=True)
    elif isinstance(given, Relation):
        given = _assigned(given, names_only=False)
    return gold, given


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
    if not {*operators} <= {"=", "~", "in"}:
        return relation
    if operators == ("=",) and _is_name(sides[1], True) and not _is_name(sides[0], True):
        return sides[0]
    if _is_name(sides[0], names_only) and len(sides) > 1:
        sides = sides[1:]
    first = sides[0]
    is_chain = all(
        isinstance(side, sympy.Expr)
        and isinstance(first, sympy.Expr)
        and Comparison().same(first, side)
        for side in sides[1:]
    )
    return sides[-1] if is_chain and not _has_symbols(relation, sides) else relation


def _has_symbols(relation: Relation, sides: tuple[Value, ...]) -> bool:
    """Whether nothing was taken away, and the sides are more than numbers."""
    return sides is relation.sides and any(
        not isinstance(side, sympy.Expr) or side.free_symbols for side in sides
    )


def _is_name(side: Value, names_only: bool) -> bool:
    if isinstance(side, Words):
        return True
    if isinstance(side, Collection):  # (x, y) = (1, 2)
        return all(isinstance(item, sympy.Symbol) for item in side.items)
    if not isinstance(side, sympy.Expr):
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


def _is_equation(value: Value) -> bool:
    return isinstance(value, Relation) and "=" in value.operators


def _without_names(items: tuple[Value, ...]) -> tuple[Value, ...]:
    """Values of x = 1, x = 2: of the same name; others stay as they are."""
    names = {
        item.sides[0] for item in items if isinstance(item, Relation) and "=" in item.operators
    }
    if len(names) != 1:
        return items
    return tuple(
        _assigned(item, names_only=True) if isinstance(item, Relation) else item for item in items
    )


def _flat(value: Value, operator: str) -> Iterator[Value]:
    if isinstance(value, SetOperation) and value.operator == operator:
        for item in value.items:
            yield from _flat(item, operator)
    else:
        yield value


def _reversed(relation: Relation) -> Relation:
    """The same relation from right to left."""
    operators = tuple(_FLIPPED.get(operator, operator) for operator in reversed(relation.operators))
    return Relation(tuple(reversed(relation.sides)), operators)


def _real_set(value: Value) -> sympy.Set | None:
    """The set of real numbers of an interval, a condition on one symbol, ...; None for others."""
    with contextlib.suppress(TypeError, ValueError, NotImplementedError, AttributeError):
        if isinstance(value, Collection):
            return _set_of_collection(value)
        if isinstance(value, SetOperation):
            parts = [part for item in value.items if (part := _real_set(item)) is not None]
            if len(parts) < len(value.items):
                return None
            if value.operator == "minus":
                return parts[0] - parts[1]
            join = sympy.Union if value.operator == "union" else sympy.Intersection
            return join(*parts)
        if isinstance(value, Relation):
            return _set_of_relation(value)
    return None


def _unknowns(value: Value) -> set[sympy.Symbol]:
    """The symbols that conditions are on."""
    if isinstance(value, SetOperation):
        return set().union(*map(_unknowns, value.items))
    if not isinstance(value, Relation) or value.operators[-1] == "in":
        return set()
    return {side for side in value.sides if isinstance(side, sympy.Symbol)}


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
    if operators[-1] == "in" and len(sides) == 2:
        return _real_set(sides[1])
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
            left, right, operator = right, left, _FLIPPED[operator]
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
