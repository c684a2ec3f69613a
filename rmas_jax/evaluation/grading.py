"""Who is right: graders of the embedded task and of one's own data."""

from __future__ import annotations

import re
from collections.abc import Callable

from rmas_jax.config import ConfigError, DataConfig
from rmas_jax.data import relay

# text of a system, gold text -> (what it answers, or None if that cannot be read; is it right)
Grader = Callable[[str, str], tuple[str | None, bool]]


def grade_relay(text: str, gold: str) -> tuple[str | None, bool]:
    """Right if the text names the town that the gold answer names."""
    prediction = relay.parse_answer(text)
    return prediction, prediction is not None and prediction == relay.parse_answer(gold)


def boxed(text: str) -> str | None:
    r"""What the last \boxed{...} of a text holds, whose braces are balanced; None without one."""
    for start in reversed([match.end() for match in re.finditer(r"\\boxed\s*\{", text)]):
        depth = 1
        for end in range(start, len(text)):
            depth += (text[end] == "{") - (text[end] == "}")
            if not depth:
                return text[start:end]
    return None


def answer_of(text: str) -> str | None:
    """What a text answers: what it puts in a box, or the whole; None if that is nothing."""
    inside = boxed(text)
    return " ".join((text if inside is None else inside).split()) or None


def grade_text(text: str, gold: str) -> tuple[str | None, bool]:
    """Right if both answer the same, but for case and spaces."""
    prediction, wanted = answer_of(text), answer_of(gold)
    is_right = prediction is not None and wanted is not None
    return prediction, is_right and prediction.casefold() == wanted.casefold()


def expression_of(text: str) -> str | None:
    r"""What a text answers, if that may be mathematics; None if it is prose without a box.

    Without a box, the whole text must be an expression: prose in which a number stands says too
    many things. So two letters in a row count as a word, but for the names of LaTeX commands, and
    signs that only sentences have do not occur.
    """
    answer = answer_of(text)
    if answer is None:
        return None
    if boxed(text) is None:
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


GRADERS: dict[str, Grader] = {"relay": grade_relay, "text": grade_text, "math": grade_math}


def find_grader(config: DataConfig) -> Grader:
    """The grader of a data set.

    Raises:
      ConfigError: it needs a package that is not installed.
    """
    name = "relay" if config.dataset == "relay" else config.grading
    if name == "math":
        try:
            import math_verify  # noqa: F401
        except ImportError:
            raise ConfigError(
                "data.grading=math needs math-verify: pip install 'rmas_jax[eval]'"
            ) from None
    return GRADERS[name]
