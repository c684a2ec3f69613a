"""Operations on exact values that refuse enormous and undefined results."""

from __future__ import annotations

import sympy

from .values import Collection, TooLargeError, UnreadableError, Value

MOST_BITS = 200_000  # of a rational number
MOST_FACTORIAL = 5_000


def expression(value: Value) -> sympy.Expr:
    """A value that must be an expression."""
    if isinstance(value, Collection) and value.brackets == "[]" and len(value.items) == 1:
        value = value.items[0]  # [x + 1]^2
    if isinstance(value, sympy.Expr) and not isinstance(value, sympy.MatrixBase):
        return value
    raise UnreadableError("a number is expected, not a list, a set, a matrix or words")


def operand(value: Value) -> sympy.Expr:
    """A value that must be an expression or a matrix."""
    return value if isinstance(value, sympy.MatrixBase) else expression(value)


def checked(value: sympy.Expr) -> sympy.Expr:
    """A result that must be defined, and not enormous."""
    if isinstance(value, sympy.Rational) and (
        value.p.bit_length() > MOST_BITS or value.q.bit_length() > MOST_BITS
    ):
        raise TooLargeError(f"a number must have at most {MOST_BITS} bits")
    if value.has(sympy.nan, sympy.zoo):
        raise UnreadableError("it is not defined")
    return value


def power(base: sympy.Expr, exponent: sympy.Expr) -> sympy.Expr:
    """A power, unless its exact value were enormous."""
    if isinstance(base, sympy.MatrixBase):
        if not (exponent.is_Integer and -1 <= exponent <= 20):
            raise UnreadableError("a matrix's exponent must be a small whole number")
        return base**exponent
    if base.is_Rational and exponent.is_Rational and base not in (0, 1, -1):
        bits = max(base.p.bit_length(), base.q.bit_length())
        if bits * abs(exponent.p) > MOST_BITS * exponent.q:
            raise TooLargeError(f"a power must have at most {MOST_BITS} bits")
    elif exponent.is_number and not exponent.has(sympy.oo, -sympy.oo):
        if exponent.is_Rational and max(abs(exponent.p), exponent.q) > 10**6 and base.is_Add:
            raise TooLargeError("an exponent of a sum must be at most a million")
        if exponent.is_Integer and abs(exponent) > 10**12:
            raise TooLargeError("an exponent must be at most 10^12")
    return checked(base**exponent)


def factorial(value: sympy.Expr) -> sympy.Expr:
    """The factorial of a whole number or a symbol."""
    if value.is_number and not (value.is_Integer and value >= 0):
        raise UnreadableError("the factorial of a number that is not whole")
    if value.is_number and value > MOST_FACTORIAL:
        raise TooLargeError(f"a factorial must be of at most {MOST_FACTORIAL}")
    return sympy.factorial(value)


def binomial(top: sympy.Expr, bottom: sympy.Expr) -> sympy.Expr:
    """The binomial of whole numbers or symbols."""
    if any(part.is_number and not part.is_Integer for part in (top, bottom)):
        raise UnreadableError("a binomial of numbers that are not whole")
    if top.is_Integer and max(abs(top), abs(bottom) if bottom.is_Integer else 0) > MOST_FACTORIAL:
        raise TooLargeError(f"a binomial must be of at most {MOST_FACTORIAL}")
    return sympy.binomial(top, bottom)


def applied(name: str, values: list[sympy.Expr], base: sympy.Expr | None) -> sympy.Expr:
    """A function's value."""
    if name in ("gcd", "lcm", "max", "min"):
        if not values or not all(value.is_Rational for value in values):
            raise UnreadableError(f"{name} of values that are not numbers")
        if name in ("gcd", "lcm"):
            if not all(value.is_Integer for value in values):
                raise UnreadableError(f"{name} of numbers that are not whole")
            return (sympy.igcd if name == "gcd" else sympy.ilcm)(*values) * sympy.Integer(1)
        return (max if name == "max" else min)(values)
    if len(values) != 1:
        raise UnreadableError(f"{name} must have one argument")
    (value,) = values
    if name in ("ln", "log", "lg"):
        if name == "lg" or (name == "log" and base is None):
            base = sympy.Integer(10)
        logarithm = sympy.log(value)
        return checked(logarithm if base is None else logarithm / sympy.log(base))
    if base is not None:
        raise UnreadableError(f"{name} with a subscript")
    if name.startswith("arc"):
        name = "a" + name[3:]
    functions = {"abs": sympy.Abs, "ceil": sympy.ceiling, "floor": sympy.floor, "cis": _cis}
    function = functions.get(name) or getattr(sympy, name, None)
    if function is None or name == "det":
        raise UnreadableError(f"unknown function {name}")
    return checked(function(value))


def _cis(angle: sympy.Expr) -> sympy.Expr:
    """The point of the unit circle at an angle."""
    return sympy.cos(angle) + sympy.I * sympy.sin(angle)
