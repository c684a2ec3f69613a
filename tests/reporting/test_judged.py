"""A judge's agreement with exact match in the report of a run."""

import json

from made_runs import items_of, result_row, write_run

from rmas_jax.reporting.judged import judge_table
from rmas_jax.reporting.report import write_report

N = 20


def judged(method, same, *, grader="judge (a model)", exact=lambda i: i < 10):
    """A result and its items; the judge's verdict is that of exact match on the first `same`."""
    row = result_row(method, 1, "test", 0, 0, n=N, grader=grader)
    items = items_of(row)
    for i, item in enumerate(items):
        correct = bool(exact(i)) == (i < same)
        item |= {"correct": correct, "outcome": "correct" if correct else "wrong"}
        item["scores"] = {"exact_match": float(exact(i))}
    row["correct"] = sum(item["correct"] for item in items)
    return row | {"accuracy": row["correct"] / N}, items


def test_agreement_and_kappa_are_by_method_and_over_all():
    first, its_items = judged("recursive_mas", 20)
    second, other_items = judged("recursive_text", 14)  # six exact misses are called right
    other_items[0]["outcome"] = "timeout"  # undecided: left out
    del other_items[1]["outcome"]  # of an older file: left out
    table = judge_table([first, second], [*its_items, *other_items])
    cells = {line[3]: line[-3:] for line in table.rows}
    assert cells["latent, trained links"] == ("20", "100.0", "1.00")
    # 18 answers: 8 right by both, 6 by the judge alone, 4 by neither; chance agrees on
    # (14 x 8 + 4 x 10) / 18^2 of them.
    chance = (14 * 8 + 4 * 10) / 18**2
    assert cells["text"] == ("18", "66.7", f"{(12 / 18 - chance) / (1 - chance):.2f}")
    assert cells["all"][:2] == ("38", f"{100 * 32 / 38:.1f}")
    assert {line[:3] for line in table.rows} == {("relay", "test", "judge (a model)")}


def test_answers_that_ended_badly_are_counted_apart_and_shown_where_none_was_decided():
    """Two seeds of one method, and another one whose answers were all lost."""
    ended = {"unparsed": 1, "at_limit": 2, "timeout": 0, "crashed": 3}
    first, items = judged("recursive_mas", 20)
    second = first | {"seed": 1} | ended
    lost, lost_items = judged("recursive_text", 20)
    for item in lost_items:
        item |= {"outcome": "crashed", "correct": False}
    lost |= {"unparsed": 0, "at_limit": 0, "timeout": 0, "crashed": N, "rollouts": 1}
    rows = [first | dict.fromkeys(ended, 0), second, lost]
    table = judge_table(rows, [*items, *(item | {"seed": 1} for item in items), *lost_items])
    assert table.header[4:9] == ("answers", "unparsed", "cut off", "timed out", "crashed")
    cells = {line[3]: line[4:] for line in table.rows}
    assert cells["latent, trained links"] == ("40", "1", "2", "0", "3", "40", "100.0", "1.00")
    assert cells["text"] == ("20", "0", "0", "0", "20", "0", "-", "-")
    assert cells["all"] == ("60", "1", "2", "0", "23", "40", "100.0", "1.00")


def test_a_judge_that_says_one_thing_has_no_kappa_and_other_graders_no_table():
    row, items = judged("recursive_mas", 20, exact=lambda i: True)
    assert judge_table([row], items).rows[0][-2:] == ("100.0", "-")
    row, items = judged("recursive_mas", 20, grader="qa")
    assert judge_table([row], items) is None
    del row["grader"]
    assert judge_table([row], items) is None


def test_the_report_has_it(tmp_path):
    run = write_run(tmp_path / "run")
    row, items = judged("recursive_mas", 16)
    (run / "results.json").write_text(json.dumps([row]))
    (run / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    write_report(run)
    assert "A judge against exact match" in (run / "report.md").read_text()
    assert (run / "tables" / "judge.csv").read_text().splitlines()[1].startswith("relay,test,")
