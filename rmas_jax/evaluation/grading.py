"""Answers of a batch -> graded rows of `items.jsonl`; all rows -> the row of `results.json`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast, get_type_hints

import numpy as np

from rmas_jax.agents.answers import Texts
from rmas_jax.config.benchmark import PASS_AT_K
from rmas_jax.data.examples import Example
from rmas_jax.evaluation.answering import BatchAnswers
from rmas_jax.evaluation.graders import Grader
from rmas_jax.evaluation.graders.verdict import Outcome, Verdict
from rmas_jax.evaluation.metrics import wilson_interval
from rmas_jax.evaluation.rows import (
    ItemRow,
    Measurement,
    ResultRow,
    Rollout,
    is_correct,
    rollouts_of,
)
from rmas_jax.evaluation.selections import SELECTIONS

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
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        graded = list(
            threads.map(lambda i: _rollout(grader, examples[i], answers, i), range(len(examples)))
        )
    crossed = answers.crossed() if answers.crossed else []
    return [
        cast(
            ItemRow,
            {
                **key._asdict(),
                "id": example.id,
                "question": example.question,
                **rollout,
                "cost": {
                    "tokens": int(answers.own.tokens[i]),
                    "steps": int(answers.own.steps[i]),
                    "flops": float(answers.own.flops[i]),
                },
                "gold": example.answer,
                "difficulty": example.difficulty,
                "tokens": int(answers.tokens[i]),
                "steps": int(answers.steps[i]),
                "flops": float(answers.flops[i]),
                "prompt_hash": answers.prompt_hashes[i],
                **({"crossed": crossed[i]} if crossed else {}),
                **({} if answers.sweeps is None else {"sweeps": int(answers.sweeps[i])}),
            },
        )
        for i, (example, rollout) in enumerate(zip(examples, graded, strict=True))
    ]


def join_rollouts(rows: Sequence[ItemRow], metric: str) -> ItemRow:
    """The line of an item from those of its rollouts: the first one, with all, if several.

    Its cost is that of the rollouts which the metric uses: the first one, or with pass@k all. These
    share the thoughts or messages before them, and do not wait for each other.
    """
    if len(rows) == 1:
        return rows[0]
    columns = get_type_hints(Rollout)
    rollouts = [{name: value for name, value in row.items() if name in columns} for row in rows]
    first, *others = [row["cost"] for row in rows]
    used = others if metric == PASS_AT_K else []
    longest = max(cost["steps"] for cost in (first, *used))
    whole = {
        "tokens": rows[0]["tokens"] + sum(cost["tokens"] for cost in used),
        "steps": rows[0]["steps"] - first["steps"] + longest,
        "flops": rows[0]["flops"] + sum(cost["flops"] for cost in used),
    }
    return cast(ItemRow, {**rows[0], **whole, "rollouts": rollouts})


def _rollout(grader: Grader, example: Example, answers: BatchAnswers, i: int) -> dict[str, Any]:
    """The `rows.Rollout` of the answer to the i-th question."""
    graded = {
        role: _graded(grader, example, written, i) for role, (written,) in answers.by_agent.items()
    }
    if answers.selection is None:
        ((_, rollout),) = graded.values()
        return rollout
    verdicts = {role: verdict for role, (verdict, _) in graded.items()}
    rollouts = {role: rollout for role, (_, rollout) in graded.items()}

    def is_equal(role: str, other: str) -> bool:
        """Whether two answers are the same to the grader, either as the other's gold answer."""
        pair = ((role, other), (other, role))
        return verdicts[role].prediction == verdicts[other].prediction or any(
            _is_right(grader, rollouts[one]["text"], example, str(verdicts[gold].prediction))
            for one, gold in pair
            if grader.equates
        )

    selected = SELECTIONS[answers.selection](verdicts, is_equal)
    return rollouts[selected] | {"selected": selected, "agents": rollouts}


def _is_right(grader: Grader, text: str, example: Example, gold: str) -> bool:
    return grade_safely(grader, text, dataclasses.replace(example, answer=gold)).correct


def _graded(
    grader: Grader, example: Example, written: Texts, i: int
) -> tuple[Verdict, dict[str, Any]]:
    """The verdict on a row of texts, and its `rows.Rollout`."""
    text = written.opening + written.texts[i]
    verdict = grade_safely(grader, text, example)
    graded: dict[str, Any] = {
        "text": text,
        "prediction": verdict.prediction,
        "correct": verdict.correct,
        "outcome": str(verdict.outcome),
        "at_limit": bool(written.at_limit[i]),
        "answer_retry": bool(written.retried[i]),
    }
    if verdict.reason:
        graded["reason"] = verdict.reason
    if verdict.scores:
        graded["scores"] = dict(verdict.scores)
    return verdict, graded


def result_row(
    key: Measurement,
    columns: Mapping[str, Any],
    items: Sequence[ItemRow],
    seconds_per_item: float,
) -> ResultRow:
    """The row of `results.json` for the items of one measurement.

    Args:
      key: of the measurement.
      columns: those that follow from the benchmark and the method.
      items: all of them.
      seconds_per_item: wall time.
    """
    n, correct = len(items), sum(item["correct"] for item in items)
    interval = wilson_interval(correct, n)
    failures = (Outcome.UNPARSED, Outcome.TIMEOUT, Outcome.CRASHED)
    answers = [rollout for item in items for rollout in rollouts_of(item)]
    row: dict[str, Any] = {
        **key._asdict(),
        **columns,
        "n": n,
        "correct": correct,
        "accuracy": correct / n,
        "ci_low": interval.low,
        "ci_high": interval.high,
        **{str(kind): sum(answer["outcome"] == kind for answer in answers) for kind in failures},
        "at_limit": sum(answer["at_limit"] for answer in answers),
        "answer_retry": sum(answer["answer_retry"] for answer in answers),
        "tokens_per_item": sum(item["tokens"] for item in items) / n,
        "steps_per_item": sum(item["steps"] for item in items) / n,
        "flops_per_item": sum(item["flops"] for item in items) / n,
        "seconds_per_item": seconds_per_item,
    }
    names = sorted({name for item in items for name in item.get("scores", {})})
    if names:
        row["scores"] = {
            name: sum(item.get("scores", {}).get(name, 0.0) for item in items) / n for name in names
        }
    if "sweeps" in items[0]:
        row["sweeps_per_item"] = sum(item["sweeps"] for item in items) / n
    if "rollouts" in items[0]:
        right = [[rollout["correct"] for rollout in item["rollouts"]] for item in items]
        row |= {
            "rollouts": len(right[0]),
            "rollout_accuracy": float(np.mean(right)),
        }
    if row["metric"] == PASS_AT_K:
        row[PASS_AT_K] = sum(is_correct(item, PASS_AT_K) for item in items) / n
    return cast(ResultRow, row)
