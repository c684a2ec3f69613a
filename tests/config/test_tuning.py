"""The section `tuning`: budgets from the outer loop, and entries that do not fit."""

import pytest
import yaml
from small_config import message_of, minimal

from rmas_jax.config import dump_config, load_config, trainings

LORA = {"kind": "lora", "learning_rate": 1e-3}


def write(path, *entries, phases=None):
    tree = minimal()
    tree["tuning"] = list(entries)
    if phases is not None:
        tree["outer"]["phases"] = phases
    file = path / "config.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def test_budgets_are_those_of_the_outer_loop(tmp_path):
    phase = minimal()["outer"]["phases"][0]
    phases = [phase, phase | {"name": "second", "steps": 30, "batch_size": 12}]
    full = {"kind": "full", "learning_rate": 1e-5, "steps": 20, "batch_size": 4}
    config = load_config(write(tmp_path, LORA, full, phases=phases))
    found = {where: (x.steps, x.batch_size) for where, x in trainings(config)}
    assert found == {
        "outer.phases.0": (100, 8),
        "outer.phases.1": (30, 12),
        "tuning.0": (130, 12),
        "tuning.1": (20, 4),
    }
    assert [entry.name for entry in config.tuning] == ["answerer_lora", "answerer_full"]
    again = tmp_path / "again.yaml"
    again.write_text(dump_config(config))
    assert load_config(again) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tuning.0.kind=ia3", "tuning.0.kind must be one of lora, full, soft_prompt, got 'ia3'"),
        ("tuning.0.vectors=3", "tuning.0.vectors must be unset with kind: lora, got 3"),
        ("tuning.1.rank=3", "tuning.1.rank must be unset with kind: full, got 3"),
        ("tuning.1.kind=lora", "tuning must have one entry of a kind, got lora, lora"),
        ("tuning.0.steps=9", "tuning.0.warmup_steps must be fewer than steps (9), got 10"),
        ("tuning.0.accumulation=3", "accumulation must be a divisor of batch_size (8), got 3"),
        ("tuning.0.optimizer=magic", "tuning.0.optimizer must be one of"),
        ("outer.phases=[]", "tuning.0.steps must be a number without outer.phases, got null"),
        ("outer.phases.0.name=answerer_full", "section tuning, got answerer_full"),
        ("runtime.mesh.data=3", "tuning.0.batch_size must be a multiple of 3"),
    ],
)
def test_entries_that_do_not_fit_are_named(tmp_path, override, message):
    full = {"kind": "full", "learning_rate": 1e-3}
    assert message in message_of(write(tmp_path, LORA, full), override)
