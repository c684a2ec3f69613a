"""Training on several devices is training on one: the same numbers, however arrays are split."""

from __future__ import annotations

import functools
import json

import flat
import jax
import numpy as np
import pytest
from systems import build_pattern
from training_worker import load_agents, write_agents

from rmas_jax import sharding
from rmas_jax.config import InnerConfig, OuterConfig, PhaseConfig
from rmas_jax.rounds.channels import LatentChannel
from rmas_jax.rounds.recursion import solve
from rmas_jax.rounds.supervision import Targets
from rmas_jax.sharding import make_mesh, put_batch
from rmas_jax.team import Team
from rmas_jax.training.curves import Curves
from rmas_jax.training.inner.loop import run_inner_loop
from rmas_jax.training.outer.loop import run_phase
from rmas_jax.training.outer.step import outer_loss

PHASE = PhaseConfig(
    name="sharded",
    latents="teacher_forced",  # quicker to compile; the validation after it is a rollout
    rounds=2,
    steps=1,
    batch_size=8,
    learning_rate=1.0,  # with plain descent, the links move by their gradient
    warmup_steps=0,
    optimizer="sgd",
    schedule="constant",
    max_grad_norm=1e9,
    role_text_weight=1.0,
    train_inner_links=True,
)
MESHES = {"1x1x1": (1, 1, 1), "2x2x2": (2, 2, 2), "8x1x1": (8, 1, 1)}


@pytest.fixture(scope="module")
def tiny():
    return build_pattern("distillation")


@pytest.fixture(scope="module")
def team_on(tiny, tmp_path_factory):
    """Function from a name in `MESHES` to the team, loaded from files onto that mesh."""
    folder = tmp_path_factory.mktemp("agents")
    write_agents(folder)

    @functools.cache
    def load(name: str) -> Team:
        sizes = MESHES[name]
        mesh = make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])
        return tiny.team(load_agents(folder, tiny, mesh), mesh)

    return load


@pytest.fixture(scope="module")
def data(tiny):
    questions = [" ".join("where does it end"[: 3 + i].split()) for i in range(8)]
    ids = np.random.default_rng(5).integers(0, 37, (8, 2, 4)).astype(np.int32)
    target = Targets(ids=ids, valid=np.ones(ids.shape, bool))
    return flat.encoded_items(tiny.prompt_tokens(questions), {role: target for role in tiny.agents})


def train(team, links, data, directory):
    """The loss of the one step and of the validation after it, and the links."""
    directory.mkdir()
    trained = run_phase(
        team,
        links,
        data,
        data,
        OuterConfig(phases=(PHASE,)),
        PHASE,
        key=jax.random.key(1),
        directory=directory / "checkpoints",
        curves=Curves(directory / "metrics.jsonl"),
        progress=False,
    )
    rows = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows], trained


def test_a_step_is_the_same_on_every_mesh(tiny, team_on, data, tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "SPLIT_STATE", 100)  # these links are small
    losses, links = {}, {}
    for name in MESHES:
        losses[name], links[name] = train(team_on(name), tiny.links, data, tmp_path / name)
    leaves = {name: jax.tree.leaves(tree) for name, tree in links.items()}
    split = {name: sum(not x.sharding.is_fully_replicated for x in leaves[name]) for name in MESHES}
    assert split["1x1x1"] == split["8x1x1"] == 0 < split["2x2x2"]
    start = jax.tree.leaves(tiny.links)
    gradients = [one - old for one, old in zip(leaves["1x1x1"], start, strict=True)]
    assert min(np.abs(gradient).max() for gradient in gradients) > 1e-4
    largest = max(np.abs(gradient).max() for gradient in gradients)
    for name in ("2x2x2", "8x1x1"):
        np.testing.assert_allclose(losses[name], losses["1x1x1"], rtol=1e-5)
        for ours, one in zip(leaves[name], leaves["1x1x1"], strict=True):
            np.testing.assert_allclose(ours, one, atol=1e-5 * max(1, largest))
    # The control: with one of the eight items twice, the numbers are others.
    other = data.rows([*range(7), 0])
    losses_of_other, _ = train(team_on("1x1x1"), tiny.links, other, tmp_path / "other")
    assert abs(losses_of_other[0] - losses["1x1x1"][0]) > 1e-3


@pytest.mark.long  # tests/agents/test_policies.py has those of a turn
def test_gradients_of_rollouts_are_the_same_on_a_mesh(tiny, team_on, data, float64):
    """In float64: a rollout magnifies the rounding errors of float32, and then these differ."""
    links = float64(tiny.links)
    phase = PhaseConfig(
        name="rollouts",
        latents="on_policy",
        rounds=2,
        steps=1,
        batch_size=8,
        learning_rate=1.0,
        round_weights=(0.5, 1.0),
    )

    def gradient(name, batch):
        team = team_on(name)

        @jax.jit
        @jax.grad
        def of(links, agents, batch):
            return outer_loss(tiny.system, phase, agents, links, batch)[0]

        on_mesh = put_batch(batch.batch(), team.mesh)
        return jax.tree.leaves(of(links, float64(team.agents), on_mesh))

    one = gradient("1x1x1", data)
    assert min(np.abs(gradient).max() for gradient in one) > 1e-4
    for ours, expected in zip(gradient("2x2x2", data), one, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-10)
    other = gradient("1x1x1", data.rows([0, *range(7)]))  # the control: one of the items twice
    assert max(np.abs(a - b).max() for a, b in zip(other, one, strict=True)) > 1e-3


def test_the_inner_loop_reads_with_sharded_agents(tiny, team_on, data, tmp_path):
    config = InnerConfig(steps=3, batch_size=8, learning_rate=1e-2, warmup_steps=1)
    ids = np.random.default_rng(1).integers(0, 37, (6, 9)).astype(np.int32)  # six do not divide
    target = np.arange(9)[None] >= np.full((6, 1), 5)
    dialogues = flat.dialogues_of(ids, np.ones((6, 9), bool), target)
    one, many = (
        run_inner_loop(
            team_on(name),
            tiny.links,
            {role: dialogues for role in tiny.agents},
            data,
            config,
            rounds=2,
            key=jax.random.key(0),
            curves=Curves(tmp_path / name),
            align_outer=False,
            progress=False,
        )
        for name in ("1x1x1", "2x2x2")
    )
    for ours, expected, start in zip(
        *(jax.tree.leaves(links.inner) for links in (many, one, tiny.links)), strict=True
    ):
        assert np.abs(expected - start).max() > 1e-3
        np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_answers_of_sharded_agents(tiny, team_on, data):
    def answer(name):
        @jax.jit
        def program(agents, links):
            channel = LatentChannel(tiny.system, links)
            return solve(
                tiny.system,
                agents,
                channel,
                data.batch().prompts,
                rounds=2,
                end_tokens=(3,),
                max_tokens=6,
            )

        return program(team_on(name).agents, tiny.links).tokens

    one = answer("1x1x1")
    assert len(np.unique(one)) > 3
    np.testing.assert_array_equal(answer("2x2x2"), one)
