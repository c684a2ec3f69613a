"""When two values of answers are equal.

Expressions that can be neither proved equal nor told apart count as different, and a doubt is
noted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import sympy

from .names import is_equation, without_name, without_names
from .proofs import INFINITE, are_equal, points
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
    is_expression,
    symbol_of,
)

MOST_ITEMS = 64  # of a set or list without order


class Comparison:
    """A comparison of two answers.

    Attributes:
      doubts: pairs that could be neither proved equal nor told apart.
    """

    def __init__(self) -> None:
        self.doubts: list[str] = []

    def equal(self, gold: Value, given: Value) -> bool:
        """Whether two answers are equal; the names in `x = 5` need not be repeated."""
        gold, given = without_name(gold, given)
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
        if not is_expression(value):
            return self.equal(value, other)
        if not is_expression(other):
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
        if len(a) != len(b) or not all(map(is_expression, (*a, *b))):
            return False
        if any(part.is_zero for part in (*a, *b)) or _is_time(a) or _is_time(b):
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
        if any(map(is_equation, gold)) != any(map(is_equation, given)):
            gold, given = without_names(gold), without_names(given)
            if any(map(is_equation, (*gold, *given))):
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
        if not all(map(is_expression, (*sides, *others))):
            return False
        if _is_solved(gold) and not _is_solved(given):
            return False  # 2x = 10 may be the question
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
        if not symbols or symbols != b.free_symbols or a.has(*INFINITE) or b.has(*INFINITE):
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
        """Whether two expressions are proved equal wherever both have a value."""
        found = are_equal(a, b)
        if found is None:
            self.doubts.append("equal at points, but neither proved equal nor told apart")
        return bool(found)


def _is_solved(relation: Relation) -> bool:
    """Whether a relation compares a letter with a constant."""
    return any(
        isinstance(name, sympy.Symbol) and not value.free_symbols
        for name, value in (relation.sides, relation.sides[::-1])
    )


def _is_time(parts: tuple[sympy.Expr, ...]) -> bool:
    """Whether two parts that a ratio would cancel are hours and minutes: 12:30."""
    if len(parts) != 2 or not all(part.is_Integer for part in parts):
        return False
    hours, minutes = map(int, parts)
    return 0 <= hours <= 24 and 10 <= minutes < 60 and math.gcd(hours, minutes) > 1


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
