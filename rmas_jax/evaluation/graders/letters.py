r"""The letter of an option, in the notations of models and data sets.

    B   (B)   B.   b)   $B$   **B**   \text{B}   \textbf{(B)}\ 24   B: Paris   Option B   Answer: B

Exactly one letter: "A or B", "not B", "B, C", "B?" and words that begin with a letter have none.

A statement of the answer outweighs the text before it, such as a list of the options or a solution:
"A. yes B. no C. maybe. Answer: C". It has to come last, without doubt ("if the answer is C"), and
not to contradict an earlier one.
"""

from __future__ import annotations

import re
import unicodedata

from rmas_jax.evaluation.graders.marked import plain_typography, without_markup

_LEAD = re.compile(
    r"""(?:(?:so|thus|therefore|hence)\b,?\s*)?
    (?:
        (?:(?:the|my)\b\s*)?(?:(?:final|correct|right|best|selected|chosen)\s+)*
        (?:ans(?:wer)?|option|choice)\b
        (?:\s+(?:is|(?:would|should|must)\ be)\b)?\s*[:=]?\s*
      | i(?:\s+would|\s+will|'ll|'d)?\s+(?:choose|pick|select|go\ with)\s+
      | (?:正确)?答案\s*(?:应?[是为选])?\s*:?\s*
      | [故应]?选[项择]?\s*:?\s*
    ){0,2}""",
    re.VERBOSE | re.IGNORECASE,
)
_LETTER = re.compile(r"\(\s*([A-Za-z])\s*\)|\[\s*([A-Za-z])\s*\]|([A-Za-z])(?![\w'])")
_ENDS = " .,:;!)]"  # may follow a letter
_DELIMITER = re.compile(  # of a bare letter and its option, or the reason for it
    r"\s*[.):\]]\s*|\s+-\s+|\s+(?=\()|,?\s+(?=(?:because|since)\b)"
)
_CONFIRMED = re.compile(
    r"\s+(?:is|would be)\s+(?:(?:the\s+|my\s+)?(?:(?:final|correct|right|best)\b\s*)+"
    r"(?:answer|option|choice|one)?|(?:the|my)\s+answer)[.!]?",
    re.IGNORECASE,
)
_COMMENT = re.compile(  # on the letter, or a further one; options rarely begin with it
    r"\(?\s*(?:(?:or|and|nor|but\s+not|actually|wait|hmm|maybe|perhaps|vs|is|isn't|are|was|seems|(?:might|may"
    r"|could|would|cannot|can't)\s+be)\b|[&/|,;?→])",
    re.IGNORECASE,
)
_FURTHER = re.compile(  # "(A) or (B)", "A: no, B: yes", "B) C)", "B: not option C"
    r"(?<!\w)[(\[]\s*[A-Z]\s*[)\]]|(?<![\w'(\[])[A-Z]\s*[):\]]"
    r"|\b(?i:option|choice|answer)s?\s+(?:is\s+)?[A-Z]\b"
)
_STATEMENT = re.compile(
    r"""(?<!\w)(?:
        (?:(?:final|correct|right|best)\s+)*
        (?:ans(?:wer)?|(?:final|correct|right|best)\s+(?:option|choice))
        (?:\s+(?:is|(?:would|should|must)\ be)\b|\s*[:=]|\ *\n)
      | i(?:\ would|\ will|'ll|'d)?\ (?:choose|pick|select|go\ with)\b
    ) | (?:\A|\n|(?<=[.!?]\s))(?:(?:so|thus|therefore|hence)\b,?\s*)?(?:option\s+)?\(?[A-Z]\)?
        \s+(?:is|would\ be)\s+(?:the|my)\s+(?:(?:final|correct|right|best)\s+)+
        (?:answer|option|choice)\b
      | 答案\s*(?:应?[是为选]|:) | [故应]选(?!项)""",
    re.VERBOSE | re.IGNORECASE,
)
_DOUBT = re.compile(  # before a statement, in its sentence
    r"n't\b|\b(?:not|never|if|whether|unless|when|why|which|what|doubt|maybe|perhaps|possibly"
    r"|may|might|could|suppose|assume|say|says|said|claims?|wrong|incorrect)\b",
    re.IGNORECASE,
)
_SENTENCE_WIDTH = 100  # characters before a statement that may hold a doubt


def stated_letter(text: str) -> str | None:
    """The letter of the last statement of an answer in a text; None without one.

    Also None if it is in doubt, not at the end, or another than that of an earlier statement.
    """
    plain = "\n".join(map(_plain, text.splitlines()))
    statements = list(_STATEMENT.finditer(plain))
    if not statements:
        return None
    start = statements[-1].start()
    before = plain[max(0, start - _SENTENCE_WIDTH) : start]
    if _DOUBT.search(re.split(r"[.!?;\n]", before)[-1]):
        return None
    letter = letter_of(plain[start:], is_marked=False)
    earlier = (_LETTER.match(_after_lead(plain, match.start())) for match in statements[:-1])
    letters = {next(filter(None, found.groups())).upper() for found in earlier if found}
    return letter if letters <= {letter} else None


def _after_lead(text: str, start: int) -> str:
    """The characters after the lead that begins at a position."""
    text = text[start : start + _SENTENCE_WIDTH].lstrip()
    lead = _LEAD.match(text)
    return text[lead.end() :] if lead else text


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
    text = plain_typography(unicodedata.normalize("NFKC", answer))
    text = without_markup(text)
    text = re.sub(r"\\[()\[\]]|[{}]", " ", text)
    text = re.sub(r"[*_`$\"]", "", text)
    text = " ".join(text.split())
    return re.sub(r"^'\s*(.*?)\s*'$", r"\1", text)
