"""`runtime.layers`: agents that answer with unrolled layers, and where `auto` has them."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from rmas_jax.config import ConfigError, load_config
from rmas_jax.runs import resources
from rmas_jax.runs.resources import answering_team, load_run_team, with_mesh


def team_of(layers, **options):
    config = load_config("quickstart", [f"runtime.layers={layers}"])
    return answering_team(load_run_team(config, **options), config)


def unrolled(team):
    return {role: agent.decoder.unroll_layers for role, agent in team.agents.items()}


def test_an_unrolled_team_reads_as_a_scanned_one():
    scanned, apart = team_of("scanned"), team_of("unrolled")
    assert set(unrolled(scanned).values()) == {False} and set(unrolled(apart).values()) == {True}
    prompt = scanned.encode(["Who is it?", "Which of the two, and why?"])["solver"]
    first, second = (
        agent.read(agent.embed(prompt.prefix_ids), prompt.prefix_valid)[0]
        for agent in (scanned.agents["solver"], apart.agents["solver"])
    )
    np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-5)


def test_auto_depends_on_the_bytes_of_a_layer(monkeypatch):
    assert set(unrolled(team_of("auto")).values()) == {False}
    sizes = {role: agent.layer_bytes for role, agent in team_of("auto").agents.items()}
    limit = sorted(sizes.values())[-1]  # of the largest agent
    monkeypatch.setitem(resources.UNROLLED, jax.default_backend(), limit)
    assert unrolled(team_of("auto")) == {role: size >= limit for role, size in sizes.items()}


def test_a_copy_of_the_weights_must_have_room():
    agent = team_of("scanned").agents["solver"]
    size = sum(x.nbytes for x in jax.tree.leaves(agent.params))

    def has_room(stats):
        device = SimpleNamespace(memory_stats=lambda: stats)
        return resources._has_room(device, agent)

    assert has_room(None) and has_room({"bytes_limit": 3 * size, "bytes_in_use": size})
    assert not has_room({"bytes_limit": 3 * size, "bytes_in_use": size + 1})


def test_a_plan_has_the_shapes_of_the_run():
    def shapes(team):
        arrays = {role: jax.tree.leaves(agent.params) for role, agent in team.agents.items()}
        return {
            role: [(x.shape, x.dtype, len(x.sharding.device_set)) for x in of]
            for role, of in arrays.items()
        }

    assert shapes(team_of("unrolled", is_abstract=True)) == shapes(team_of("unrolled"))


def test_several_devices_have_their_layers_in_a_loop():
    changes = ["runtime.mesh.fsdp=null", "outer.phases.0.batch_size=8"]
    config = with_mesh(load_config("quickstart", changes))
    team = answering_team(load_run_team(config, is_abstract=True), config)
    assert set(unrolled(team).values()) == {False}
    with pytest.raises(ConfigError, match=r"runtime\.layers must be auto or scanned on 8 devices"):
        with_mesh(load_config("quickstart", [*changes, "runtime.layers=unrolled"]))
