"""What is evaluated."""

from __future__ import annotations

from pathlib import Path

from rmas_jax.config import DataConfig
from rmas_jax.data.published import ORGANISATION


def own_name(data: DataConfig) -> str:
    """What the questions of the training data are called in results."""
    return Path(data.dataset.removeprefix(f"{ORGANISATION}/")).name or data.dataset
