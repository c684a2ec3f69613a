r"""The letter of an option, in the notations of models and data sets.

    B   (B)   B.   b)   $B$   **B**   \text{B}   \textbf{(B)}\ 24   B: Paris   Option B   Answer: B

Exactly one letter: "A or B", "not B", "B, C", "B?" and words that begin with a letter have none.
"""

from __future__ import annotations

import re
import unicodedata

from rmas_jax.evaluation.graders.marked import without_markup

# Single and double quotes, dashes, and the full stop of Chinese.
_TYPOGRAPHIC = str.maketrans("\u2018\u2019\u201c\u201d\u2013\u2014\u3002", "''\"\"--.")
_LEAD = re.compile(
    r"""(?:(?:so|thus|therefore|hence)\b,?\s*)?
    (?:
        (?:(?:the|my)\b\s*)?(?:(?:final|correct|right|best)\s+)*(?:answer|option|choice)\b
        (?:\s+(?:is|would\ be|should\ be)\b)?\s*[:=]?\s*
      | i\s+(?:would\s+)?(?:choose|pick|select|go\ with)\s+
      | (?:正确)?答案\s*(?:应?[是为选])?\s*:?\s*
      | [故应]?选[项择]?\s*:?\s*
    ){1,2}""",
    re.VERBOSE | re.IGNORECASE,
)
_LETTER = re.compile(r"\(\s*([A-Za-z])\s*\)|\[\s*([A-Za-z])\s*\]|([A-Za-z])(?![\w'])")
_ENDS = " .,:;!)]"  # may follow a letter
_DELIMITER = re.compile(r"\s*[.):\]]\s*|\s+-\s+|\s+(?=\()")  # of a bare letter and its option
_CONFIRMED = re.compile(
    r"\s+(?:is|would be)\s+(?:the\s+)?(?:correct|right|best)"
    r"(?:\s+(?:answer|option|choice|one))?[.!]?",
    re.IGNORECASE,
)
_COMMENT = re.compile(  # on the letter, or a further one; options rarely begin with it
    r"\(?\s*(?:(?:or|and|nor|but\s+not|maybe|perhaps|vs|is|isn't|are|was|seems|(?:might|may"
    r"|could|would|cannot|can't)\s+be)\b|[&/|,;?→])",
    re.IGNORECASE,
)
_FURTHER = re.compile(  # "(A) or (B)", "A: no, B: yes", "B) C)", "B: not option C"
    r"(?<!\w)[(\[]\s*[A-Z]\s*[)\]]|(?<![\w'(\[])[A-Z]\s*[):\]]"
    r"|\b(?i:option|choice|answer)s?\s+(?:is\s+)?[A-Z]\b"
)


def letter_of(answer: str, *, is_marked: bool) -> str | None:
    """The single letter, in upper case, of an answer; None for no letter or several.

    Args:
      answer: the content of a box, or all of a text.
      is_marked: whether it is the content of a box. Elsewhere at most one sentence may follow a
        letter, without another separate letter.
    """
    text = _plain(answer)
    if lead := _LEAD.match(text):
        text = text[lead.end() :]
    if (found := _LETTER.match(text)) is None:
        return None
    letter, rest = next(filter(None, found.groups())), text[found.end() :]
    if not rest.strip(_ENDS) or _CONFIRMED.fullmatch(rest):
        return letter.upper()
    if found[3]:  # without brackets: "A dog" begins with no letter of an option
        if (delimiter := _DELIMITER.match(rest)) is None:
            return None
        rest = rest[delimiter.end() :]
    is_one = _is_option(rest.lstrip(" .:-"), letter, is_marked=is_marked)
    return letter.upper() if is_one else None


def _is_option(text: str, letter: str, *, is_marked: bool) -> bool:
    """Whether the text after a letter is its option's, and names no other letter."""
    if _COMMENT.match(text) or _FURTHER.search(text):
        return False
    same_case = "[A-Z]" if letter.isupper() else "[a-z]"
    if re.match(rf"{same_case}\s*(?:[.;!?]|$)|(?!I\b){same_case}(?:,|\s+(?:and|or)\b)", text):
        return False  # "B. C", "A. B. Smith", "B: C and D"; but "B: x" and "B: I and II"
    if is_marked:
        return True
    alone = r"(?<![\w'])(?:[B-HJ-Z]|A(?!\s+[a-z]))(?![\w'])"
    return not re.search(rf"[.!?;]\s+\S|\?$|{alone}", text)


def _plain(answer: str) -> str:
    """An answer without markup: fonts and spaces of LaTeX, Markdown, tags, quotes."""
    text = unicodedata.normalize("NFKC", answer).translate(_TYPOGRAPHIC)
    text = without_markup(text)
    text = re.sub(r"\\[()\[\]]|[{}]", " ", text)
    text = re.sub(r"[*_`$\"]", "", text)
    text = " ".join(text.split())
    return re.sub(r"^'\s*(.*?)\s*'$", r"\1", text)
