"""Eight fake devices, strict numerics, and fixtures that are built once."""

from __future__ import annotations

import dataclasses
import gc
import os
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before the first import of huggingface_hub

import jax
import jax.numpy as jnp
import pytest
from published import NOT_TESTED

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_captured_constants_warn_bytes", 1 << 20)
# Compiling takes most of the time of the tests. A test of speed or memory turns this off again.
jax.config.update("jax_disable_most_optimizations", True)
if jax.__version_info__[:2] == (0, 10):  # XLA stops at flags that it does not know
    # XLA reads its flags when a backend starts, here and in the processes that tests start; they
    # are alike everywhere, as programs are kept by them.
    os.environ["XLA_FLAGS"] = " ".join(
        [
            os.environ.get("XLA_FLAGS", ""),
            "--xla_cpu_use_fusion_emitters=false",  # the older emitters compile three times as fast
            # Many parts of a program serve many threads: here they take an eighth longer.
            "--xla_cpu_parallel_codegen_split_count=1",
            # Collectives give up where a process is late by half a minute, as on a busy machine.
            "--xla_cpu_collective_timeout_seconds=3600",
            "--xla_cpu_collective_call_terminate_timeout_seconds=3600",
        ]
    )

# A thread of XLA's pool waits in each collective, and a device may run several at once: with as
# many threads as devices, the default, all may wait for a device that has none left.
os.environ.setdefault("NPROC", "32")

# Tracing makes many objects that live on: looking for garbage after every 700 takes a quarter of
# its time. `forget_programs` collects what is left.
gc.set_threshold(100_000, 50, 50)

# Long files start first, so that in the end no core waits for one of them; files that start several
# processes at once stand apart.
LONGEST = (
    "multiprocess/test_run.py",
    "multiprocess/test_slices.py",
    "test_fuzz.py",
    "test_notebooks.py",
    "training/test_outer.py",
    "multiprocess/test_training.py",
    "runs/test_damaged_runs.py",
    "runs/test_finished_run.py",
    "multiprocess/test_inner_loop.py",
    "training/test_sharded_training.py",
    "training/test_another_mesh.py",
    "runs/test_custom_team.py",
    "runs/test_plan.py",
    "agents/test_policies.py",
    "evaluation/test_kills.py",
)


def pytest_collection_modifyitems(items):
    """Puts the longest files first."""
    place = {Path(__file__).parent / name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture(autouse=True, scope="session")
def kept_programs(tmp_path_factory):
    """Compiled programs are kept on disk: for other files, both workers, and other processes.

    In a folder of this run of pytest, or in the one that JAX_COMPILATION_CACHE_DIR names.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(shared / "compiled")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder  # an empty one would be the current folder
    seconds = os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", float(seconds))


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Drops what a file has traced and compiled, with what it had patched.

    XLA maps each program into memory by itself, several times over; with the programs of all files
    a worker comes to Linux's limit of 65,530 mappings, at which the compiler crashes.
    """
    yield
    jax.clear_caches()
    gc.collect()
    gc.freeze()  # what is left, such as modules, lives on


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


def pytest_terminal_summary(terminalreporter):
    """Says which published models were not there to be tested, however quiet pytest is."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = [str(report.longrepr) for report in skipped if NOT_TESTED in str(report.longrepr)]
    if reasons:
        terminalreporter.section(NOT_TESTED, red=True, bold=True)
        for reason in reasons:
            terminalreporter.line(reason, red=True)
