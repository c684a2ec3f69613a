"""The study of training choices: how it pools seeds."""

import json

import pytest

from experiments.studies.training_choices import markdown, summarise
from rmas_jax.evaluation.metrics import paired_difference, wilson_interval

SEEDS, N = (0, 1, 2), 100
RIGHT = {"aligned": 40, "base": 50}


def test_seeds_that_answer_alike_count_as_one(tmp_path):
    for name, right in RIGHT.items():
        for seed in SEEDS:
            folder = tmp_path / f"{name}-{seed}"
            folder.mkdir()
            # The order of items is no part of what they say.
            order = range(N) if name == "base" else reversed(range(N))
            items = [{"split": "test", "id": str(i), "correct": i < right} for i in order]
            (folder / "items.jsonl").write_text("".join(json.dumps(i) + "\n" for i in items))
    rows = summarise(tmp_path, [*RIGHT], "aligned", SEEDS)
    base = rows[1]
    assert (base["variant"], base["n"], base["items"]) == ("base", 3 * N, N)
    assert base["interval"] == pytest.approx(wilson_interval(50, N), abs=1e-12)
    single = paired_difference([i < 50 for i in range(N)], [i < 40 for i in range(N)])
    assert base["difference"] == pytest.approx(0.1)
    assert base["difference_interval"] == pytest.approx(single.interval, abs=1e-12)
    assert json.loads(json.dumps(rows))[1]["accuracy"] == 0.5
    assert "| 50.0 [40.4, 59.6] | 50.0, 50.0, 50.0 |" in markdown(rows, "aligned", SEEDS)
