"""What an agent's programs move between sixteen devices, counted in the compiled programs."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import processes
import pytest
from counted import (
    ALLOWED,
    CONFIG,
    DEVICES,
    TEXT,
    collectives_of_a_step,
    compiled,
    gathered_once,
    loss,
    thoughts,
)
from jax.experimental import topologies
from systems import LINEAR

from rmas_jax.planning.hlo import program_cost
from rmas_jax.sharding import make_mesh

WIDE = dataclasses.replace(
    CONFIG, width=256, ffn_width=512, vocab_size=1024, num_heads=8, head_dim=32
)
WIDE_LINEAR = dataclasses.replace(
    LINEAR,
    width=2560,
    ffn_width=1024,
    vocab_size=1024,
    num_heads=8,
    head_dim=64,
    linear_key_heads=16,
    linear_value_heads=32,
    linear_key_dim=32,
    linear_value_dim=32,
)


@pytest.fixture(scope="module")
def counts():
    """Counts of a process with more devices than the tests have."""
    done = subprocess.run(
        [sys.executable, Path(__file__).parents[1] / "counted.py"],
        env=processes.environment(cache=Path(os.environ["JAX_COMPILATION_CACHE_DIR"])),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_pass_gathers_each_layer_once_and_no_activation(counts):
    passes = counts["passes"]
    found, stays = (passes[f"{policy} {DEVICES}"] for policy in ("gather", "stay"))
    layers, vocabulary = gathered_once()
    gathered = (3 * layers + vocabulary) * (DEVICES - 1) / DEVICES
    assert found["gathered"] == pytest.approx(gathered, rel=0.02)
    assert found["link_bytes"] < 1.3 * gathered
    # Nothing has the size of the whole batch: the largest that is sent is the link's gradient.
    batch, link = 4 * DEVICES * TEXT * CONFIG.width, 4 * CONFIG.width**2
    assert found["operand"] <= link < batch
    assert found["buffer"] < batch
    # The control: where weights stay, the rows of all devices pass through each.
    assert min(stays["operand"], stays["buffer"]) >= batch


def test_temporaries_do_not_grow_with_the_number_of_devices(counts):
    """A row on each: the batch grows with them."""
    passes = counts["passes"]

    def growth(policy):
        few, more = (
            passes[f"{policy} {devices}"]["temporaries"] for devices in (DEVICES // 2, DEVICES)
        )
        return more / few

    assert growth("gather") <= 1.3
    assert growth("stay") > 1.3  # the control


@pytest.mark.parametrize("step", ALLOWED, ids=lambda step: step.name)
def test_collectives_of_a_single_step(counts, step):
    found = counts["steps"][step.name]
    assert found <= step.each_layer * CONFIG.num_layers + step.each_step


@pytest.fixture
def optimised():
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def mesh_of(monkeypatch, optimised):
    """A mesh of 16 chips that are not at hand, by their kind."""
    pytest.importorskip("libtpu")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    monkeypatch.setenv("XLA_FLAGS", "")  # libtpu refuses flags of the CPU's compiler

    def mesh(chip):
        slice_ = topologies.get_topology_desc(platform="tpu", topology_name=f"{chip}:4x4")
        return make_mesh(fsdp=16, devices=slice_.devices)

    return mesh


@pytest.mark.slow
def test_a_slice_of_tpus_has_the_same_collectives(mesh_of):
    """Compiled for 16 chips by TPUs' own compiler, without a chip."""
    mesh, given = mesh_of("v5e"), {"rows": 16, "config": WIDE}
    cost = program_cost(compiled(jax.grad(loss), mesh, **given).as_text())
    matrices = 7 * WIDE.num_layers
    # Three passes, and the projection to the vocabulary; ids and targets are small.
    assert 3 * matrices + 1 <= cost.count("all-gather") <= 3 * matrices + 4
    assert cost.count("all-reduce") == 1  # the link's gradient
    assert collectives_of_a_step(thoughts, mesh, **given) <= 4 * WIDE.num_layers + 2


@pytest.mark.slow
def test_linear_layers_sum_few_numbers_in_few_collectives(mesh_of):
    """XLA may scatter sums of 32 numbers a row from chip to chip: 66 steps in each linear layer."""
    given = {"rows": 16, "config": WIDE_LINEAR, "dtype": "bfloat16"}
    found = collectives_of_a_step(thoughts, mesh_of("v6e"), **given)
    assert found <= 6 * WIDE_LINEAR.num_layers
