"""Splits that are run through the rounds: few rows at once, in few shapes, to the same outcome."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import flat
import jax
import numpy as np
import pytest
from systems import build_pattern

from rmas_jax.config import PhaseConfig
from rmas_jax.rounds.supervision import Targets, TextScore
from rmas_jax.sharding import make_mesh, put_whole
from rmas_jax.training import rollouts
from rmas_jax.training.data.batches import BUCKETS
from rmas_jax.training.outer import validation
from rmas_jax.training.rollouts import even_batches

PHASE = PhaseConfig(
    name="tiny", latents="on_policy", rounds=2, steps=1, batch_size=4, learning_rate=1e-3
)


@pytest.fixture(scope="module")
def tiny():
    return build_pattern("distillation")


@pytest.fixture(scope="module")
def data(tiny):
    """Twelve items: three are far longer than the others."""
    questions = [" ".join(["parcel"] * n) for n in (1, 2, 60, 3, 1, 5, 70, 2, 4, 66, 2, 2)]
    random, shape = np.random.default_rng(0), (len(questions), 2, 8)
    valid = np.arange(8) < random.integers(2, 9, (*shape[:2], 1))
    target = Targets(
        ids=np.where(valid, random.integers(1, 37, shape), 0).astype(np.int32), valid=valid
    )
    return flat.encoded_items(tiny.prompt_tokens(questions), dict.fromkeys(tiny.agents, target))


@pytest.fixture
def noted(monkeypatch):
    """Rows and elements of the batches that are put on devices."""
    shapes = []
    put_batch = rollouts.put_batch

    def note(batch, mesh):
        shapes.append((len(batch), sum(x.size for x in jax.tree.leaves(batch))))
        return put_batch(batch, mesh)

    monkeypatch.setattr(rollouts, "put_batch", note)
    return shapes


def validate(team, links, data, **options):
    return validation.validate(team, links, data, dataclasses.replace(PHASE, **options))


def test_a_validation_holds_no_more_rows_than_a_step_and_comes_to_the_same(tiny, data, noted):
    team = tiny.team()
    whole = validate(team, tiny.links, data, batch_size=12)
    assert [rows for rows, _ in noted] == [12]
    for options in ({"batch_size": 12, "accumulation": 3}, {"batch_size": 5}):
        noted.clear()
        few = validate(team, tiny.links, data, **options)
        limit = options["batch_size"] // options.get("accumulation", 1)
        assert len(noted) >= 12 / limit and max(rows for rows, _ in noted) <= limit
        assert len(set(noted)) <= BUCKETS
        for name, value in whole.items():
            np.testing.assert_allclose(few[name], value, rtol=1e-5)
    other = validate(team, tiny.links, data.rows([*range(11), 0]), batch_size=12)  # the control
    assert abs(other["loss"] - whole["loss"]) > 1e-3


def test_short_items_are_not_padded_to_the_longest(data):
    sizes = [sum(x.size for x in jax.tree.leaves(b)) for b, _ in even_batches(data, batch_size=2)]
    assert min(sizes) < max(sizes) / 2


@pytest.mark.parametrize("batch_size", [1, 3, 8, 100])
def test_every_row_counts_once_and_every_device_has_as_many(data, batch_size):
    whole = data.batch()
    for shards in (1, 8):
        seen = []
        for batch, rows in even_batches(data, batch_size=batch_size, shards=shards):
            assert len(batch) == len(rows) <= shards * -(-batch_size // shards)
            assert len(rows) % shards == 0
            for role, target in batch.targets.items():
                width = target.ids.shape[-1]
                same = target.ids == whole.targets[role].ids[rows][..., :width]
                assert same[rows >= 0].all()
            seen += rows[rows >= 0].tolist()
        assert sorted(seen) == list(range(12))


def test_a_validation_that_does_not_divide_is_split_over_the_devices_all_the_same(
    tiny, data, monkeypatch
):
    mesh = make_mesh(8)
    team = tiny.team(put_whole(tiny.agents, mesh), mesh)
    held = []

    def note(system, agents, links, batch, *, rounds):
        ids = batch.prompts["expert"].prefix_ids
        held.append((len(ids), ids.addressable_shards[0].data.shape[0]))
        zeros = np.zeros((rounds, len(ids)))
        finite = np.ones((*zeros.shape, len(tiny.agents)), bool)
        scores = dict.fromkeys(tiny.agents, TextScore(zeros, zeros))
        return SimpleNamespace(scores=scores, finite=finite)

    monkeypatch.setattr(rollouts, "roll_out", note)
    monkeypatch.setattr(rollouts, "to_host", lambda tree: tree)
    validate(team, tiny.links, data, batch_size=4)
    assert held == [(8, 1), (8, 1)]
