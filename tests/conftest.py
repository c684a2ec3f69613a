"""Eight fake devices, strict numerics, and fixtures that are built once."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before the first import of huggingface_hub

import jax
import jax.numpy as jnp
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_captured_constants_warn_bytes", 1 << 20)
# Compiling takes most of the time of the tests. A test of speed or memory turns this off again.
jax.config.update("jax_disable_most_optimizations", True)
if jax.__version_info__[:2] == (0, 10):  # XLA stops at flags that it does not know
    # The older emitters compile three times as fast. XLA reads its flags when a backend starts.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_use_fusion_emitters=false"


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Drops what a file has compiled, which no other file runs.

    XLA maps each program into memory by itself, several times over; with the programs of all files
    a worker comes to Linux's limit of 65,530 mappings, at which the compiler crashes.
    """
    yield
    jax.clear_caches()


@dataclasses.dataclass(frozen=True)
class Oracle:
    """A tiny torch model and the directory to which transformers saved it."""

    model: Any
    directory: Path


@pytest.fixture(scope="session")
def oracle(tmp_path_factory):
    """Function from a case of `oracles.CASES` to its `Oracle`; each is built once."""
    from oracles import build_torch_model  # here: tests without an oracle start without torch

    built: dict[str, Oracle] = {}

    def build(case: str) -> Oracle:
        if case not in built:
            model = build_torch_model(case)
            directory = tmp_path_factory.mktemp(case)
            model.save_pretrained(directory)
            built[case] = Oracle(model, directory)
        return built[case]

    return build


@pytest.fixture(scope="session")
def tiny_system():
    """Three random heterogeneous agents with links and prompts; see `systems`."""
    from systems import build_tiny_system

    return build_tiny_system()


@pytest.fixture
def float64(monkeypatch):
    """Double precision throughout, also where the code asks for float32: for finite differences.

    Gives a function that casts a tree.
    """
    monkeypatch.setattr(jnp, "float32", jnp.float64)

    def cast(tree):
        return jax.tree.map(
            lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
        )

    with jax.enable_x64(True):
        yield cast
