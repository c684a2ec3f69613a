"""The driver on a tiny team: rollouts, seeds, time, and answers that end badly."""

import dataclasses
import itertools
import re

import jax
import numpy as np
import pytest
from contest import BATCH, EXAMPLES, MAX_TOKENS, item, said

from rmas_jax.agents.answers import AnswerRetry
from rmas_jax.evaluation.answerer import Answerer
from rmas_jax.evaluation.graders import Grader
from rmas_jax.evaluation.graders.code import grade_code
from rmas_jax.evaluation.grading import MAX_REASON
from rmas_jax.evaluation.metrics import wilson_interval
from rmas_jax.evaluation.record import KEY
from rmas_jax.host.compilations import compilations
from rmas_jax.models.generation import SamplingConfig
from rmas_jax.reporting.results import Results, Split
from rmas_jax.reporting.run_directory import read_run


@pytest.mark.slow
def test_rollouts_of_an_answer_for_pass_at_k(contest, tmp_path):
    drawn = {"sampling": SamplingConfig(temperature=3.0), "rollouts": 4}
    methods = ["recursive_mas", "recursive_text", "single_agents"]
    rows, items = contest(tmp_path / "a", methods, rounds=(1,), metric="pass_at_k", **drawn)
    for row in rows:
        assert (row["metric"], row["description"]) == ("pass_at_k", "Words, two by two.")
        own = [r for r in items if all(r[column] == row[column] for column in KEY)]
        right = np.array([[x["correct"] for x in r["rollouts"]] for r in own])
        assert right.shape == (row["n"], 4)
        assert row["correct"] == right[:, 0].sum()
        assert row["pass_at_k"] == right.any(axis=1).mean() >= row["accuracy"]
        assert row["rollout_accuracy"] == pytest.approx(right.mean())
        assert [r["text"] for r in own] == [r["rollouts"][0]["text"] for r in own]
    assert len({x["text"] for x in items[0]["rollouts"]}) > 1
    again, same = contest(tmp_path / "b", methods, rounds=(1,), **drawn)
    paid = ("tokens", "steps", "flops")
    assert [{k: v for k, v in x.items() if k not in paid} for x in same] == [
        {k: v for k, v in x.items() if k not in paid} for x in items
    ]
    for first, whole in zip(same, items, strict=True):
        costs = [rollout["cost"] for rollout in whole["rollouts"]]
        assert all(cost["tokens"] == cost["steps"] <= MAX_TOKENS for cost in costs)
        words = [len(rollout["text"].split()) for rollout in whole["rollouts"]]
        assert all(n <= cost["tokens"] for n, cost in zip(words, costs, strict=True))
        assert first["tokens"] >= costs[0]["tokens"]
        if whole["method"].startswith("single_"):  # nothing precedes the answers
            assert whole["tokens"] == sum(cost["tokens"] for cost in costs)
            assert whole["steps"] == max(cost["steps"] for cost in costs)
        assert whole["tokens"] - first["tokens"] == sum(cost["tokens"] for cost in costs[1:])
        assert whole["flops"] > 2 * costs[0]["flops"] and first["flops"] >= costs[0]["flops"]
    for row in again:  # rollouts alone are no other metric
        assert row["metric"] == "accuracy" and "pass_at_k" not in row and row["rollouts"] == 4
    assert contest(tmp_path / "c", methods, rounds=(1,), seeds=(8,), **drawn)[1] != items
    run = read_run(tmp_path / "a")
    results = Results(run.results, run.items)
    for row in rows:
        split = Split("words", row["split"])
        result = results.get(split, row["method"], 1)
        assert results.metric(split) == "pass@4" and result.by_item
        assert result.accuracy == pytest.approx(row["pass_at_k"])
        interval = wilson_interval(result.correct, result.n)
        assert result.interval == pytest.approx(interval)


def test_a_batch_that_compiles_runs_again_for_its_time(contest, tmp_path, monkeypatch):
    words = itertools.islice(itertools.permutations(("from", "the", "does", "to")), 0, 24, 5)
    examples = [item(i, ("where", *order)) for i, order in enumerate(words)]  # of one length
    drawn = SamplingConfig(temperature=3.0)
    how = {"rounds": (2,), "examples": {"test": examples}, "sampling": drawn}  # two batches
    _, items = contest(tmp_path / "first", ["recursive_mas"], **how)
    first, second = ({r["text"] for r in part} for part in (items[:BATCH], items[BATCH:]))
    assert second - first  # there is one in the second batch that the first batch lacks
    known = "|".join(map(re.escape, sorted(first)))
    answer_retry = AnswerRetry(rf"^\s*(?:{known})\s*$", " it is", max_tokens=1)

    runs = []

    def noted(name):
        method = getattr(Answerer, name)
        monkeypatch.setattr(
            Answerer, name, lambda *a: (runs.append((name, compilations())), method(*a))[1]
        )

    noted("listen")
    noted("write_rollouts")
    how["answer_retry"] = answer_retry
    jax.clear_caches()
    rows, _ = contest(tmp_path / "compiling", ["recursive_mas"], **how)
    # Both parts of the first batch compile and run again; the second does so for its answer retry.
    names, counts = zip(*runs, strict=True)
    first, second = ["listen"] * 2 + ["write_rollouts"] * 2, ["listen"] + ["write_rollouts"] * 2
    assert list(names) == first + second
    compiled = [after > before for before, after in itertools.pairwise([*counts, compilations()])]
    assert compiled == [True, False, True, False, False, True, False]
    runs.clear()
    contest(tmp_path / "again", ["recursive_mas"], **how)
    assert len(runs) == 4
    assert rows[0]["seconds_per_item"] > 0


def test_refilled_answers_are_those_of_batches(contest, tmp_path):
    drawn = {"sampling": SamplingConfig(temperature=3.0), "rollouts": 2, "rounds": (1,)}
    methods = ["recursive_mas", "shuffled_latents", "recursive_text"]
    rows, items = contest(tmp_path / "batches", methods, **drawn)
    refilled, same = contest(tmp_path / "pool", methods, refills=True, **drawn)
    assert same == items
    for row, other in zip(rows, refilled, strict=True):
        assert other["seconds_per_item"] > 0
        assert {**row, "seconds_per_item": 0} == {**other, "seconds_per_item": 0}


def test_endings_of_answers_are_counted(contest, tmp_path):
    examples = {"test": EXAMPLES["test"]}
    how = {"rounds": (1,), "examples": examples, "answer_retry": AnswerRetry("$^", " it is", 1)}
    (row,), items = contest(tmp_path, ["no_latents"], **how)
    assert row["answer_retry"] == row["n"] and all(answer["answer_retry"] for answer in items)
    for answer in items:  # the retry has a token more
        assert answer["at_limit"] is (answer["tokens"] == MAX_TOKENS + 1)
    assert row["at_limit"] == sum(answer["at_limit"] for answer in items) > 0
    assert row["unparsed"] == 0


def test_every_seed_of_drawn_answers_is_a_measurement_and_greedy_ones_need_one(contest, tmp_path):
    drawn = {"rounds": (1,), "sampling": SamplingConfig(temperature=3.0)}
    rows, items = contest(tmp_path / "both", ["no_latents"], seeds=(1, 2), **drawn)
    assert [(row["split"], row["seed"]) for row in rows] == [
        (split, seed) for split in EXAMPLES for seed in (1, 2)
    ]
    apart = []
    for seed in (1, 2):
        _, found = contest(tmp_path / str(seed), ["no_latents"], seeds=(seed,), **drawn)
        assert [item for item in items if item["seed"] == seed] == found
        apart.append(said(found))
    assert apart[0] != apart[1]
    rows, _ = contest(tmp_path / "greedy", ["no_latents"], rounds=(1,), seeds=(2, 1))
    assert [row["seed"] for row in rows] == [2] * len(EXAMPLES)


def test_an_item_that_crashes_its_grader_or_the_sandbox_is_recorded_and_the_run_goes_on(
    contest, tmp_path
):
    tests = {"test": "assert add(1, 2) == 3"}
    programs = {
        "b the?": "import os\nos.kill(os.getpid(), 9)",
        "the parcel?": "def add(a, b): return bytearray(1 << 40)",
        "from to?": "def add(a, b): return a + b",
    }

    def judge(text, example):
        if example.id not in programs:
            raise RuntimeError("no program " * 100)
        program = f"```python\n{programs[example.id]}\n```"
        return grade_code(program, dataclasses.replace(example, fields=tests))

    grader = Grader("programs", "what programs do", judge, equates=False)
    examples = {"test": EXAMPLES["test"], "unseen": EXAMPLES["unseen"]}
    rows, items = contest(tmp_path, ["no_latents"], rounds=(1,), grader=grader, examples=examples)
    assert [(row["split"], row["n"], row["crashed"], row["correct"]) for row in rows] == [
        ("test", 5, 4, 1),
        ("unseen", 3, 3, 0),
    ]
    found = {item["id"]: item for item in items if item["split"] == "test"}
    assert found["from to?"]["outcome"] == "correct"
    assert found["a b?"]["reason"].startswith("RuntimeError: no program no program")
    assert len(found["a b?"]["reason"]) == MAX_REASON
    assert "SIGKILL" in found["b the?"]["reason"] and "memory" in found["the parcel?"]["reason"]
    assert read_run(tmp_path).items == items
