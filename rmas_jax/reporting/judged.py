"""The table of judges: how far a language model that grades agrees with exact match."""

from __future__ import annotations

from collections.abc import Sequence

from rmas_jax.evaluation import methods
from rmas_jax.evaluation.graders.judge import Agreement, agreement, is_judge
from rmas_jax.evaluation.rows import ItemRow, ResultRow
from rmas_jax.reporting.results import ENDING_NOTE, ENDINGS, Results, ending_cells, split_of
from rmas_jax.reporting.table import ABSENT, Table
from rmas_jax.reporting.tables import SPLIT


def judge_table(rows: Sequence[ResultRow], items: Sequence[ItemRow]) -> Table | None:
    """A judge against exact match, on each split that it graded; None without such a split."""
    results = Results(rows)
    judged = {split_of(row): row["grader"] for row in rows if is_judge(row.get("grader", ""))}
    lines = []
    for split, grader in judged.items():
        measured = [result for result in results.all if result.split == split]
        chosen = {"all": measured} | {
            methods.describe(name).label: [r for r in measured if r.method == name]
            for name in methods.ordered(result.method for result in measured)
        }
        own = [item for item in items if split_of(item) == split and "outcome" in item]
        for label, of_line in chosen.items():
            names = {result.method for result in of_line}
            found = agreement(item for item in own if item["method"] in names)
            answers = sum(result.answers for result in of_line)
            cells = f"{answers:,}", *ending_cells(*of_line), *_agreement_cells(found)
            lines.append((*split, grader, label, *cells))
    if not lines:
        return None
    return Table(
        "A judge against exact match",
        (*SPLIT, "grader", "method", "answers", *ENDINGS.values(), *AGREEMENT),
        tuple(lines),
        text_columns=4,
        note="Decided: answers with a verdict of the judge, all rollouts included; of these, the "
        "share to which exact match gives the same verdict, and Cohen's kappa, agreement beyond "
        f"chance (-: both always say the same one thing). {ENDING_NOTE}",
        name="judge",
    )


AGREEMENT = ("decided", "same verdict, %", "kappa")


def _agreement_cells(found: Agreement | None) -> tuple[str, str, str]:
    if found is None:
        return "0", ABSENT, ABSENT
    kappa = ABSENT if found.kappa is None else f"{found.kappa:.2f}"
    return f"{found.n:,}", f"{100 * found.agreement:.1f}", kappa
