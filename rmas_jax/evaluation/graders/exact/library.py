"""Integrals, sums, products and limits, as math-verify's parser reads them.

Its parser takes more notation than ours, and more liberties: it drops units and bases, rounds
decimals and forgets the case of letters. So it only gets what these liberties cannot change, and
its reading is computed exactly and compared as any other expression.
"""

from __future__ import annotations

import re

import sympy

from .values import UnreadableError, symbol_of, words_of

_CALCULUS = re.compile(r"\\(?:int|sum|prod|lim)(?![A-Za-z])")
_COMMANDS = words_of(
    "int sum prod lim frac dfrac tfrac sqrt pi infty to rightarrow cdot times left right"
    " sin cos tan ln log exp binom limits displaystyle"
)
_PLAIN = re.compile(r"(?:[0-9a-z+\-*/^{}()=! ]|(?<![0-9])_)*")
_UNEVALUATED = (sympy.Integral, sympy.Sum, sympy.Product, sympy.Limit, sympy.Derivative)


def is_calculus(text: str) -> bool:
    """Whether a text has an integral, a sum, a product or a limit."""
    return _CALCULUS.search(text) is not None


def read_calculus(text: str) -> sympy.Expr:
    """The value of an expression with integrals, sums, products and limits.

    Raises:
      UnreadableError: it has other notation too, or no closed form.
    """
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse

    text = re.sub(r"\\[,;:! ]|\$", " ", text)
    commands = re.findall(r"\\([A-Za-z]+|.)", text)
    if not {*commands} <= _COMMANDS or not _PLAIN.fullmatch(re.sub(r"\\[A-Za-z]+", "", text)):
        raise UnreadableError("an integral, sum, product or limit with other notation")
    normalization = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=False, nits=False, boxed="none"
    )
    config = LatexExtractionConfig(boxed_match_priority=-1, normalization_config=normalization)
    found = parse(f"${text}$", [config], fallback_mode="no_fallback", parsing_timeout=None)
    if len(found) != 1 or not isinstance(found[0], sympy.Expr):
        raise UnreadableError("math-verify cannot read it")
    value = found[0].doit()
    if not isinstance(value, sympy.Expr) or value.has(*_UNEVALUATED, sympy.Float, sympy.nan):
        raise UnreadableError("it has no closed form")
    constants = {"e": sympy.E, "i": sympy.I}
    return value.subs(
        {
            symbol: constants.get(symbol.name) or symbol_of(symbol.name)
            for symbol in value.free_symbols
        }
    )
