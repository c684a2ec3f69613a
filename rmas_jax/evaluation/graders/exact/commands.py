"""Commands in expressions: constants, fractions, roots, functions, accents, matrices."""

from __future__ import annotations

import sympy

from .arithmetic import applied, binomial, checked, expression, operand, power
from .expressions import ExpressionReader
from .notation import FUNCTIONS, GREEK
from .values import DEGREE, NUMBER_SETS, Collection, UnreadableError, Value, words_of

_SYMBOLS = {*GREEK, *words_of("varepsilon vartheta varrho varphi Upsilon ell hbar")} - {"pi"}
_ACCENTS = words_of("vec hat bar overline tilde widehat overrightarrow dot angle triangle")
_MATRICES = words_of("pmatrix bmatrix matrix Bmatrix smallmatrix array vmatrix")


class CommandReader(ExpressionReader):
    """Commands of LaTeX, and functions and constants by name."""

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
            top, bottom = operand(self.argument()), expression(self.argument())
            return checked(top * power(bottom, sympy.Integer(-1)))
        if name == "binom":
            return binomial(expression(self.argument()), expression(self.argument()))
        if name == "sqrt":
            return self.root()
        if name in FUNCTIONS:
            return self.function(name)
        if name in ("lfloor", "lceil"):
            value = self.nested(self.sum)
            self.expect("r" + name[1:])
            return (sympy.floor if name == "lfloor" else sympy.ceiling)(expression(value))
        if name == "langle":
            return self.collection(name)
        if name == "emptyset":
            return Collection("{}", ())
        if name == "mathbb":
            letters = self.subscript() if self.at("{") else self.take().text
            if letters not in NUMBER_SETS:
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
            index = expression(self.nested(self.sum))
            self.expect("]")
        token = self.next
        if token is not None and token.kind == "number":
            radicand = expression(self.primary())  # \sqrt12 is meant to be the root of 12
        else:
            radicand = expression(self.argument())
        if not (index.is_Integer and index > 0) and not index.is_Symbol:
            raise UnreadableError("a root's index must be a whole number")
        if index.is_odd and radicand.is_number and radicand.is_negative:
            return -power(-radicand, 1 / index)
        return power(radicand, 1 / index)

    def function(self, name: str) -> Value:
        base = exponent = None
        while self.at("_", "^"):
            if self.take().text == "_":
                base = expression(self.argument(is_exponent=self.is_whole_base()))
            elif self.next is not None and len(self.next.text) > 1 and self.next.text.isdigit():
                raise UnreadableError("an exponent of several digits must be in braces")
            else:
                exponent = expression(self.argument(is_exponent=True))
        is_enclosed = self.at("(", "{", "[")
        argument = self.primary() if is_enclosed else self.function_argument()
        arguments = argument.items if isinstance(argument, Collection) else (argument,)
        values = [expression(item).subs(DEGREE, sympy.pi / 180) for item in arguments]
        is_inverse = exponent == -1 and name in ("sin", "cos", "tan", "cot", "sec", "csc")
        value = applied("arc" + name if is_inverse else name, values, base)
        return value if exponent is None or is_inverse else power(value, exponent)

    def is_whole_base(self) -> bool:
        """Whether a base is all of the next number: in \\log_10 5, but not in \\log_25."""
        self.position += 1
        is_followed = self.is_factor() or (self.next is not None and self.next.kind == "number")
        self.position -= 1
        return is_followed

    def function_argument(self) -> Value:
        """The argument of a function without brackets: \\sin 2x, but \\sin x \\cos x are two."""
        sign = 1
        if self.at("-"):
            self.position, sign = self.position + 1, -1
        value = operand(self.power())
        while self.is_factor() and not self.at(*FUNCTIONS, "("):
            value = value * operand(self.power())
        if self.at("/") and self.tokens[self.position + 1 : self.position + 2]:
            following = self.tokens[self.position + 1]
            if following.kind == "number":  # \sin \pi/6
                self.position += 1
                value = value / expression(self.power())
        return sign * value

    def matrix(self) -> Value:
        kind = self.environment()
        if kind not in _MATRICES:
            raise UnreadableError(f"unknown environment {kind!r}")
        if kind == "array" and self.at("{"):
            self.subscript()
        rows: list[list[sympy.Expr]] = [[]]
        while not self.at("end"):
            rows[-1].append(expression(self.nested(self.sum)))
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
