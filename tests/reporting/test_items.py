"""Answers one by one in a report: the file, the page and its bounds."""

import csv
import json
import re

from made_runs import N, items_of, result_row, write_run

from rmas_jax.reporting.items import (
    CROSSINGS,
    MAX_CELL,
    MAX_SHOWN,
    MAX_SHOWN_CELL,
    crossing_tables,
    item_table,
    shown_items,
)
from rmas_jax.reporting.report import write_report

HASH = "ab" * 32
CROSSED = {"planner->critic": {"1": [["red", "rot"], ["gate", "tor"]], "2": [["blue", "x"]]}}


def rollout(text, prediction, outcome, **more):
    correct = outcome == "correct"
    return {"text": text, "prediction": prediction, "outcome": outcome, "correct": correct} | more


def several():
    """Items of one measurement; the first has two rollouts."""
    row = result_row("recursive_mas", 2, "test", 3, 1, n=3, accuracy=1 / 3)
    items = items_of(row)
    first = rollout('<think>a, \n"b"</think> \\boxed{1}', "1", "correct")
    second = rollout("x" * 10 + "y" * 10_000 + "END", None, "timeout", reason="10 s")
    items[0] |= {"prompt_hash": HASH, "crossed": CROSSED, **first, "rollouts": [first, second]}
    items[1] |= rollout("<script>alert(1)</script>", None, "unparsed", prompt_hash=HASH)
    return row, items


def test_the_file_has_every_rollout_with_prompt_message_output_and_verdict(tmp_path):
    row, items = several()
    run = write_run(tmp_path / "run")
    (run / "results.json").write_text(json.dumps([row]))
    (run / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    page = write_report(run).read_text()
    with (run / "tables" / "items.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["id"], line["rollout"], line["verdict"]) for line in lines] == [
        ("test-0", "1", "correct"),
        ("test-0", "2", "timeout"),
        ("test-1", "1", "unparsed"),
        ("test-2", "1", "wrong"),
    ]
    first, second, _, last = lines
    assert first["output"] == items[0]["text"] and first["prompt hash"] == HASH
    assert first["crossed"] == (
        "planner->critic, round 1: red/rot gate/tor; planner->critic, round 2: blue/x"
    )
    assert (first["parsed answer"], second["parsed answer"], second["reason"]) == ("1", "", "10 s")
    assert len(second["output"]) < MAX_CELL + 50 and "characters ...]" in second["output"]
    assert second["output"].startswith("xxx") and second["output"].endswith("END")
    assert (first["seed"], first["rounds"], first["method"]) == ("3", "2", "recursive_mas")
    assert last["prompt hash"] == last["output"] == ""  # not recorded
    # The page: folded, with a filter, nothing from elsewhere, texts escaped.
    (section,) = re.findall(r'<details class="items">.*?</details>', page, re.S)
    assert section.count("<tr>") == 1 + 4 and 'type="search"' in section
    assert "&lt;script&gt;" in section and "<script>alert" not in page
    assert not re.search(r"(src|href)=\"https?:", page)
    markdown = (run / "report.md").read_text()
    assert "tables/items.csv has 4 answers" in markdown and HASH not in markdown


def test_the_page_has_a_bounded_part_of_every_measurement():
    rows = [result_row("recursive_mas", r, "test", seed, 9) for r in (1, 2) for seed in (0, 1)]
    items = [item | {"text": "z" * 5_000} for row in rows for item in items_of(row)]
    assert len(item_table(items).rows) == 4 * N > MAX_SHOWN
    shown = shown_items(items)
    assert len(shown.rows) == MAX_SHOWN
    assert {line[3:5] for line in shown.rows} == {(r, s) for r in "12" for s in "01"}
    assert max(len(cell) for line in shown.rows for cell in line) < MAX_SHOWN_CELL + 50
    many = [item | {"seed": seed} for seed in range(MAX_SHOWN + 9) for item in items[:1]]
    assert len(shown_items(many).rows) == MAX_SHOWN
    assert shown_items([]).rows == ()


def test_what_crossed_is_shown_of_the_most_rounds_of_the_trained_links():
    def recorded(method, rounds, split, seed):
        items = items_of(result_row(method, rounds, split, seed, 1, n=CROSSINGS + 2, accuracy=0.5))
        return [item | {"crossed": CROSSED, "text": f"{method} {rounds} {seed}"} for item in items]

    plain = items_of(result_row("recursive_mas", 3, "test", 0, 1, n=4, accuracy=0.5))
    some = (
        ("aligned_links", 2, "test", 0),
        ("recursive_mas", 1, "test", 0),
        ("recursive_mas", 2, "test", 1),
        ("recursive_mas", 2, "test", 0),
        ("aligned_links", 2, "other", 0),
        ("shuffled_latents", 2, "third", 0),
    )
    every = [item for of in some for item in recorded(*of)]
    first, second = crossing_tables([*plain, *every])
    assert first.header[3:] == ("planner->critic, round 1", "planner->critic, round 2")
    assert len(first.rows) == CROSSINGS and {row[2] for row in first.rows} == {"recursive_mas 2 0"}
    assert first.rows[0][3:] == ('"red" "gate"', '"blue"')
    assert "test: what crossed" in first.title and "other: what crossed" in second.title
    assert not [*crossing_tables(plain)]
