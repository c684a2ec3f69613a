"""When two values of answers are equal.

Expressions that can be neither proved equal nor told apart count as different, and a doubt is
noted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import sympy

from .proofs import is_proved_zero, is_refuted, points
from .sets import FLIPPED, real_set, unknowns
from .units import may_be_missing
from .values import (
    DEGREE,
    Collection,
    Numeral,
    Quantity,
    Ratio,
    Relation,
    Residue,
    SetOperation,
    Value,
    Words,
    symbol_of,
)

MOST_ITEMS = 64  # of a set or list without order
_INFINITE = (sympy.oo, -sympy.oo, sympy.zoo, sympy.nan)


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
        if isinstance(gold, Residue) or isinstance(given, Residue):
            return self._same_residue(gold, given)
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
        if not _is_expression(value):
            return self.equal(value, other)
        if not _is_expression(other):
            return False
        if other.has(DEGREE) and not value.has(DEGREE):
            in_radians = other.subs(DEGREE, sympy.pi / 180)
            return with_unit.unit == (("radian", 1),) and self.same(value, in_radians)
        if self.same(value, other):
            return all(may_be_missing(name) for name, _ in with_unit.unit)
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
        if len(a) != len(b) or not all(map(_is_expression, (*a, *b))):
            return False
        if any(part.is_zero for part in (*a, *b)):
            return gold == given
        return all(self.same(x * b[0], y * a[0]) for x, y in zip(a, b, strict=True))

    def _same_residue(self, gold: Value, given: Value) -> bool:
        """Whether both are modulo the same, by which they differ a whole number of times."""
        if not (isinstance(gold, Residue) and isinstance(given, Residue)):
            return False
        if not self.same(gold.modulus, given.modulus):
            return False
        if gold.modulus.is_zero:
            return self.same(gold.value, given.value)
        times = sympy.expand((gold.value - given.value) / gold.modulus)
        return bool(times.is_Integer) or self.same(gold.value, given.value)

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
        if any(map(_is_equation, gold)) != any(map(_is_equation, given)):
            gold, given = _without_names(gold), _without_names(given)
            if any(map(_is_equation, (*gold, *given))):
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
        a, b = real_set(gold), real_set(given)
        if a is None or b is None or len(unknowns(gold) | unknowns(given)) > 1:
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
        if not all(map(_is_expression, (*sides, *others))):
            return False
        factor = self._factor(sides[0] - sides[1], others[0] - others[1])
        if factor is None:
            return False
        if operator in ("=", "!="):
            return operator == other_operator
        if not factor.is_real:
            return False
        return other_operator == (operator if factor > 0 else FLIPPED.get(operator))

    def _factor(self, a: sympy.Expr, b: sympy.Expr) -> sympy.Expr | None:
        """The constant, not zero, by which two expressions differ."""
        symbols = a.free_symbols
        if not symbols or symbols != b.free_symbols or a.has(*_INFINITE) or b.has(*_INFINITE):
            return None
        for point in points(symbols):
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
        if is_refuted(a, b, difference):
            return False
        if is_proved_zero(difference):
            return True
        self.doubts.append("equal at points, but neither proved equal nor told apart")
        return False


def _is_expression(value: Value) -> bool:
    return isinstance(value, sympy.Expr) and not isinstance(value, sympy.MatrixBase)


def _without_name(gold: Value, given: Value) -> tuple[Value, Value]:
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
        _is_equation(item) and len(item.sides) == 2 and _is_letter(item.sides[0])
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
    if _is_name(sides[0], names_only) and len(sides) > 1:
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
        all(map(_is_expression, sides))
        and all(Comparison().same(sides[0], side) for side in sides[1:])
    )


def _has_symbols(relation: Relation, sides: tuple[Value, ...]) -> bool:
    """Whether nothing was taken away, and the sides are more than numbers."""
    return sides is relation.sides and any(
        not _is_expression(side) or side.free_symbols for side in sides
    )


def _is_name(side: Value, names_only: bool) -> bool:
    if isinstance(side, Words):
        return True
    if isinstance(side, Collection):  # (x, y) = (1, 2)
        return bool(side.items) and all(isinstance(item, sympy.Symbol) for item in side.items)
    if not _is_expression(side):
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
    """Values of x = 1, x = 2 or x_1 = 1, x_2 = 2; those of several names stay as they are."""
    names = {str(item.sides[0]).partition("_")[0] for item in items if _is_equation(item)}
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
    operators = tuple(FLIPPED.get(operator, operator) for operator in reversed(relation.operators))
    return Relation(tuple(reversed(relation.sides)), operators)
