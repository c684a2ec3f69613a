"""The study of training choices: how it pools seeds."""

import json

import pytest

from experiments.studies.training_choices import (
    CONFIG,
    VARIANTS,
    correct_items,
    markdown,
    summarise,
    variant_config,
)
from rmas_jax.config import dump_config, load_config
from rmas_jax.evaluation.metrics import paired_difference, wilson_interval

SEEDS, N = (0, 1, 2), 100
RIGHT = {"aligned": 40, "base": 50}


def test_seeds_that_answer_alike_count_as_one():
    correct = {
        name: [
            correct_items(
                # The order of items is no part of what they say.
                {"split": "test", "id": str(i), "correct": i < right}
                for i in (range(N) if name == "base" else reversed(range(N)))
            )
            for _ in SEEDS
        ]
        for name, right in RIGHT.items()
    }
    rows = summarise(correct, "aligned", SEEDS)
    base = rows[1]
    assert (base["variant"], base["n"], base["items"]) == ("base", 3 * N, N)
    assert base["interval"] == pytest.approx(wilson_interval(50, N), abs=1e-12)
    single = paired_difference([i < 50 for i in range(N)], [i < 40 for i in range(N)])
    assert base["difference"] == pytest.approx(0.1)
    assert base["difference_interval"] == pytest.approx(single.interval, abs=1e-12)
    assert json.loads(json.dumps(rows))[1]["accuracy"] == 0.5
    assert "| 50.0 [40.4, 59.6] | 50.0, 50.0, 50.0 |" in markdown(rows, "aligned", SEEDS)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_what_the_command_line_would_make_of_it(name):
    """Field by field: a misspelt one, or one of another type, is refused in the second way."""
    config = variant_config(load_config(CONFIG, ["output_dir=out"]), name, 1)
    changes = [f"name={name}-1", "seed=1", "output_dir=out"]
    variant = VARIANTS[name]
    if variant.phase is None:
        changes.append("outer.phases=[]")
    else:
        changes += [f"outer.phases.0.{key}={value}" for key, value in variant.phase.items()]
    if variant.is_random:
        changes.append("system.outer_start=torch_default")
    elif variant.phase is not None:
        changes += ["system.links=out/aligned-1/links/aligned.safetensors", "inner.steps=0"]
    assert dump_config(config) == dump_config(load_config(CONFIG, changes))
