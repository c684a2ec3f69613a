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


def grade_math(text: str, gold: str) -> tuple[str | None, bool]:
    """Right if both answer the same text, or what math-verify finds equal; on the main thread."""
    import math_verify  # an extra, and slow to import

    prediction, is_right = grade_text(text, gold)
    if prediction is None or is_right:
        return prediction, is_right
    wanted, found = (math_verify.parse(f"${answer}$") for answer in (answer_of(gold), prediction))
    return prediction, bool(wanted and found) and math_verify.verify(wanted, found)


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
