"""Tokens -> an expression; commands are left to `commands`, brackets to `reader`."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

import sympy

from .arithmetic import checked, expression, factorial, operand, power
from .notation import Token
from .values import (
    DEGREE,
    NUMBER_SETS,
    Collection,
    UnreadableError,
    Value,
    symbol_of,
    words_of,
)

MOST_DEPTH = 60
RELATIONS = ("=", "<", ">", "<=", ">=", "!=", "~", "in", "equiv")
SETS = {"cup": "union", "cap": "intersection", "setminus": "minus", "backslash": "minus"}
_NO_FACTORS = words_of("pm mp end circ mid rangle langle rfloor rceil choose over ldots pmod")
_NO_FACTORS |= {*RELATIONS, *SETS}
_PLAIN_FRACTION = re.compile(r"frac(?:\{[0-9]+\}|[0-9])\s*(?:\{[0-9]+\}|[0-9])")


class ExpressionReader:
    """Recursive descent; `sign` is the sign that plus-minus has in this pass."""

    def __init__(self, tokens: list[Token]):
        self.tokens, self.position = tokens, 0
        self.sign, self.met_sign = 1, False
        self.depth = 0
        self.in_bars = self.in_set = False
        self.raised_to = -1  # where the last exponent ends
        self.has_operation = False  # on this side of a relation, so far

    @property
    def next(self) -> Token | None:
        return self.tokens[self.position] if self.position < len(self.tokens) else None

    def at(self, *texts: str) -> bool:
        """Whether the next token is one of these symbols or names."""
        token = self.next
        return token is not None and token.kind in ("symbol", "name") and token.text in texts

    def take(self) -> Token:
        token = self.next
        if token is None:
            raise UnreadableError("it ends too soon")
        self.position += 1
        return token

    def expect(self, text: str) -> None:
        if not self.at(text):
            got = "its end" if self.next is None else repr(self.next.text)
            raise UnreadableError(f"expected {text!r}, got {got}")
        self.position += 1

    def nested(self, read: Callable[[], Value]) -> Value:
        """The value of a part in brackets of its own."""
        if self.depth >= MOST_DEPTH:
            raise UnreadableError(f"more than {MOST_DEPTH} brackets in each other")
        outer = (self.in_bars, self.has_operation)
        self.in_bars = False
        self.depth += 1
        value = read()
        self.depth -= 1
        self.in_bars, self.has_operation = outer
        return value

    def sum(self) -> Value:
        value = self.product()
        while self.at("+", "-", "pm", "mp") and not is_set(value):
            sign = self.sign_of(self.take().text)
            self.has_operation = True
            value = checked(operand(value) + sign * operand(self.product()))
        return value

    def sign_of(self, text: str) -> int:
        if text in ("pm", "mp"):
            self.met_sign = True
            return self.sign if text == "pm" else -self.sign
        return 1 if text == "+" else -1

    def product(self) -> Value:
        sign = self.sign_of(self.take().text) if self.at("+", "-", "pm", "mp") else 1
        value = self.factors()
        if sign < 0:
            value = -1 * operand(value)
        while self.at("*", "/"):
            operator = self.take().text
            self.has_operation = True
            minus = -1 if self.at("-") else 1
            if minus < 0:
                self.position += 1
            factor = minus * operand(self.factors())
            if operator == "*":
                value = checked(operand(value) * factor)
            else:
                value = checked(operand(value) * power(expression(factor), sympy.Integer(-1)))
        return value

    def factors(self) -> Value:
        """Factors without signs between them."""
        mixed = self.mixed_number()
        value = self.power() if mixed is None else self.raised(mixed)
        while self.is_factor():
            value = checked(operand(value) * operand(self.power()))
        return value

    def is_factor(self) -> bool:
        token = self.next
        if token is None:
            return False
        if token.kind == "number":  # 2^n 3, x 3^n and 2!3!, but not x 3
            before = self.tokens[self.position - 1].kind
            is_apart = before != "number" and (before != "letter" or token.is_spaced)
            is_raised = self.raised_to == self.position or self.is_raised(self.position + 1)
            return is_raised and is_apart
        if token.kind == "letter":
            return True
        if token.kind == "word":
            return False
        if token.text == "|":
            return not self.in_bars and not self.in_set
        if token.kind == "name":
            return token.text not in _NO_FACTORS
        return token.text in ("(", "{", "[", r"\{")

    def mixed_number(self) -> sympy.Expr | None:
        """2\\frac{1}{2}, 2 1/2, and 1/2 as a number; None for anything else."""
        ahead = self.tokens[self.position : self.position + 8]
        whole_number = whole(ahead[0]) if ahead else None
        if whole_number is None:
            return None
        texts = [token.text for token in ahead[1:]]
        if _PLAIN_FRACTION.match("".join(texts)):
            start, self.position = self.position, self.position + 1
            fraction = expression(self.primary())
            if 0 < fraction < 1 and not self.is_raised(self.position):
                return whole_number + fraction
            self.position = start
            return None
        if len(texts) >= 3 and texts[1] == "/" and ahead[1].is_spaced:
            top, bottom = whole(ahead[1]), whole(ahead[3])
            if top and bottom and top < bottom and not self.is_raised(self.position + 4):
                self.position += 4
                return whole_number + sympy.Rational(top, bottom)
        is_fraction = len(texts) >= 2 and texts[0] == "/" and whole(ahead[2])
        if is_fraction and not self.is_raised(self.position + 3):
            self.position += 3
            return sympy.Rational(whole_number, whole(ahead[2]))
        return None

    def is_raised(self, position: int) -> bool:
        """Whether an exponent, a factorial or a base follows, and not the sign of degrees."""
        texts = [token.text for token in self.tokens[position : position + 3]]
        return texts[:1] in (["!"], ["_"]) or (texts[:1] == ["^"] and "circ" not in texts)

    def power(self) -> Value:
        return self.raised(self.primary())

    def raised(self, value: Value) -> Value:
        """A value with the exponents and signs that follow it."""
        value = self.postfix(value)
        if self.at("^"):
            self.position += 1
            if self.is_degree():
                return self.postfix(expression(value) * DEGREE)
            value = power(operand(value), expression(self.argument(is_exponent=True)))
            value = self.postfix(value)
            self.raised_to = self.position
        return value

    def is_degree(self) -> bool:
        """Takes the circle of a degree, if it is next."""
        texts = [token.text for token in self.tokens[self.position : self.position + 3]]
        for circle in (["circ"], ["{", "circ", "}"]):
            if texts[: len(circle)] == circle:
                self.position += len(circle)
                return True
        return False

    def postfix(self, value: Value) -> Value:
        while True:
            if self.at("!"):
                self.position += 1
                if self.at("!"):
                    raise UnreadableError("a double factorial")
                value = factorial(expression(value))
            elif self.at("circ"):
                self.position += 1
                if self.next is not None and self.next.kind in ("number", "letter"):
                    raise UnreadableError("a composition")  # f \circ g
                value = expression(value) * DEGREE
            elif self.at("%") and self.is_part_of_expression():
                self.position += 1
                value = expression(value) / 100
            else:
                return value

    def is_part_of_expression(self) -> bool:
        """Whether the percent sign is inside an expression; else it is the unit of all of it."""
        following = self.tokens[self.position + 1 : self.position + 2]
        is_end = not following or following[0].kind == "separator"
        is_end = is_end or following[0].text in (",", ";", ")", "]", r"\}", "}", *RELATIONS)
        return self.has_operation or not is_end

    def argument(self, *, is_exponent: bool = False) -> Value:
        """A group in braces, or a single token; of \\frac12, a single digit."""
        if self.at("{"):
            return self.group()
        if is_exponent and self.at("+", "-"):
            return self.sign_of(self.take().text) * operand(self.primary())
        if is_exponent and self.at("("):
            return self.primary()
        token = self.next
        if token is not None and token.text.isdigit() and len(token.text) > 1 and not is_exponent:
            rest = token._replace(text=token.text[1:], value=Fraction(token.text[1:]))
            first = token._replace(text=token.text[0], value=Fraction(token.text[0]))
            self.tokens[self.position : self.position + 1] = [first, rest]
        return self.primary()

    def primary(self) -> Value:
        token = self.take()
        if token.kind == "number":
            return self.number(token)
        if token.kind == "letter" or (token.kind == "word" and len(token.text) == 1):
            return self.symbol(token.text)
        if token.kind == "symbol":
            return self.bracket(token)
        if token.kind == "name":
            return self.named(token.text)
        raise UnreadableError(f"unexpected {token.text!r}")

    def number(self, token: Token) -> Value:
        assert token.value is not None
        value = sympy.Rational(token.value.numerator, token.value.denominator)
        if self.at("_"):
            self.position += 1
            return self.in_base(value, digits=token.text)
        return value

    def symbol(self, letter: str) -> Value:
        name = letter
        if self.at("_"):
            self.position += 1
            name += "_" + self.subscript()
        elif letter == "e":
            return sympy.E
        elif letter == "i":
            return sympy.I
        texts = [token.text for token in self.tokens[self.position : self.position + 6]]
        if letter in "fgh" and texts == [*"^{-1}("]:  # an inverse function, no power
            self.position += 5
            name += "^-1"
        if self.at("(") and (letter in "fgh" or self.is_applied(letter)):
            arguments = self.primary()
            items = arguments.items if isinstance(arguments, Collection) else (arguments,)
            return sympy.Function(name)(*map(expression, items))
        return symbol_of(name)

    def is_applied(self, letter: str) -> bool:
        """Whether a letter is a function's in front of the argument that follows: P(x)."""
        ahead = self.tokens[self.position : self.position + 3]
        return (
            letter in "FGHPQTpq"
            and [token.kind for token in ahead[1:2]] == ["letter"]
            and ([token.text for token in ahead[2:]] == [")"])
        )

    def subscript(self) -> str:
        """The text of a subscript."""
        if not self.at("{"):
            return self.take().text
        self.position += 1
        texts = []
        while not self.at("}"):
            if self.at("{"):
                raise UnreadableError("a subscript with a group")
            texts.append(self.take().text)
        self.position += 1
        return " ".join(texts)

    def bracket(self, token: Token) -> Value:
        opening = token.text
        if opening == "{":
            self.position -= 1
            return self.group()
        if opening in ("|", "||"):
            bars, self.in_bars = self.in_bars, True
            value = sympy.Abs(expression(self.sum()))
            self.in_bars = bars
            self.expect(opening)
            return value
        value = self.collection(opening)
        if isinstance(value, sympy.Integer) and self.at("_"):  # (101)_2
            self.position += 1
            return self.in_base(value)
        return value

    # Of commands, and of the whole answer.

    def named(self, name: str) -> Value:
        """A command of LaTeX, or a function or constant by name."""
        raise NotImplementedError

    def group(self) -> Value:
        """The content of braces, which are not seen."""
        raise NotImplementedError

    def collection(self, opening: str) -> Value:
        """The content of brackets, of which the first is read."""
        raise NotImplementedError

    def in_base(self, value: Value, digits: str | None = None) -> Value:
        """A number in the base that follows."""
        raise NotImplementedError


def whole(token: Token) -> int | None:
    """The whole number that a token is, if it is one."""
    is_whole = token.value is not None and token.value.denominator == 1 and "." not in token.text
    return int(token.value) if is_whole else None  # type: ignore[arg-type]


def is_set(value: Value) -> bool:
    """Whether a value is a set, from which another one can be taken: \\mathbb{R} - \\{0\\}."""
    return isinstance(value, Collection) and value.brackets in ("{}", *NUMBER_SETS)
