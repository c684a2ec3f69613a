"""The table of judges: how far a language model that grades agrees with exact match."""

from __future__ import annotations

from collections.abc import Sequence

from rmas_jax.evaluation import methods
from rmas_jax.evaluation.graders.judge import agreement, is_judge
from rmas_jax.evaluation.rows import ItemRow, ResultRow
from rmas_jax.reporting.results import split_of
from rmas_jax.reporting.table import ABSENT, Table
from rmas_jax.reporting.tables import SPLIT


def judge_table(rows: Sequence[ResultRow], items: Sequence[ItemRow]) -> Table | None:
    """A judge against exact match, on each split that it graded; None without such a split."""
    judged = {split_of(row): row["grader"] for row in rows if is_judge(row.get("grader", ""))}
    lines = []
    for split, grader in judged.items():
        own = [item for item in items if split_of(item) == split]
        for label, chosen in (
            ("all", own),
            *(
                (methods.describe(name).label, [item for item in own if item["method"] == name])
                for name in methods.ordered(item["method"] for item in own)
            ),
        ):
            if found := agreement(item for item in chosen if "outcome" in item):
                kappa = ABSENT if found.kappa is None else f"{found.kappa:.2f}"
                share = f"{100 * found.agreement:.1f}"
                lines.append((*split, grader, label, str(found.n), share, kappa))
    if not lines:
        return None
    return Table(
        "A judge against exact match",
        (*SPLIT, "grader", "method", "answers", "same verdict, %", "kappa"),
        tuple(lines),
        text_columns=4,
        note="Answers that the judge decided, all rollouts included. Kappa: Cohen's, agreement "
        "beyond chance; -: both always say the same one thing.",
        name="judge",
    )
