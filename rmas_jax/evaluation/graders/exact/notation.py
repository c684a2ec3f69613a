r"""An answer's text -> tokens.

    \$1,234.50   2\tfrac12\text{ cm}   0.\overline{3}   x ∈ (−∞, 2]

Fonts, spaces and sizes of brackets are dropped; a number is one token, whatever separates its
thousands; text (`\text{...}`, and runs of letters that are no product) is one token per word.
"""

# ruff: noqa: RUF001 (signs that look like others are what this file is about)

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

from .units import SHORT
from .values import TooLargeError, UnreadableError, words_of


class Token(NamedTuple):
    """A piece of an answer."""

    kind: str  # number, name (a command, or a function without backslash), letter, word, symbol
    text: str
    value: Fraction | None = None  # of a number
    is_spaced: bool = False  # after a space


def _greek() -> Iterator[tuple[str, str]]:
    """Greek letters: their names in Unicode and their commands."""
    for name in GREEK:
        size = "CAPITAL" if name[0].isupper() else "SMALL"
        yield f"GREEK {size} LETTER {'lamda' if name.lower() == 'lambda' else name}", name


GREEK = (
    *("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"),
    *("lambda", "mu", "nu", "xi", "pi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi"),
    *("omega", "Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Phi", "Psi", "Omega"),
)
_UNICODE = {
    **dict.fromkeys("−–—‐‑﹣－", "-"),
    **dict.fromkeys("·⋅∙•", r"\cdot "),
    **dict.fromkeys("…⋯", r"\ldots "),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad", ""),
    **dict.fromkeys("\u200e\u202a\u202c\u2066\u2069", ""),  # from left to right
    "¢": r"\text{ cents}",
    **dict.fromkeys("°º˚", r"^\circ "),
    **dict.fromkeys("∅⌀", r"\emptyset "),
    **dict.fromkeys("⟨〈", r"\langle "),
    **dict.fromkeys("⟩〉", r"\rangle "),
    **dict.fromkeys("‘’′", "'"),
    **dict.fromkeys("“”", '"'),
    **{
        chr(code): rf"\frac{{{top}}}{{{bottom}}}"
        for code, top, bottom in (
            (0xBC, 1, 4),
            (0xBD, 1, 2),
            (0xBE, 3, 4),
            (0x2153, 1, 3),
            (0x2154, 2, 3),
            (0x2155, 1, 5),
            (0x2156, 2, 5),
            (0x2157, 3, 5),
            (0x2158, 4, 5),
            (0x2159, 1, 6),
            (0x215A, 5, 6),
            (0x215B, 1, 8),
            (0x215C, 3, 8),
            (0x215D, 5, 8),
            (0x215E, 7, 8),
        )
    },
    "×": r"\times ",
    "÷": "/",
    "∕": "/",
    "⁄": "/",
    "≤": r"\le ",
    "⩽": r"\le ",
    "≥": r"\ge ",
    "⩾": r"\ge ",
    "≠": r"\ne ",
    "≈": r"\approx ",
    "±": r"\pm ",
    "∓": r"\mp ",
    "∞": r"\infty ",
    "√": r"\sqrt ",
    "∛": r"\sqrt[3]",
    "∜": r"\sqrt[4]",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∖": r"\setminus ",
    "∈": r"\in ",
    "ℝ": r"\mathbb{R}",
    "ℤ": r"\mathbb{Z}",
    "ℕ": r"\mathbb{N}",
    "ℚ": r"\mathbb{Q}",
    "ℂ": r"\mathbb{C}",
    "⌊": r"\lfloor ",
    "⌋": r"\rfloor ",
    "⌈": r"\lceil ",
    "⌉": r"\rceil ",
    **{unicodedata.lookup(name): rf"\{command} " for name, command in _greek()},
}
_SUPERSCRIPTS, _SUBSCRIPTS = (
    re.compile(f"[{signs}]+") for signs in ("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱˣ", "₀₁₂₃₄₅₆₇₈₉₊₋ₙₖ")
)
_TRANSLATED = str.maketrans(_UNICODE)
_SIZE = re.compile(r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![A-Za-z])\s*\.?")
_BAR = re.compile(r"\\(left|right)\s*\|")
_COLOR = re.compile(r"\\(?:text)?color\s*\{[^{}]*\}")
_OLD_FONT = re.compile(r"\{\s*\\(?:rm|sf|tt)(?![A-Za-z])([^{}]*)\}")
_TEXT = re.compile(
    r"\\(?:text(?:rm|bf|it|sf|tt|normal|up|md|sc)?|mbox|hbox|fbox|mathrm|textnormal|emph|operatorname)"
    r"\*?\s*\{"
)
_MODULO = re.compile(
    r"\\(?:text|mathrm|mbox|operatorname)\s*\{([^{}]*\bmod(?:ulo)?\b[^{}]*)\}"  # in a font
    r"|(\\[bp]?mod|(?<![A-Za-z\\])mod(?:ulo)?)(?![A-Za-z])"
)
_BASE = re.compile(r"\(\s*(?:in\s+)?(base\s*\w+)\s*\)|\bin\s+(?=base\b)")  # 16 (base 8)
_WORDS = r"\{\s*\\(?:text|mathrm|mbox)\s*\{([^{}]*)\}\s*"
_UNIT_FRACTION = re.compile(rf"\\[dt]?frac\s*{_WORDS}\}}\s*{_WORDS}((?:\^\s*\{{?[0-9]\}}?)?)\s*\}}")
_IN_BRACKETS = re.compile(r"\(\s*\\pmod\s*(\{[^{}]*\}|[^(){}]*)\s*\)")  # (mod 5)
_FONT = words_of(
    "mathbf mathit mathsf mathtt mathcal mathfrak boldsymbol bm pmb bf it rm sf tt cal bfseries"
    " displaystyle textstyle scriptstyle limits nolimits mathop mathord quad qquad thinspace hfill"
    " underline strut mathstrut normalsize large Large boxed"
)
SAME = {
    **dict.fromkeys(("dfrac", "tfrac", "cfrac"), "frac"),
    **dict.fromkeys(("dbinom", "tbinom"), "binom"),
    **dict.fromkeys(("le", "leq", "leqslant", "leqq"), "<="),
    **dict.fromkeys(("ge", "geq", "geqslant", "geqq"), ">="),
    **dict.fromkeys(("ne", "neq"), "!="),
    **dict.fromkeys(("approx", "simeq", "thickapprox"), "~"),
    **dict.fromkeys(("cdot", "times", "ast", "cdotp"), "*"),
    **dict.fromkeys(("lbrace", "{"), r"\{"),
    **dict.fromkeys(("rbrace", "}"), r"\}"),
    **dict.fromkeys(("varnothing", "empty"), "emptyset"),
    **dict.fromkeys(("dots", "cdots", "dotsc", "dotsb"), "ldots"),
    **dict.fromkeys(("arctg", "atan"), "arctan"),
    **dict.fromkeys(("infinity", "inf", "infty"), "infty"),
    **dict.fromkeys(("land", "wedge"), "and"),
    **dict.fromkeys(("lor", "vee"), "or"),
    **dict.fromkeys(("lvert", "rvert", "vert"), "|"),
    "div": "/",
    "lt": "<",
    "gt": ">",
    "in": "in",
    "mid": "mid",
    "colon": ":",
    "lbrack": "[",
    "rbrack": "]",
    "%": "%",
    "$": "$",
    "degree": "circ",
    "tg": "tan",
    "ctg": "cot",
    "asin": "arcsin",
    "acos": "arccos",
    "gets": "gets",
    "varphi": "varphi",
    "Bbb": "mathbb",
    "&": "and",
    "epsilon": "varepsilon",
    "|": "||",
}
FUNCTIONS = words_of(
    "sin cos tan cot sec csc sinh cosh tanh coth arcsin arccos arctan arccot arcsec arccsc"
    " ln log lg exp gcd lcm max min floor ceil abs det cis"
)
_WITHOUT_BACKSLASH = FUNCTIONS | {"sqrt", "pi", "infinity", "inf", "infty", "theta"}
_ALSO_WORDS = {"min", "max", "det", "sec"}  # unless they are called
_SEPARATOR = r"(?:\{\s*,\s*\}(?:\\!)?|,?\\,|,\\!\s?|\\!,)"  # of thousands, beyond the comma
_NUMBER = re.compile(
    rf"""(?P<dotted>[0-9]*\.[0-9]*\\dot\s*\{{?[0-9]\}}?[0-9]*\\dot\s*\{{?[0-9]\}}?)
    | (?P<start>[0-9]*\.[0-9]*)(?:\\(?:overline|bar|dot)\s*
        (?:\{{\s*(?P<block>[0-9]+)\s*\}}|(?P<digit>[0-9])))
    | (?P<start2>[0-9]*\.|0?\.[0-9]+)\((?P<block2>[0-9]+)\)
    | (?P<start3>[0-9]*\.[0-9]*?)(?:(?P<block3>[0-9])(?P=block3){{2,}}
        |(?P<block4>[0-9]{{2,8}}?)(?P=block4)+)(?:\.\.\.|\\l?dots(?![a-z])|\\cdots)
    | (?P<grouped>[0-9]{{1,3}}(?:{_SEPARATOR}[0-9]{{3}})+(?![0-9])(?:\.[0-9]+)?)
    | (?P<spaced>[0-9]{{1,3}}(?:(?:\\?[ ]|~)[0-9]{{3}})+(?![0-9]|\s*/)(?:\.[0-9]+)?)
    | (?P<commas>[0-9]{{1,3}}(?:,[0-9]{{3}})+(?![0-9]|,[0-9])(?:\.[0-9]+)?)
    | (?P<scientific>(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)[eE][+-]?[0-9]+(?![\w.]))
    | (?P<plain>[0-9]+(?:\.[0-9]+)?|\.[0-9]+)""",
    re.VERBOSE,
)
_COMMAND = re.compile(r"\\([A-Za-z]+|.)", re.DOTALL)
_LETTERS = re.compile(r"[A-Za-z]+(?:['.-][A-Za-z]+)*\.?|[^\W\d_]+")
_RUN = re.compile(r"[A-Za-z]+")
MOST_DIGITS = 3000  # of a number in scientific notation


def tokens_of(text: str) -> list[Token]:
    """The tokens of an answer.

    Raises:
      UnreadableError: a sign that no answer has.
      TooLargeError: a number with an enormous exponent.
    """
    for sign, run in (("^", _SUPERSCRIPTS), ("_", _SUBSCRIPTS)):
        text = run.sub(rf"{sign}{{\g<0>}}", text)
    text = unicodedata.normalize("NFKC", text.translate(_TRANSLATED)).translate(_TRANSLATED)
    text = text.strip(" \n\t`").removeprefix("**").removesuffix("**")
    text = re.sub(r"(?<!\.)[.,;:](?=[\s$]*$)|(?<!\\)\\$", "", text)
    if len(re.findall(r"(?<!\\)\$", text)) % 2 == 0:
        text = re.sub(r"(?<!\\)\$+", " ", text)  # delimiters, not money
    text = _BAR.sub(lambda match: r"\lvert " if match[1] == "left" else r"\rvert ", text)
    text = _COLOR.sub("", _SIZE.sub("", text))
    text = _MODULO.sub(lambda match: match[1] or r"\pmod ", text)
    text = _IN_BRACKETS.sub(r"\\pmod{\1}", _MODULO.sub(r"\\pmod ", text)).replace("+/-", r"\pm ")
    text = _UNIT_FRACTION.sub(r"\\text{\1}/\\text{\2}\3", _OLD_FONT.sub(r"\\mathrm{\1}", text))
    text = _BASE.sub(lambda match: match[1] or "", re.sub(r"\bper cent\b", "percent", text))
    text = re.sub(r"\{\s*([-+:])\s*\}", r"\1", re.sub(r"\^\{?\\prime\}?", "'", text))
    return list(_lexed(text, depth=0, is_text=False))


def _lexed(text: str, *, depth: int, is_text: bool) -> Iterator[Token]:
    """Tokens of a text at a depth of visible brackets; `is_text`: inside \\text{...}."""
    position, spaced = 0, False
    while position < len(text):
        char = text[position]
        if char.isspace() or char == "~":
            position, spaced = position + 1, True
            continue
        if (match := _TEXT.match(text, position)) is not None:
            end = _closing(text, match.end())
            inner = text[match.end() : end]
            is_name = "operatorname" in match[0]
            if is_name or inner.strip() in FUNCTIONS - _ALSO_WORDS:
                yield Token("name", SAME.get(inner.strip(), inner.strip()), None, spaced)
            else:
                yield from _lexed(inner, depth=depth, is_text=True)
            position, spaced = end + 1, True
        elif (match := _number(text, position, depth)) is not None:
            yield Token("number", match[0], _value(match), spaced)
            position, spaced = match.end(), False
        elif (match := _COMMAND.match(text, position)) is not None:
            position = match.end()
            name = match[1]
            if name in _FONT or name in "!()[]":
                continue
            if name in ",;:" or name.isspace():
                spaced = True
                continue
            depth += (name in ("{", "lbrace", "langle")) - (name in ("}", "rbrace", "rangle"))
            yield _command(name, spaced)
            spaced = False
        elif char.isalpha():
            match = (_LETTERS if is_text else _RUN).match(text, position) or _LETTERS.match(
                text, position
            )
            if match is None:
                raise UnreadableError(f"a letter that no answer has: {char!r}")
            is_call = text[match.end() :].lstrip()[:1] in ("(", "{", "_")
            yield from _letters(match[0], is_text=is_text, is_call=is_call, spaced=spaced)
            position, spaced = match.end(), False
        else:
            depth += (char in "([") - (char in ")]")
            if text.startswith("**", position):
                char, position = "^", position + 1
            elif text[position : position + 2] in ("<=", ">=", "!=", "=="):
                char, position = text[position : position + 2], position + 1
            if char not in "()[]{}+-*/^_=<>!|,;:&%$'\"€£¥<=>=!===":
                raise UnreadableError(f"a sign that no answer has: {char!r}")
            if char not in "'\"" or not is_text:
                yield Token("symbol", "=" if char == "==" else char, None, spaced)
            position, spaced = position + 1, False


def _number(text: str, position: int, depth: int) -> re.Match[str] | None:
    """The number at a position; inside brackets, a comma is none of its parts: (1,234)."""
    match = _NUMBER.match(text, position)
    if match and match["commas"] and depth > 0 and not re.search(",0", match[0]):
        return re.compile(r"(?P<plain>[0-9]+)").match(text, position)
    return match


def _value(match: re.Match[str]) -> Fraction:
    """The exact value of a number."""
    groups = match.groupdict()
    if groups.get("dotted"):
        start, first, middle, last = re.fullmatch(  # type: ignore[union-attr]
            r"([0-9]*\.[0-9]*)\\dot\s*\{?([0-9])\}?([0-9]*)\\dot\s*\{?([0-9])\}?", match[0]
        ).groups()
        return _repeating(start, first + middle + last)
    for start, blocks in (
        ("start", ("block", "digit")),
        ("start2", ("block2",)),
        ("start3", ("block3", "block4")),
    ):
        if groups.get(start) is not None:
            return _repeating(groups[start], next(filter(None, map(groups.get, blocks))))
    if groups.get("scientific"):
        exponent = re.split("[eE]", match[0])[1]
        if len(exponent) > 5 or abs(int(exponent)) > MOST_DIGITS:
            raise TooLargeError(f"a power of ten must be at most {MOST_DIGITS}, got {exponent}")
        return Fraction(match[0])
    return Fraction(re.sub(r"[^0-9.]", "", match[0]))


def _repeating(start: str, block: str) -> Fraction:
    """The value of digits with a point, after which a block repeats for ever."""
    places = len(start.partition(".")[2])
    fixed = Fraction(start + "0") if start.strip(".") else Fraction(0)
    return fixed + Fraction(int(block), (10 ** len(block) - 1) * 10**places)


def _command(name: str, spaced: bool) -> Token:
    """A LaTeX command without its backslash."""
    text = SAME.get(name, name)
    if text in ("and", "or"):
        return Token("separator", text, None, spaced)
    if not text.isalpha():
        if not name.isalpha() and name not in "{}|\\%$&":
            raise UnreadableError(f"a command that no answer has: \\{name}")
        return Token("symbol", text, None, spaced)
    return Token("name", text, None, spaced)


def _letters(run: str, *, is_text: bool, is_call: bool, spaced: bool) -> Iterator[Token]:
    """Tokens of letters in a row: a separator, a function, a word, or a product of symbols."""
    bare = run.rstrip(".")
    if bare.lower() in ("and", "or"):
        yield Token("separator", bare.lower(), None, spaced)
    elif bare in _WITHOUT_BACKSLASH and (is_call or bare not in _ALSO_WORDS):
        yield Token("name", SAME.get(bare, bare), None, spaced)
    elif bare in ("e", "i"):  # numbers in any font
        yield Token("letter", bare, None, spaced)
    elif is_text or bare.lower() in SHORT or len(bare) > 3 or not bare.isascii():
        yield Token("word", bare, None, spaced)
    elif re.fullmatch("d[xyzt]", bare):  # a differential, which cancels with no d
        yield Token("letter", bare, None, spaced)
    else:
        for i, letter in enumerate(bare):
            yield Token("letter", letter, None, spaced and i == 0)


def _closing(text: str, start: int) -> int:
    """The position of the brace that closes a group whose content starts at a position."""
    depth = 1
    for match in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start):
        depth += (match[0] == "{") - (match[0] == "}")
        if depth == 0:
            return match.start()
    raise UnreadableError("a brace that is not closed")
