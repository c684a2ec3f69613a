"""The smallest configuration of a run, and the message when one is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from rmas_jax.config import ConfigError, load_config

PHASE = {
    "name": "warm",
    "latents": "on_policy",
    "rounds": 2,
    "steps": 100,
    "batch_size": 8,
    "learning_rate": 3e-4,
}


def minimal() -> dict:
    """The required fields and nothing else."""
    return {
        "name": "tiny",
        "system": {"agents": {"planner": "a", "critic": "b", "solver": "c"}},
        "inner": {"steps": 20, "batch_size": 4, "learning_rate": 0.001, "warmup_steps": 2},
        "outer": {"phases": [dict(PHASE)]},
    }


def message_of(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)
