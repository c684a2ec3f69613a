"""Graders: whether a system's text has the right answer, for the embedded task and for own data."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from rmas_jax.agents.thinking_tags import after_thinking
from rmas_jax.config import ConfigError, DataConfig
from rmas_jax.data import relay
from rmas_jax.evaluation.choices import letter_of
from rmas_jax.host.errors import shown

# text of a system, gold text -> (what it answers, or None if that cannot be read; is it right)
Grader = Callable[[str, str], tuple[str | None, bool]]
log = logging.getLogger(__name__)


def grade_relay(text: str, gold: str) -> tuple[str | None, bool]:
    """Right if the text names the town that the gold answer names."""
    prediction = relay.parse_answer(after_thinking(text) or "")
    return prediction, prediction is not None and prediction == relay.parse_answer(gold)


class Found(NamedTuple):
    """An answer in a text."""

    answer: str
    is_marked: bool  # it stands in a box or behind ####; else it is the whole text


_BRACE = re.compile(r"\\boxed\s*\{|[{}]")
MAX_NUMBER = 100  # characters
HASHES = "####"  # before the answer in GSM8K's last line


def boxes(text: str) -> Iterator[tuple[int, int, int]]:
    r"""Start, start of content and end of content of each \boxed{...} whose braces are balanced."""
    opened: list[tuple[bool, int, int]] = []
    for match in _BRACE.finditer(text):
        if match[0] != "}":
            opened.append((len(match[0]) > 1, *match.span()))
        elif opened:
            is_box, start, inside = opened.pop()
            if is_box:
                yield start, inside, match.start()


def boxed(text: str) -> str | None:
    r"""What the last \boxed{...} of a text holds, whose braces are balanced; None without one."""
    last = max(boxes(text), default=None)
    return last and text[last[1] : last[2]]


def after_hashes(text: str) -> str | None:
    """The end of a last line behind `####`, as GSM8K has it; None without one."""
    _, mark, end = text.rstrip().rpartition(HASHES)
    return end.strip() if mark and end.strip() and not {"\n", "#"} & {*end} else None


def find_answer(text: str) -> Found | None:
    """What a text answers, behind its thinking: what it marks, or the whole; None if nothing."""
    final = after_thinking(text)
    if final is None:
        return None
    last_line = after_hashes(final)
    inside = boxed(last_line or final)
    if inside is None:
        inside = last_line
    answer = " ".join((final if inside is None else inside).split())
    return Found(answer, inside is not None) if answer else None


def answer_of(text: str) -> str | None:
    """What a text answers, as in `find_answer`."""
    found = find_answer(text)
    return found and found.answer


def grade_text(text: str, gold: str) -> tuple[str | None, bool]:
    """Right if both answer the same, but for case and spaces.

    A number that the gold answer marks may be written with or without separators of thousands.
    """
    given, wanted = find_answer(text), find_answer(gold)
    if given is None or wanted is None:
        return given and given.answer, False
    is_right = given.answer.casefold() == wanted.answer.casefold()
    if not is_right and wanted.is_marked and (number := _number(wanted.answer)) is not None:
        is_right = _number(given.answer) == number
    return given.answer, is_right


def _number(text: str) -> Decimal | None:
    r"""A number such as 72, $1,234.50 or 1{,}234; None if it is anything else."""
    if len(text) > MAX_NUMBER:
        return None
    text = re.sub(r"(?<=\d)(?:\{,\}|,\\!|\\,|,)(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"^\\?\$|\$$", "", text).strip().removesuffix(".")
    return Decimal(text) if re.fullmatch(r"[-+]?(?:\d+\.?\d*|\.\d+)", text, re.ASCII) else None


JOIN_WIDTH = 40  # characters around a box in which it may be denied, or joined to another
_BETWEEN = re.compile(
    r"[\s$.*]*(?:[,;/&]|,?\s*(?:or|and)\b)[\s$*]*|(?:[ $*]|\\[,;:! ()])*", re.IGNORECASE
)
_FURTHER = re.compile(r"[\s$*]*(?i:or|and)[\s$*]+(?i:option\s+)?\(?[A-HJ-Z](?!\w|\s+[a-z])")
_DENIED = re.compile(r"(?:\bnot|n['\u2019]t)(?:\s+option)?[\s$*:(]*\Z", re.IGNORECASE)


def choice_of(text: str) -> str | None:
    """The one letter that a text chooses, see `letter_of`; None if there is none, or several."""
    found = find_answer(text)
    if found is None or _is_one_of_several(after_thinking(text)):
        return None
    return letter_of(found.answer, is_marked=found.is_marked)


def _is_one_of_several(text: str) -> bool:
    r"""Whether the last box of a text is denied, or joined to a further letter: \boxed{A} or B."""
    last = sorted(boxes(text))[-2:]
    if not last:
        return False
    start, inside, end = last[-1]
    if _DENIED.search(text, max(0, start - JOIN_WIDTH), start) or _FURTHER.match(text, end + 1):
        return True
    _, other, other_end = last[0]
    if not other_end < start < other_end + JOIN_WIDTH:
        return False
    is_joined = _BETWEEN.fullmatch(text, other_end + 1, start) is not None
    return is_joined and text[other:other_end] != text[inside:end]


def grade_choice(text: str, gold: str) -> tuple[str | None, bool]:
    """Right if both choose the same letter, in whatever form and case."""
    prediction = choice_of(text)
    return prediction, prediction is not None and prediction == choice_of(gold)


def expression_of(text: str) -> str | None:
    r"""What a text answers, if that may be mathematics; None if it is prose without a box.

    Without a box, the whole text must be an expression: prose in which a number stands says too
    many things. So two letters in a row count as a word, but for the names of LaTeX commands, and
    signs that only sentences have do not occur.
    """
    found = find_answer(text)
    if found is None:
        return None
    answer = found.answer
    if not found.is_marked:
        answer = re.sub(r"^\\\((.*)\\\)$|^\\\[(.*)\\\]$|^\$(.*)\$$", r"\1\2\3", answer)
        if re.search(r"[^\W\d_]{2}|\\text|[$?:;]", re.sub(r"\\(?!text)[A-Za-z]+", " ", answer)):
            return None
    return answer.strip().removesuffix(".") or None


def grade_math(text: str, gold: str) -> tuple[str | None, bool]:
    """Right if both answer the same text, or expressions equal to math-verify; on the main thread.

    What a system answers is read as a whole: math-verify's search for a number in what it cannot
    read, which serves for the gold answer, would take the last one of any text.
    """
    import math_verify  # an extra, and slow to import

    prediction, is_right = grade_text(text, gold)
    given, wanted = expression_of(text), answer_of(gold)
    if is_right or given is None or wanted is None:
        return prediction, is_right
    found = math_verify.parse(
        f"${given}$",
        extraction_config=[math_verify.LatexExtractionConfig()],
        fallback_mode="no_fallback",
    )
    expected = math_verify.parse(f"${wanted}$")
    return prediction, bool(expected and found) and math_verify.verify(expected, found)


GRADERS: dict[str, Grader] = {
    "relay": grade_relay,
    "text": grade_text,
    "math": grade_math,
    "choice": grade_choice,
}


def grading_of(data: DataConfig, task: str | None) -> str:
    """The name of the grader for a data set and a type of task, a key of GRADERS."""
    if data.dataset == "relay":
        return "relay"
    return data.grading or ("choice" if task == "choice" else "text")


def find_grader(data: DataConfig, task: str | None = None) -> Grader:
    """The grader for a data set and a type of task.

    Raises:
      ConfigError: it needs a package that is not installed.
    """
    name = grading_of(data, task)
    if name == "math":
        try:
            import math_verify  # noqa: F401
        except ImportError:
            raise ConfigError(
                "data.grading=math needs math-verify: pip install 'rmas_jax[eval]'"
            ) from None
    return GRADERS[name]


# What a gold answer must be for a grader, where not every text is one.
READABLE = {
    "choice": "one letter: B, (B), B: Paris, \\boxed{B}; data.grading=text compares whole texts",
    "relay": "two words, and how many gates are left",
}


def check_golds(grade: Grader, splits: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Says which gold answers a grader cannot read, as no answer to these would be right.

    Such a gold answer is one that is no right answer to itself.

    Args:
      grade: the grader.
      splits: split, or file -> items with "id" and "answer".

    Raises:
      ConfigError: it can read none of a split.
    """
    name = next(name for name, grader in GRADERS.items() if grader is grade)
    allowed = READABLE.get(name, "text that does not end in a thinking block or an empty box")
    for split, items in splits.items():
        unread = [item for item in items if not grade(item["answer"], item["answer"])[1]]
        if not unread:
            continue
        message = (
            f"{split}: {len(unread)} of {len(items)} gold answers must be {allowed}; got, as the "
            f"first, {shown(unread[0]['answer'])} in the row {shown(unread[0]['id'])}"
        )
        if len(unread) == len(items):
            raise ConfigError(f"{message} (data.grading={name})")
        log.warning("%s (data.grading=%s); no answer to these rows is right", message, name)
