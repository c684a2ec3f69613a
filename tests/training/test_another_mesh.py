"""A phase that was stopped on one mesh goes on on another, to the same links up to rounding."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from systems import build_pattern
from training_worker import ask_at, train, write_agents

from rmas_jax import sharding
from rmas_jax.host.preemption import PreemptedError, sigterm_noted

STEPS, ASKED_AFTER = 8, 4  # the step that runs then is the last before the end
MESHES = {1: (1, 1, 1), 2: (1, 2, 1), 4: (2, 2, 1)}  # devices -> data, fsdp, model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Has the agents, and the runs that were stopped."""
    folder = tmp_path_factory.mktemp("meshes")
    write_agents(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def split_links():
    """The state is split over the axis fsdp, as that of larger links is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "SPLIT_STATE", 100)
        yield


def trained(folder, name, devices, **options):
    """The leaves of the links after the phase; with momentum there is a state to restore."""
    how = {"optimizer": "sgd(momentum=0.9)", **options}
    return jax.tree.leaves(train(folder, folder / name, MESHES[devices], STEPS, **how))


@pytest.fixture(scope="module")
def undisturbed(folder):
    return trained(folder, "undisturbed", 1)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(4, 2, marks=pytest.mark.slow),
        pytest.param(4, 1, marks=pytest.mark.long),
        pytest.param(1, 4, marks=pytest.mark.long),
    ],
)
def test_a_stopped_phase_ends_alike_on_another_mesh(folder, undisturbed, before, after):
    name = f"from-{before}-to-{after}"
    with sigterm_noted(), pytest.raises(PreemptedError, match=f"after step {ASKED_AFTER} of"):
        trained(folder, name, before, hooks=[ask_at(ASKED_AFTER)])
    steps = []
    found = trained(folder, name, after, hooks=[lambda event: steps.append(event.done)])
    assert steps == [*range(ASKED_AFTER + 2, STEPS + 1)]  # none again
    begun = jax.tree.leaves(build_pattern("distillation").links)
    moved = [np.abs(x - start).max() for x, start in zip(undisturbed, begun, strict=True)]
    assert max(moved) > 0.01  # much more than the tolerance
    for ours, expected in zip(found, undisturbed, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5)
