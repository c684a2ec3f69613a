"""Answers of a batch -> graded rows of `items.jsonl`; all rows -> the row of `results.json`."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast, get_type_hints

import numpy as np

from rmas_jax.config.benchmark import PASS_AT_K
from rmas_jax.data.examples import Example
from rmas_jax.evaluation.answerer import BatchAnswers
from rmas_jax.evaluation.graders import Grader
from rmas_jax.evaluation.graders.verdict import Outcome, Verdict
from rmas_jax.evaluation.metrics import wilson_interval
from rmas_jax.evaluation.rows import ItemRow, Measurement, ResultRow, Rollout, is_correct

MAX_REASON = 500  # characters kept


def grade_safely(grader: Grader, text: str, example: Example) -> Verdict:
    """A grader's verdict; a grader that raises gives `Outcome.CRASHED`, and the run continues."""
    try:
        verdict = grader(text, example)
    except Exception as error:  # of any library that a grader calls
        verdict = Verdict(None, Outcome.CRASHED, f"{type(error).__name__}: {error}")
    return verdict._replace(reason=verdict.reason[:MAX_REASON])


def graded_rows(
    key: Measurement, examples: Sequence[Example], grader: Grader, answers: BatchAnswers
) -> list[ItemRow]:
    """The lines of `items.jsonl` for the first rows of a batch, from one rollout.

    Graders that wait for a process run side by side, in a thread per core.

    Args:
      key: of the measurement.
      examples: of the rows that count; rows past them fill up the batch.
      grader: judges the answers.
      answers: one rollout for B >= len(examples) questions.
    """
    (written,) = answers.rollouts
    texts = [written.opening + text for text in written.texts[: len(examples)]]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        graded = list(threads.map(functools.partial(_graded, grader), texts, examples))
    return [
        cast(
            ItemRow,
            {
                **key._asdict(),
                "id": example.id,
                "question": example.question,
                **verdict,
                "at_limit": bool(written.at_limit[i]),
                "answer_retry": bool(written.retried[i]),
                "gold": example.answer,
                "difficulty": example.difficulty,
                "tokens": int(answers.tokens[i]),
                "steps": int(answers.steps[i]),
            },
        )
        for i, (example, verdict) in enumerate(zip(examples, graded, strict=True))
    ]


def join_rollouts(rows: Sequence[ItemRow]) -> ItemRow:
    """The line of an item from those of its rollouts: the first one, with all, if several."""
    if len(rows) == 1:
        return rows[0]
    columns = get_type_hints(Rollout)
    rollouts = [{k: value for k, value in row.items() if k in columns} for row in rows]
    return cast(ItemRow, {**rows[0], "rollouts": rollouts})


def _graded(grader: Grader, text: str, example: Example) -> dict[str, Any]:
    """The part of a `rows.Rollout` that a verdict gives."""
    verdict = grade_safely(grader, text, example)
    graded: dict[str, Any] = {
        "text": text,
        "prediction": verdict.prediction,
        "correct": verdict.correct,
        "outcome": str(verdict.outcome),
    }
    if verdict.reason:
        graded["reason"] = verdict.reason
    if verdict.scores:
        graded["scores"] = dict(verdict.scores)
    return graded


def result_row(
    key: Measurement,
    of_benchmark: Mapping[str, str],
    latent_steps: int,
    items: Sequence[ItemRow],
    seconds_per_item: float,
) -> ResultRow:
    """The row of `results.json` for the items of one measurement."""
    n, correct = len(items), sum(item["correct"] for item in items)
    interval = wilson_interval(correct, n)
    failures = (Outcome.UNPARSED, Outcome.TIMEOUT, Outcome.CRASHED)
    row: dict[str, Any] = {
        **key._asdict(),
        **of_benchmark,
        "latent_steps": latent_steps,
        "n": n,
        "correct": correct,
        "accuracy": correct / n,
        "ci_low": interval.low,
        "ci_high": interval.high,
        **{str(kind): sum(item["outcome"] == kind for item in items) for kind in failures},
        "at_limit": sum(item["at_limit"] for item in items),
        "answer_retry": sum(item["answer_retry"] for item in items),
        "tokens_per_item": sum(item["tokens"] for item in items) / n,
        "steps_per_item": sum(item["steps"] for item in items) / n,
        "seconds_per_item": seconds_per_item,
    }
    names = sorted({name for item in items for name in item.get("scores", {})})
    if names:
        row["scores"] = {
            name: sum(item.get("scores", {}).get(name, 0.0) for item in items) / n for name in names
        }
    if "rollouts" in items[0]:
        right = [[rollout["correct"] for rollout in item["rollouts"]] for item in items]
        row |= {
            "rollouts": len(right[0]),
            "rollout_accuracy": float(np.mean(right)),
        }
    if row["metric"] == PASS_AT_K:
        row[PASS_AT_K] = sum(is_correct(item, PASS_AT_K) for item in items) / n
    return cast(ResultRow, row)
