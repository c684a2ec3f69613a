r"""Tokens -> a value, exactly: decimals are fractions, and no number is rounded.

From loose to tight:

    a, b and c         values without brackets; their order does not count
    A \cup B           sets, intervals, conditions
    a < x \le b        relations
    5 \text{ cm}^2     a unit; 3:4; 2 \pmod 5, also written 2 mod 5, which is no remainder
    5 ft 3 in          several units; 10^\circ 30' 15''
    a + b, a \pm b     sums; \pm makes two answers of one
    a b, a / b         products; a product without a sign binds tighter: a / b c = a / (b c),
                       but a fraction of two whole numbers is one: 1/2 x = (1/2) x
                       a number is no factor without a sign, but for powers: 2^3 5^2
    -a, a^b, a!        signs, powers
    2\frac{1}{2}       a whole number before a proper fraction is a mixed number

The letters e and i are numbers; k, m and n are integers; \log is to the base 10.
"""

from __future__ import annotations

import re
import string

import sympy

from .arithmetic import binomial, checked, expression, power
from .commands import CommandReader
from .expressions import RELATIONS, SETS, whole
from .notation import Token, tokens_of
from .sets import set_of
from .units import FACTORS, NUMBERS, unit_of
from .values import (
    DEGREE,
    Collection,
    Numeral,
    Quantity,
    Ratio,
    Relation,
    Residue,
    SetOperation,
    TooLargeError,
    UnreadableError,
    Value,
    Words,
    is_expression,
)

_CLOSING = {"(": (")", "]"), "[": (")", "]"), r"\{": (r"\}",), "langle": ("rangle",)}
_MONEY = ("$", "€", "£", "¥")
_SETS_IN_WORDS = {
    **dict.fromkeys(("all real numbers", "all reals", "real numbers"), "R"),
    **dict.fromkeys(("empty set", "no solution", "no solutions"), "{}"),
}
_BASES = {**NUMBERS, "binary": 2, "hex": 16, "octal": 8}
_DIGITS = string.digits + string.ascii_uppercase
_NUMERAL = re.compile(r"(?=.*[A-Z].*_)([0-9A-Z]{2,})_\{?([1-3][0-9])\}?")  # 1F_{16}
_INEQUALITIES = frozenset({"<", ">", "<=", ">=", "!="})


def read(text: str) -> Value:
    """The value of an answer.

    Raises:
      UnreadableError: it is in no notation of this reader.
      TooLargeError: its exact value would be enormous.
    """
    tokens = tokens_of(text)
    if len(tokens) > 1 and all(map(_continues_names, tokens[1:])) and tokens[0].text.isupper():
        return Words("".join(token.text for token in tokens).casefold())
    if (numeral := _NUMERAL.fullmatch("".join(token.text for token in tokens))) is not None:
        return _numeral(numeral[1], int(numeral[2]))
    reader = _AnswerReader(tokens)
    try:
        value = reader.answer()
    except (UnreadableError, TooLargeError):
        raise
    except (ArithmeticError, AttributeError, IndexError, TypeError, ValueError) as error:
        raise UnreadableError(f"it has no value: {error}") from None
    if reader.next is not None:
        raise UnreadableError(f"unexpected {reader.next.text!r}")
    return value


def _have_names(conditions: list[Relation]) -> bool:
    """Whether conditions are on different letters; x_1 and x_2 are the same."""
    return len({str(condition.sides[0]).partition("_")[0] for condition in conditions}) > 1


def _continues_names(token: Token) -> bool:
    """Whether a token continues an order of names, ABC, which is no product."""
    return token.kind == "letter" and token.text.isupper() and not token.is_spaced


class _AnswerReader(CommandReader):
    """Lists, sets, relations and units around expressions."""

    def answer(self) -> Value:
        items, separators = self.items()
        if len(items) == 1:
            return items[0]
        if isinstance(last := items[-1], Residue):  # 2, 3 \pmod 5
            items = [
                Residue(item, last.modulus) if isinstance(item, sympy.Expr) else item
                for item in items
            ]
        conditions = [item for item in items if isinstance(item, Relation)]
        if len(conditions) == len(items) and all(
            _INEQUALITIES & {*item.operators} for item in conditions
        ):
            for word, operator in (("or", "union"), ("and", "intersection")):
                if {*separators} == {word}:
                    return SetOperation(operator, tuple(items))
            if sum(item.operators != ("!=",) for item in conditions) <= 1:  # x > 0, x != 1
                return SetOperation("intersection", tuple(items))
        if {*separators} == {"or"} and len(conditions) == len(items) and _have_names(conditions):
            return SetOperation("union", tuple(items))  # x = 1 or y = 2 is no pair
        return Collection(",", tuple(items))

    def items(self) -> tuple[list[Value], list[str]]:
        """Values, each once more for the other sign of plus-minus, and what separates them."""
        items: list[Value] = []
        separators: list[str] = []
        while True:
            start, outer = self.position, (self.sign, self.met_sign)
            self.sign, self.met_sign = 1, False
            items.append(self.item())
            if self.met_sign:
                self.position, self.sign = start, -1
                items.append(self.item())
            self.sign, self.met_sign = outer
            found = []
            while (token := self.next) is not None and (
                token.kind == "separator" or (token.kind == "symbol" and token.text in ",;")
            ):
                found.append(self.take().text)
            if not found:
                return items, separators
            if len(found) > 1 and not {*found[1:]} <= {"and", "or"}:  # "3, 4, and 5"
                raise UnreadableError("two commas with nothing between them")
            separators.append(found[-1])

    def listed(self) -> list[Value]:
        """Values in brackets, which commas separate: [1, 2] is no [1 or 2]."""
        items, separators = self.items()
        if "or" in separators:
            raise UnreadableError("one of several values in brackets")
        return items

    def item(self) -> Value:
        """A relation, or sets joined by operators, from left to right."""
        value = self.relation()
        while self.at(*SETS, "-"):
            operator = SETS.get(self.take().text, "minus")
            value = SetOperation(operator, (value, self.relation()))
        return value

    def relation(self) -> Value:
        sides, operators = [self.side()], []
        while self.at(*RELATIONS):
            operators.append(self.take().text)
            sides.append(self.side())
        if operators and operators[-1] == "in":
            while self.at(*SETS, "-"):
                operator = SETS.get(self.take().text, "minus")
                sides[-1] = SetOperation(operator, (sides[-1], self.side()))
        return Relation(tuple(sides), tuple(operators)) if operators else sides[0]

    def side(self) -> Value:
        """Words, or a value with a unit, or a ratio."""
        if self.at("~"):  # "about 5" is 5
            self.position += 1
        token = self.next
        if token is not None and token.kind == "word" and not self.is_symbol():
            return self.words()
        self.has_operation = False
        minus, following = self.tokens[self.position : self.position + 2], self.position + 2
        if [token.text for token in minus[:1]] == ["-"] and minus[-1].text in _MONEY:
            self.tokens[self.position : following] = reversed(minus)  # -$5 is $-5
        money = self.take().text if self.at(*_MONEY) else None
        value = self.sum()
        if is_expression(value) and value.has(DEGREE):
            value = self.minutes(value)
        if self.at(":") and not self.in_set:
            parts = [expression(value)]
            while self.at(":"):
                self.position += 1
                parts.append(expression(self.sum()))
            value = Ratio(tuple(parts))
        value, unit = self.unit(value)
        if money is not None and unit not in ((), ((money, 1),)):
            raise UnreadableError("two units")
        if money is not None:
            unit = ((money, 1),)
        if not unit:
            return value
        quantities: tuple[Value, ...] = (Quantity(value, unit),)
        if self.next is not None and self.next.kind == "number":  # 5 ft 3 in
            rest = self.side()
            quantities += rest.items if isinstance(rest, Collection) else (rest,)
        if not all(isinstance(part, Quantity) for part in quantities):
            raise UnreadableError("a number behind a unit must have one, too")
        return quantities[0] if len(quantities) == 1 else Collection("+", quantities)

    def minutes(self, angle: sympy.Expr) -> sympy.Expr:
        """An angle with the minutes and seconds that follow its degrees: 10^\\circ 30' 15''."""
        sign = -1 if (angle / DEGREE).is_negative else 1
        for marks, size in ((1, 60), (2, 3600)):
            ahead = self.tokens[self.position : self.position + marks + 1]
            if [token.text for token in ahead[1:]] == ["'"] * marks and ahead[0].value is not None:
                angle += sign * sympy.Rational(ahead[0].value) * DEGREE / size
                self.position += marks + 1
        return angle

    def is_symbol(self) -> bool:
        """Whether the next word is one letter of an expression: \\text{A}."""
        token = self.next
        if token is None or len(token.text) > 1:
            return False
        following = self.tokens[self.position + 1 : self.position + 2]
        return not following or following[0].kind != "word"

    def words(self) -> Value:
        words = []
        while (token := self.next) is not None and token.kind in ("word", "letter", "number"):
            words.append(self.take().text.casefold())
        if len(words) > 1 and words[0] in ("a", "an", "the") and len(words[1]) > 1:
            del words[0]
        text = " ".join(words)
        if text in _SETS_IN_WORDS:
            return Collection(_SETS_IN_WORDS[text], ())
        return sympy.Integer(NUMBERS[text]) if text in NUMBERS else Words(text)

    def unit(self, value: Value) -> tuple[Value, tuple[tuple[str, int], ...]]:
        """A value times the factors that follow it, and the unit that follows them."""
        parts: list[str | int] = []
        while (token := self.next) is not None:
            if token.kind == "word":
                word = self.take().text
                if not parts and word.lower().rstrip("s") in FACTORS:
                    value = expression(value) * FACTORS[word.lower().rstrip("s")]
                elif not parts and word.lower() == "base":
                    value = self.in_base(value)
                else:
                    parts.append(word)
            elif self.at("/") if parts else self.at("%", *_MONEY):
                parts.append(self.take().text)
            elif self.at("pmod") and not parts:
                self.position += 1
                modulus = self.group() if self.at("{") else self.power()
                return Residue(expression(value), expression(modulus)), ()
            elif self.at("^") and parts:
                self.position += 1
                power = expression(self.argument())
                if not power.is_Integer or abs(power) > 9 or power == 0:
                    raise UnreadableError("a unit's exponent must be a small whole number")
                parts.append(int(power))
            elif token.kind == "letter" and parts and parts[-1] == "/":
                parts.append(self.take().text)
            else:
                break
        unit = unit_of(parts) if parts else ()
        if unit and is_expression(value) and value.has(DEGREE) and unit[0][0] not in ("C", "F"):
            raise UnreadableError("two units")
        return (expression(value) * DEGREE, ()) if unit == (("degree", 1),) else (value, unit)

    def group(self) -> Value:
        """An expression in braces, which are not seen."""
        self.expect("{")

        def content() -> Value:
            items, _ = self.items() if not self.sign_inside() else ([self.item()], [])
            if len(items) == 1 and self.at("choose", "over"):
                name = self.take().text
                bottom = expression(self.sum())
                if name == "choose":
                    return binomial(expression(items[0]), bottom)
                return checked(expression(items[0]) * power(bottom, sympy.Integer(-1)))
            return items[0] if len(items) == 1 else Collection(",", tuple(items))

        value = self.nested(content)
        self.expect("}")
        return value

    def sign_inside(self) -> bool:
        """Whether the group that has begun contains plus-minus, which the whole item expands."""
        depth = 1
        for token in self.tokens[self.position :]:
            depth += (token.text == "{") - (token.text == "}")
            if depth == 0:
                return False
            if token.text in ("pm", "mp"):
                return True
        return False

    def collection(self, opening: str) -> Value:
        """Values in visible brackets; a single one in round brackets is a group."""
        if opening not in _CLOSING:
            raise UnreadableError(f"unexpected {opening!r}")
        closing = _CLOSING[opening]
        outer, self.in_set = self.in_set, opening == r"\{"
        if self.at(*closing):
            items: list[Value] = []
        elif opening in (r"\{",) or not self.has_sign():
            items = list(self.nested(lambda: Collection(",", tuple(self.listed()))).items)
        else:
            items = list(self.nested(lambda: Collection(",", tuple(self.plain_items()))).items)
        if opening == r"\{" and len(items) == 1 and self.at("mid", "|", ":"):
            self.position += 1
            condition = self.answer()
            self.expect(r"\}")
            self.in_set = outer
            return set_of(items[0], condition)
        self.in_set = outer
        token = self.take()
        if token.text not in closing:
            raise UnreadableError(f"expected {closing[0]!r}, got {token.text!r}")
        if opening == r"\{":
            return Collection("{}", tuple(items))
        if opening == "langle":
            return Collection("<>", tuple(items))
        if len(items) == 1 and (
            opening + token.text == "()" or isinstance(items[0], sympy.MatrixBase)
        ):
            return items[0]
        if not items:
            raise UnreadableError("empty brackets")
        if opening + token.text in ("[)", "(]") and len(items) != 2:
            raise UnreadableError("an interval must have two ends")
        return Collection(opening + token.text, tuple(items))

    def has_sign(self) -> bool:
        """Whether plus-minus stands in the round or square bracket that has begun."""
        depth = 1
        for token in self.tokens[self.position :]:
            depth += (token.text in ("(", "[")) - (token.text in (")", "]"))
            if depth == 0:
                return False
            if token.text in ("pm", "mp"):
                return True
        return False

    def plain_items(self) -> list[Value]:
        """Values, whose plus-minus the item around them expands."""
        items = [self.item()]
        while self.at(",", ";"):
            self.position += 1
            items.append(self.item())
        return items

    def in_base(self, value: Value, digits: str | None = None) -> Value:
        """A number in the base that follows: 16_8, 16_{\\text{eight}}, 16 base 8."""
        if not (isinstance(value, sympy.Integer) and value >= 0):
            raise UnreadableError("a number in a base must be a whole number")
        if self.at("{"):
            self.position += 1
            token = self.take()
            if (token.kind == "word" and token.text.lower() == "base") or token.text == "(":
                token = self.take()
            if self.at(")"):
                self.position += 1
            self.expect("}")
        else:
            token = self.take()
        base = whole(token) if token.kind == "number" else _BASES.get(token.text.lower())
        if base is None or base < 2:
            raise UnreadableError("a base must be a whole number above 1")
        return value if base == 10 else _numeral(digits or str(value), base)


def _numeral(digits: str, base: int) -> Numeral:
    """A number's digits in a base."""
    digits = digits.lstrip("0") or "0"
    if any(_DIGITS.find(digit, 0, base) < 0 for digit in digits):
        raise UnreadableError(f"{digits} is no number in base {base}")
    return Numeral(digits, base)
