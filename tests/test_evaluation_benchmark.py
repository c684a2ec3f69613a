"""The benchmark of a whole evaluation, at a tiny size."""

import json
from argparse import Namespace

import pytest

from experiments.benchmarks import evaluation
from experiments.benchmarks.sharing import Contest
from rmas_jax.evaluation.methods import LATENT


@pytest.mark.slow  # tests/evaluation/test_shared.py: ragged questions compile nothing more
def test_an_evaluation_of_ragged_questions_compiles_once_and_counts_all_batches(tmp_path, capsys):
    sizes = {"items": 7, "batch": 3, "rounds": 2, "latent-steps": 3, "tokens": 4, "repeats": 1}
    options = [text for name, size in sizes.items() for text in (f"--{name}", str(size))]
    evaluation.main(["--out", str(tmp_path), "--agents", "embedded", *options])
    report = json.loads((tmp_path / "evaluation_embedded.json").read_text())
    assert report["compilations_after_warm_up"] == 0
    assert report["batches"] == 3
    assert 0.2 < report["filled"] < 1  # questions of one batch differ in their lengths
    assert report["times"]["floor"] > 1
    assert report["floors"]["practical"] > report["floors"]["floor"] / 2
    assert "| 7 |" in capsys.readouterr().out


def test_the_floor_grows_by_one_round_of_each_agent():
    sizes = {"items": 4, "batch": 2, "latent_steps": 3, "tokens": 4}
    options = Namespace(agents="embedded", methods=[LATENT], refills=False, **sizes)
    contest = Contest(options)
    _, prompts, _ = evaluation.timed(contest, rounds=2, repeats=2)
    assert len(prompts) == 2  # of one evaluation
    one, two, three = (evaluation.floor(contest, prompts, rounds).flops for rounds in (1, 2, 3))
    assert three - two == pytest.approx(two - one)
    assert three > two > one > 0
    assert evaluation.floor(contest, prompts[:1], 2).flops < two
