"""Whether two expressions are equal: refutation at points, and proof by rewriting.

A difference is not zero if its value at a point is beyond that value's error bound; it is zero if a
rewriting of sympy's makes it 0. Agreement of digits proves nothing.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator

import sympy
from sympy.core.evalf import PrecisionExhausted

from .values import DEGREE

INFINITE = (sympy.oo, -sympy.oo, sympy.zoo, sympy.nan)
POINTS = 6
PRECISION, MOST_PRECISION = 20, 400  # digits


def are_equal(a: sympy.Expr, b: sympy.Expr) -> bool | None:
    """Whether two expressions are equal wherever both have a value; None: neither is proved."""
    if a == b:
        return True
    if a.has(*INFINITE) or b.has(*INFINITE):
        return False
    if a.has(DEGREE) != b.has(DEGREE):  # an angle in degrees: in radians, or its number
        in_degrees, other = (a, b) if a.has(DEGREE) else (b, a)
        is_angle = not sympy.expand(in_degrees / DEGREE).has(DEGREE)
        units = (sympy.pi / 180, sympy.Integer(1)) if is_angle else (sympy.pi / 180,)
        found = [are_equal(in_degrees.subs(DEGREE, unit), other) for unit in units]
        return True if True in found else None if None in found else False
    if a.is_Rational and b.is_Rational:
        return False
    difference = a - b
    if difference == 0:
        return True
    if is_refuted(a, b, difference):
        return False
    return True if is_proved_zero(difference) else None


def is_refuted(a: sympy.Expr, b: sympy.Expr, difference: sympy.Expr) -> bool:
    """Whether two expressions certainly differ at a point at which both are real."""
    symbols = a.free_symbols | b.free_symbols
    if not symbols:
        return _is_not_zero(difference)
    is_complex = difference.has(sympy.I)
    for point in points(symbols):
        with contextlib.suppress(TypeError, ValueError, ArithmeticError):
            if not is_complex and not all(_is_real(side.subs(point)) for side in (a, b)):
                continue
            if _is_not_zero(difference.subs(point)):
                return True
    return False


def is_proved_zero(difference: sympy.Expr) -> bool:
    """Whether a rewriting shows that an expression is zero."""
    return any(_is_zero(rewrite, difference) for rewrite in _PROOFS)


def points(symbols: set[sympy.Symbol]) -> Iterator[dict[sympy.Symbol, sympy.Rational]]:
    """Values of both signs, some below 1, the same in every process; positive ones first."""
    chosen = random.Random(0)
    names = sorted(symbols, key=lambda symbol: symbol.name)
    for number in range(POINTS):
        point = {}
        for symbol in names:
            size = chosen.randint(20, 400)
            value = sympy.Rational(size, 1 if symbol.is_integer else 101 if number % 3 else 503)
            is_signed = not (symbol.is_positive or symbol.is_integer)
            negative = number % 2 and is_signed and chosen.random() < 0.7
            point[symbol] = -value if negative else value
        yield point


def _is_real(value: sympy.Expr) -> bool:
    number = value.evalf(PRECISION, maxn=MOST_PRECISION)
    return bool(number.is_finite) and bool(number.is_real)


def _is_not_zero(value: sympy.Expr) -> bool:
    """Whether a constant is not zero for certain."""
    if value.is_Rational:
        return value != 0
    try:
        number = value.evalf(PRECISION, maxn=MOST_PRECISION)
    except PrecisionExhausted:  # of the floor of an enormous number
        return False
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


def _angles(difference: sympy.Expr) -> sympy.Expr:
    """Zero if a sum of angles, such as arctan 1/2 + arctan 1/3 - pi/4, is a multiple of 2 pi.

    It is then zero itself, as all its digits are.
    """
    if difference.free_symbols:
        return difference
    terms = difference.as_coefficients_dict()
    n = sympy.ilcm(1, *(coefficient.q for coefficient in terms.values()))
    turn = sympy.exp(sympy.I * sympy.pi * n * terms.pop(sympy.pi, 0))
    for angle, coefficient in terms.items():
        turn *= _DIRECTIONS[type(angle)](angle.args[0]) ** (n * coefficient)
    return _minimal_polynomial(sympy.radsimp(sympy.expand(turn - 1)))


def _logarithms(difference: sympy.Expr) -> sympy.Expr:
    return sympy.simplify(sympy.expand_log(difference, force=True))


_DIRECTIONS: dict[type, Callable[[sympy.Expr], sympy.Expr]] = {  # e^(i angle)
    sympy.asin: lambda sine: sympy.sqrt(1 - sine**2) + sympy.I * sine,
    sympy.acos: lambda cosine: cosine + sympy.I * sympy.sqrt(1 - cosine**2),
    sympy.atan: lambda slope: (1 + sympy.I * slope) / sympy.sqrt(1 + slope**2),
}
_PROOFS: tuple[Callable[[sympy.Expr], sympy.Expr], ...] = (
    sympy.expand,
    lambda difference: sympy.expand(sympy.together(difference).as_numer_denom()[0]),
    lambda difference: sympy.cancel(sympy.together(difference)),
    lambda difference: sympy.expand(sympy.radsimp(difference)),
    lambda difference: sympy.expand(sympy.sqrtdenest(difference)),
    sympy.trigsimp,
    lambda difference: sympy.gammasimp(sympy.expand_func(difference)),
    _minimal_polynomial,
    _angles,
    lambda difference: difference.replace(sympy.acos, lambda x: sympy.pi / 2 - sympy.asin(x)),
    sympy.simplify,
    _logarithms,
    lambda difference: sympy.simplify(difference.rewrite(sympy.exp)),
)
