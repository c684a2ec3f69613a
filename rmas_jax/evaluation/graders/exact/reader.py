r"""Tokens -> a value, exactly: decimals are fractions, and no number is rounded.

From loose to tight:

    a, b and c         values without brackets; their order does not count
    A \cup B           sets, intervals, conditions
    a < x \le b        relations
    5 \text{ cm}^2     a unit; 3:4
    a + b, a \pm b     sums; \pm makes two answers of one
    a b, a / b         products; a product without a sign binds tighter: a / b c = a / (b c),
                       but a fraction of two whole numbers is one: 1/2 x = (1/2) x
    -a, a^b, a!        signs, powers
    2\frac{1}{2}       a whole number before a proper fraction is a mixed number

The letters e and i are numbers; k, m and n are integers; \log is to the base 10.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import sympy

from .notation import FUNCTIONS, GREEK, Token, tokens_of
from .units import FACTORS, NUMBERS, unit_of
from .values import (
    DEGREE,
    Collection,
    Numeral,
    Quantity,
    Ratio,
    Relation,
    SetOperation,
    TooLargeError,
    UnreadableError,
    Value,
    Words,
    symbol_of,
    words_of,
)

MOST_BITS = 200_000  # of a rational number
MOST_FACTORIAL = 5_000
MOST_DEPTH = 60
_SYMBOLS = {*GREEK, *words_of("varepsilon vartheta varrho varphi Upsilon ell hbar")} - {"pi"}
_ACCENTS = words_of("vec hat bar overline tilde widehat overrightarrow dot angle triangle")
_RELATIONS = ("=", "<", ">", "<=", ">=", "!=", "~", "in", "equiv")
_SETS = {"cup": "union", "cap": "intersection", "setminus": "minus", "backslash": "minus"}
_MATRICES = words_of("pmatrix bmatrix matrix Bmatrix smallmatrix array vmatrix")
_CLOSING = {"(": (")", "]"), "[": (")", "]"), r"\{": (r"\}",), "langle": ("rangle",)}
_MONEY = ("$", "€", "£", "¥")
_BASES = {**NUMBERS, "binary": 2, "hex": 16, "octal": 8}


def read(text: str) -> Value:
    """The value of an answer.

    Raises:
      UnreadableError: it is in no notation of this reader.
      TooLargeError: its exact value would be enormous.
    """
    tokens = tokens_of(text)
    reader = _Reader(tokens)
    try:
        value = reader.answer()
    except (TypeError, AttributeError, ZeroDivisionError) as error:
        raise UnreadableError(f"it has no value: {error}") from None
    if reader.next is not None:
        raise UnreadableError(f"unexpected {reader.next.text!r}")
    return value


class _Reader:
    """Recursive descent; `sign` is the sign that plus-minus has in this pass."""

    def __init__(self, tokens: list[Token]):
        self.tokens, self.position = tokens, 0
        self.sign, self.met_sign = 1, False
        self.depth = 0
        self.in_bars = self.in_set = False
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

    # Lists, sets and relations.

    def answer(self) -> Value:
        items, separators = self.items()
        if len(items) == 1:
            return items[0]
        conditions = [item for item in items if isinstance(item, Relation)]
        if len(conditions) == len(items) and all(
            {*item.operators} & {"<", ">", "<=", ">=", "!="} for item in conditions
        ):
            for word, operator in (("or", "union"), ("and", "intersection")):
                if {*separators} == {word}:
                    return SetOperation(operator, tuple(items))
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
            separators.append(found[-1])

    def item(self) -> Value:
        """A relation, or sets joined by operators, from left to right."""
        value = self.relation()
        while self.at(*_SETS):
            operator = _SETS[self.take().text]
            value = SetOperation(operator, (value, self.relation()))
        return value

    def relation(self) -> Value:
        sides, operators = [self.side()], []
        while self.at(*_RELATIONS):
            operators.append(self.take().text)
            sides.append(self.side())
        if operators and operators[-1] == "in":
            while self.at(*_SETS):
                sides[-1] = SetOperation(_SETS[self.take().text], (sides[-1], self.side()))
        return Relation(tuple(sides), tuple(operators)) if operators else sides[0]

    def side(self) -> Value:
        """Words, or a value with a unit, or a ratio."""
        if self.at("~"):  # "about 5" is 5
            self.position += 1
        token = self.next
        if token is not None and token.kind == "word" and not self.is_symbol():
            return self.words()
        self.has_operation = False
        money = None
        start = self.position
        if self.at("-") and self.position + 1 < len(self.tokens):
            start += 1
        if start < len(self.tokens) and self.tokens[start].text in _MONEY:
            money = self.tokens.pop(start).text
        value = self.sum()
        if self.at(":") and not self.in_set:
            parts = [_expression(value)]
            while self.at(":"):
                self.position += 1
                parts.append(_expression(self.sum()))
            value = Ratio(tuple(parts))
        value, unit = self.unit(value)
        if money is not None and unit not in ((), ((money, 1),)):
            raise UnreadableError("two units")
        if money is not None:
            unit = ((money, 1),)
        return Quantity(value, unit) if unit else value

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
        text = " ".join(words)
        return sympy.Integer(NUMBERS[text]) if text in NUMBERS else Words(text)

    def unit(self, value: Value) -> tuple[Value, tuple[tuple[str, int], ...]]:
        """A value times the factors that follow it, and the unit that follows them."""
        parts: list[str | int] = []
        while (token := self.next) is not None:
            if token.kind == "word":
                word = self.take().text
                if not parts and word.lower().rstrip("s") in FACTORS:
                    value = _expression(value) * FACTORS[word.lower().rstrip("s")]
                elif not parts and word.lower() == "base":
                    value = self.in_base(value)
                else:
                    parts.append(word)
            elif self.at("/") if parts else self.at("%", *_MONEY):
                parts.append(self.take().text)
            elif self.at("pmod") and not parts:
                self.position += 1
                return value, ((f"mod {_expression(self.argument())}", 1),)
            elif self.at("^") and parts:
                self.position += 1
                power = _expression(self.argument())
                if not power.is_Integer or abs(power) > 9 or power == 0:
                    raise UnreadableError("a unit's exponent must be a small whole number")
                parts.append(int(power))
            elif token.kind == "letter" and parts and parts[-1] == "/":
                parts.append(self.take().text)
            else:
                break
        if parts == ["degrees"] or parts == ["degree"]:
            return _expression(value) * DEGREE, ()
        return value, unit_of(parts) if parts else ()

    # Sums, products, powers.

    def sum(self) -> Value:
        value = self.product()
        while self.at("+", "-", "pm", "mp"):
            sign = self.sign_of(self.take().text)
            self.has_operation = True
            value = _checked(_operand(value) + sign * _operand(self.product()))
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
            value = -1 * _operand(value)
        while self.at("*", "/"):
            operator = self.take().text
            self.has_operation = True
            minus = -1 if self.at("-") else 1
            if minus < 0:
                self.position += 1
            factor = minus * _operand(self.factors())
            if operator == "*":
                value = _checked(_operand(value) * factor)
            else:
                value = _checked(_operand(value) * _power(_expression(factor), sympy.Integer(-1)))
        return value

    def factors(self) -> Value:
        """Factors without signs between them."""
        if (mixed := self.mixed_number()) is not None:
            value: Value = mixed
        else:
            value = self.power()
        while self.is_factor():
            value = _checked(_operand(value) * _operand(self.power()))
        return value

    def is_factor(self) -> bool:
        token = self.next
        if token is None:
            return False
        if token.kind == "number":
            before = self.tokens[self.position - 1].kind
            return before != "number" and (before != "letter" or token.is_spaced)
        if token.kind == "letter":
            return True
        if token.kind == "word":
            return False
        if token.text in ("|",):
            return not self.in_bars and not self.in_set
        return token.text in ("(", "{", "[", r"\{", "begin") or (
            token.kind == "name"
            and token.text
            not in (*_RELATIONS, *_SETS, "pm", "mp", "end", "circ", "mid", "rangle", "pmod")
            and token.text not in ("rfloor", "rceil", "choose", "over", "times", "ldots", "langle")
        )

    def mixed_number(self) -> sympy.Expr | None:
        """2\\frac{1}{2}, 2 1/2, and 1/2 as a number; None for anything else."""
        ahead = self.tokens[self.position : self.position + 8]
        whole = _whole(ahead[0]) if ahead else None
        if whole is None:
            return None
        texts = [token.text for token in ahead[1:]]
        if texts[:1] == ["frac"]:
            start = self.position
            self.position += 1
            after_frac = self.position
            fraction = self.power()
            rest = self.tokens[after_frac + 1 : self.position]
            if all(token.kind == "number" or token.text in "{}" for token in rest) and (
                fraction.is_Rational and 0 < fraction < 1 and not fraction.is_Integer
            ):
                return sympy.Integer(whole) + fraction
            self.position = start
            return None
        if len(texts) >= 3 and texts[1] == "/" and ahead[1].is_spaced:
            top, bottom = _whole(ahead[1]), _whole(ahead[3])
            if top is not None and bottom and 0 < top < bottom:
                self.position += 4
                return whole + sympy.Rational(top, bottom)
        if len(texts) >= 2 and texts[0] == "/" and _whole(ahead[2]):
            following = texts[2] if len(texts) > 2 else ""
            if following not in ("^", "!", "_"):
                self.position += 3
                return sympy.Rational(whole, _whole(ahead[2]))
        return None

    def power(self) -> Value:
        value = self.postfix(self.primary())
        if self.at("^"):
            self.position += 1
            if self.is_degree():
                return self.postfix(_expression(value) * DEGREE)
            value = _power(_operand(value), _expression(self.argument(is_exponent=True)))
            value = self.postfix(value)
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
                value = _factorial(_expression(value))
            elif self.at("circ"):
                self.position += 1
                value = _expression(value) * DEGREE
            elif self.at("%") and self.is_part_of_expression():
                self.position += 1
                value = _expression(value) / 100
            else:
                return value

    def is_part_of_expression(self) -> bool:
        """Whether the percent sign is inside an expression; else it is the unit of all of it."""
        following = self.tokens[self.position + 1 : self.position + 2]
        is_end = not following or following[0].kind == "separator"
        is_end = is_end or following[0].text in (",", ";", ")", "]", r"\}", "}", *_RELATIONS)
        return self.has_operation or not is_end

    def argument(self, *, is_exponent: bool = False) -> Value:
        """A group in braces, or a single token; of \\frac12, a single digit."""
        if self.at("{"):
            return self.group()
        if is_exponent and self.at("+", "-"):
            return self.sign_of(self.take().text) * _operand(self.primary())
        if is_exponent and self.at("("):
            return self.primary()
        token = self.next
        if token is not None and token.text.isdigit() and len(token.text) > 1 and not is_exponent:
            rest = token._replace(text=token.text[1:], value=Fraction(token.text[1:]))
            first = token._replace(text=token.text[0], value=Fraction(token.text[0]))
            self.tokens[self.position : self.position + 1] = [first, rest]
        return self.primary()

    def group(self) -> Value:
        """An expression in braces, which are not seen."""
        self.expect("{")

        def content() -> Value:
            items, _ = self.items() if not self.sign_inside() else ([self.item()], [])
            if len(items) == 1 and self.at("choose", "over"):
                name = self.take().text
                bottom = _expression(self.sum())
                if name == "choose":
                    return _binomial(_expression(items[0]), bottom)
                return _checked(_expression(items[0]) * _power(bottom, sympy.Integer(-1)))
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

    # The smallest parts.

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

    def in_base(self, value: Value, digits: str | None = None) -> Value:
        """A number in the base that follows: 16_8, 16_{\\text{eight}}, 16 base 8."""
        if not (isinstance(value, sympy.Integer) and value >= 0):
            raise UnreadableError("a number in a base must be a whole number")
        if self.at("{"):
            self.position += 1
            token = self.take()
            if token.kind == "word" and token.text.lower() == "base":
                token = self.take()
            self.expect("}")
        else:
            token = self.take()
        base = _whole(token) if token.kind == "number" else _BASES.get(token.text.lower())
        if base is None or base < 2:
            raise UnreadableError("a base must be a whole number above 1")
        digits = (digits or str(value)).lstrip("0") or "0"
        if not digits.isdigit() or any(int(digit) >= base for digit in digits):
            raise UnreadableError(f"{digits} is no number in base {base}")
        return value if base == 10 else Numeral(digits, base)

    def symbol(self, letter: str) -> Value:
        name = letter
        if self.at("_"):
            self.position += 1
            name += "_" + self.subscript()
        elif letter == "e":
            return sympy.E
        elif letter == "i":
            return sympy.I
        if self.at("(") and (letter in "fgh" or self.is_applied(letter)):
            arguments = self.primary()
            items = arguments.items if isinstance(arguments, Collection) else (arguments,)
            return sympy.Function(name)(*map(_expression, items))
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
            value = sympy.Abs(_expression(self.sum()))
            self.in_bars = bars
            self.expect(opening)
            return value
        if opening not in _CLOSING:
            raise UnreadableError(f"unexpected {opening!r}")
        return self.collection(opening, _CLOSING[opening])

    def collection(self, opening: str, closing: tuple[str, ...]) -> Value:
        """Values in visible brackets; a single one in round or square brackets is a group."""
        outer, self.in_set = self.in_set, opening == r"\{"
        if self.at(*closing):
            items: list[Value] = []
        elif opening in (r"\{",) or not self.has_sign():
            items = list(self.nested(lambda: Collection(",", tuple(self.items()[0]))).items)
        else:
            items = list(self.nested(lambda: Collection(",", tuple(self.plain_items()))).items)
        if opening == r"\{" and len(items) == 1 and self.at("mid", "|", ":"):
            self.position += 1
            items = [self.answer()]
            self.expect(r"\}")
            self.in_set = outer
            return _condition(items[0])
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

    def named(self, name: str) -> Value:
        """A command of LaTeX, or a function or constant by name."""
        if name == "pi":
            return sympy.pi
        if name == "infty":
            return sympy.oo
        if name in ("imath", "jmath"):
            return sympy.I if name == "imath" else sympy.Symbol("j")
        if name in _SYMBOLS:
            return self.symbol("\\" + name)
        if name == "frac":
            top, bottom = _operand(self.argument()), _expression(self.argument())
            return _checked(top * _power(bottom, sympy.Integer(-1)))
        if name == "binom":
            return _binomial(_expression(self.argument()), _expression(self.argument()))
        if name == "sqrt":
            return self.root()
        if name in FUNCTIONS:
            return self.function(name)
        if name in ("lfloor", "lceil"):
            value = self.nested(self.sum)
            self.expect("r" + name[1:])
            return (sympy.floor if name == "lfloor" else sympy.ceiling)(_expression(value))
        if name == "langle":
            return self.collection(name, _CLOSING[name])
        if name == "emptyset":
            return Collection("{}", ())
        if name == "mathbb":
            letters = self.subscript() if self.at("{") else self.take().text
            if letters not in ("R", "Z", "N", "Q", "C"):
                raise UnreadableError("a set of numbers must be R, Z, N, Q or C")
            return Collection(letters, ())
        if name == "begin":
            return self.matrix()
        if name in _ACCENTS:
            return self.accent(name)
        raise UnreadableError(f"unknown command \\{name}")

    def accent(self, name: str) -> Value:
        """A symbol with an accent, or an angle or a triangle by its points."""
        if self.at("{"):
            return sympy.Symbol(f"{name} {self.subscript()}")
        letters = self.take().text
        while name in ("angle", "triangle") and self.next and self.next.kind == "letter":
            letters += self.take().text
        return sympy.Symbol(f"{name} {letters}")

    def root(self) -> Value:
        index = sympy.Integer(2)
        if self.at("["):
            self.position += 1
            index = _expression(self.nested(self.sum))
            self.expect("]")
        token = self.next
        if token is not None and token.kind == "number":
            radicand = _expression(self.primary())  # \sqrt12 is meant to be the root of 12
        else:
            radicand = _expression(self.argument())
        if not (index.is_Integer and index > 0) and not index.is_Symbol:
            raise UnreadableError("a root's index must be a whole number")
        if index.is_odd and radicand.is_number and radicand.is_negative:
            return -_power(-radicand, 1 / index)
        return _power(radicand, 1 / index)

    def function(self, name: str) -> Value:
        base = exponent = None
        while self.at("_", "^"):
            if self.take().text == "_":
                base = _expression(self.argument(is_exponent=True))
            else:
                exponent = _expression(self.argument(is_exponent=True))
        is_enclosed = self.at("(", "{", "[")
        argument = self.primary() if is_enclosed else self.function_argument()
        arguments = argument.items if isinstance(argument, Collection) else (argument,)
        values = [_expression(item).subs(DEGREE, sympy.pi / 180) for item in arguments]
        is_inverse = exponent == -1 and name in ("sin", "cos", "tan", "cot", "sec", "csc")
        value = _apply("arc" + name if is_inverse else name, values, base)
        return value if exponent is None or is_inverse else _power(value, exponent)

    def function_argument(self) -> Value:
        """The argument of a function without brackets: \\sin 2x, but \\sin x \\cos x are two."""
        sign = 1
        if self.at("-"):
            self.position, sign = self.position + 1, -1
        value = _operand(self.power())
        while self.is_factor() and not self.at(*FUNCTIONS, "("):
            value = value * _operand(self.power())
        if self.at("/") and self.tokens[self.position + 1 : self.position + 2]:
            following = self.tokens[self.position + 1]
            if following.kind == "number":  # \sin \pi/6
                self.position += 1
                value = value / _expression(self.power())
        return sign * value

    def matrix(self) -> Value:
        kind = self.environment()
        if kind not in _MATRICES:
            raise UnreadableError(f"unknown environment {kind!r}")
        if kind == "array" and self.at("{"):
            self.subscript()
        rows: list[list[sympy.Expr]] = [[]]
        while not self.at("end"):
            rows[-1].append(_expression(self.nested(self.sum)))
            if self.at("&") or (self.next is not None and self.next.text == "and"):
                self.position += 1
            elif self.at("\\"):
                self.position += 1
                if not self.at("end"):
                    rows.append([])
            elif not self.at("end"):
                raise UnreadableError("a matrix with an unexpected sign")
        self.position += 1
        if self.environment() != kind:
            raise UnreadableError("an environment ends by another name")
        if len({len(row) for row in rows}) != 1 or len(rows) * len(rows[0]) > 100:
            raise UnreadableError("a matrix must be a rectangle of at most 100 entries")
        value = sympy.ImmutableMatrix(rows)
        return value.det() if kind == "vmatrix" else value

    def environment(self) -> str:
        """The name in the braces after begin or end."""
        self.expect("{")
        name = ""
        while not self.at("}"):
            name += self.take().text
        self.position += 1
        return name


def _whole(token: Token) -> int | None:
    """The whole number that a token is, if it is one."""
    is_whole = token.value is not None and token.value.denominator == 1 and "." not in token.text
    return int(token.value) if is_whole else None  # type: ignore[arg-type]


def _expression(value: Value) -> sympy.Expr:
    """A value that must be an expression."""
    if isinstance(value, Collection) and value.brackets == "[]" and len(value.items) == 1:
        value = value.items[0]  # [x + 1]^2
    if isinstance(value, sympy.Expr) and not isinstance(value, sympy.MatrixBase):
        return value
    raise UnreadableError("a number is expected, not a list, a set, a matrix or words")


def _operand(value: Value) -> sympy.Expr:
    """A value that must be an expression or a matrix."""
    return value if isinstance(value, sympy.MatrixBase) else _expression(value)


def _checked(value: sympy.Expr) -> sympy.Expr:
    """A result that must be defined, and not enormous."""
    if isinstance(value, sympy.Rational) and (
        value.p.bit_length() > MOST_BITS or value.q.bit_length() > MOST_BITS
    ):
        raise TooLargeError(f"a number must have at most {MOST_BITS} bits")
    if value.has(sympy.nan, sympy.zoo):
        raise UnreadableError("it is not defined")
    return value


def _power(base: sympy.Expr, exponent: sympy.Expr) -> sympy.Expr:
    """A power, unless its exact value were enormous."""
    if isinstance(base, sympy.MatrixBase):
        if not (exponent.is_Integer and -1 <= exponent <= 20):
            raise UnreadableError("a matrix's exponent must be a small whole number")
        return base**exponent
    if base.is_Rational and exponent.is_Rational and base not in (0, 1, -1):
        bits = max(base.p.bit_length(), base.q.bit_length())
        if bits * abs(exponent.p) / exponent.q > MOST_BITS:
            raise TooLargeError(f"a power must have at most {MOST_BITS} bits")
    elif exponent.is_number and not exponent.has(sympy.oo, -sympy.oo):
        if exponent.is_Rational and max(abs(exponent.p), exponent.q) > 10**6 and base.is_Add:
            raise TooLargeError("an exponent of a sum must be at most a million")
        if exponent.is_Integer and abs(exponent) > 10**12:
            raise TooLargeError("an exponent must be at most 10^12")
    return _checked(base**exponent)


def _factorial(value: sympy.Expr) -> sympy.Expr:
    if value.is_number and not (value.is_Integer and value >= 0):
        raise UnreadableError("the factorial of a number that is not whole")
    if value.is_number and value > MOST_FACTORIAL:
        raise TooLargeError(f"a factorial must be of at most {MOST_FACTORIAL}")
    return sympy.factorial(value)


def _binomial(top: sympy.Expr, bottom: sympy.Expr) -> sympy.Expr:
    if any(part.is_number and not part.is_Integer for part in (top, bottom)):
        raise UnreadableError("a binomial of numbers that are not whole")
    if top.is_Integer and max(abs(top), abs(bottom) if bottom.is_Integer else 0) > MOST_FACTORIAL:
        raise TooLargeError(f"a binomial must be of at most {MOST_FACTORIAL}")
    return sympy.binomial(top, bottom)


def _condition(value: Value) -> Value:
    """The condition of a set {x | condition}."""
    if isinstance(value, Relation | SetOperation):
        return value
    raise UnreadableError("a set must be of values or of a condition")


def _apply(name: str, values: list[sympy.Expr], base: sympy.Expr | None) -> sympy.Expr:
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
        return _checked(logarithm if base is None else logarithm / sympy.log(base))
    if base is not None:
        raise UnreadableError(f"{name} with a subscript")
    if name.startswith("arc"):
        name = "a" + name[3:]
    functions = {"abs": sympy.Abs, "ceil": sympy.ceiling, "floor": sympy.floor}
    function = functions.get(name) or getattr(sympy, name, None)
    if function is None or name == "det":
        raise UnreadableError(f"unknown function {name}")
    return _checked(function(value))
