"""What the inner loop gathers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from systems import LATENT_STEPS
from teams import QUESTIONS, build_team, encode

from rmas_jax.stages import Targets
from rmas_jax.training import rollouts
from rmas_jax.training.batches import TrainingData
from rmas_jax.training.inner_loop import rollout_pairs


def test_rollouts_count_every_item_once_however_they_are_batched(tmp_path, monkeypatch):
    """The last batch wraps, and stages that are not right do not count: here all are."""
    team, links = build_team(tmp_path)

    roll_out = rollouts._roll_out

    def all_right(*args, **options):
        out = roll_out(*args, **options)
        return out.replace(right=jax.tree.map(jnp.ones_like, out.right))

    monkeypatch.setattr(rollouts, "_roll_out", all_right)
    shape = (len(QUESTIONS), 2, LATENT_STEPS)
    targets = Targets(ids=np.ones(shape, np.int32), valid=np.ones(shape, bool))
    data = TrainingData(
        prompts=encode(team, QUESTIONS, LATENT_STEPS),
        targets={role: targets for role in team.system.topology.order},
    )
    whole, wrapped = (
        rollout_pairs(team, links, data, rounds=2, batch_size=size) for size in (3, 2)
    )
    for role in team.system.topology.order:
        assert len(whole[role][0]) == len(wrapped[role][0]) == np.prod(shape)
        for ours, theirs in zip(whole[role], wrapped[role], strict=True):
            np.testing.assert_allclose(ours.sum(0), theirs.sum(0), rtol=1e-4, atol=1e-3)
