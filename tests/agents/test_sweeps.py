"""Parallel thinking against sequential thinking: thoughts, cache, gradients, and what ends it."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems import CONFIGS, LINEAR, random_agent

from rmas_jax.agents.agent import Agent
from rmas_jax.agents.reading import PromptInput, read_body, read_prefix
from rmas_jax.agents.sweeps import Before, windows
from rmas_jax.agents.thinking import think
from rmas_jax.config import SweepConfig
from rmas_jax.models import abstract_agent
from rmas_jax.planning.hlo import program_cost
from rmas_jax.prompts import left_pad

STEPS, BATCH, SLOTS = 6, 3, 2  # thoughts, rows, received vectors
TOLERANCE = 1e-5
DECODERS = {
    "full attention": CONFIGS["planner"],
    "sliding": CONFIGS["solver"],
    "linear layers": LINEAR,
    "loops": dataclasses.replace(CONFIGS["critic"], loops=2),
}
PREFIXES, BODIES = ([3, 1, 4, 1, 5], [], [9, 3]), ([9, 2, 6], [7], [2, 3, 8, 4])  # ragged


@dataclasses.dataclass(frozen=True)
class Case:
    """An agent, its inner link, what it receives, and weights of a scalar of its thoughts."""

    agent: object
    turn: np.ndarray
    received: np.ndarray
    weights: np.ndarray


@functools.cache
def case(name: str) -> Case:
    config, rng = DECODERS[name], np.random.default_rng(0)
    width, agent = config.width, random_agent(config, 0)
    # Smaller weights than elsewhere: a rollout magnifies rounding errors.
    params = jax.tree.map(lambda x: 0.5 * x, agent.params)
    return Case(
        agent.replace(params=params),
        rng.normal(size=(width, width)).astype(np.float32) / width**0.5,
        rng.normal(size=(BATCH, SLOTS, width)).astype(np.float32),
        rng.normal(size=(BATCH, STEPS, width)).astype(np.float32),
    )


def prompt_of(agent, received, rows=(0, 1, 2)):
    prefix_ids, prefix_valid = left_pad(PREFIXES)
    ids, valid = left_pad(BODIES)
    slots, of = np.zeros((BATCH, SLOTS), np.int32), list(rows)
    return PromptInput(
        read_prefix(agent, prefix_ids[of], prefix_valid[of]),
        np.concatenate([slots, ids], axis=1)[of],
        np.concatenate([slots == 0, valid], axis=1)[of],
        received,
        (*range(SLOTS), *(-1,) * ids.shape[1]),
    )


@functools.partial(jax.jit, static_argnames=("sweeps", "rows"))
def rollout(agent, turn, received, before=None, *, sweeps=None, rows=(0, 1, 2)):
    """Thoughts after ragged prompts with received vectors, with their cache and sweeps."""
    hidden, cache = read_body(agent, prompt_of(agent, received, rows))

    def feed(hidden):
        return jnp.tanh(hidden @ turn)

    return think(agent, feed, hidden, cache, steps=STEPS, sweeps=sweeps, before=before)


@functools.partial(jax.jit, static_argnames="sweeps")
def differentiated(agent, turn, received, weights, *, sweeps=None):
    """Gradients with respect to the link and to the received vectors, and the rollout."""

    def scalar(turn, received):
        made = rollout(agent, turn, received, sweeps=sweeps)
        return (made.thoughts * weights).sum(), made

    return jax.grad(scalar, argnums=(0, 1), has_aux=True)(turn, received)


@functools.cache
def run(name, sweeps=None):
    c = case(name)
    return differentiated(c.agent, c.turn, c.received, c.weights, sweeps=sweeps)


def content(cache):
    """Of the thoughts that were fed back: keys, values, positions [n, ...], and linear states."""
    tail, there = cache.tail, np.asarray(cache.tail.valid)
    kept = [np.moveaxis(x, (1, 3), (0, 1))[there] for x in (tail.keys, tail.values)]
    return [*kept, tail.positions[there], cache.next_position, *jax.tree.leaves(cache.state)]


def differences(ours, expected):
    """The largest of each array, relative to its largest number."""
    return [
        np.abs(np.asarray(a, np.float32) - b).max() / np.abs(np.asarray(b, np.float32)).max()
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True)
    ]


@pytest.mark.parametrize(
    ("name", "window"), [*((name, 3) for name in DECODERS), ("full attention", STEPS)]
)
def test_as_many_sweeps_as_thoughts_are_sequential_thinking(name, window):
    """In values, cache and gradients; a sweep less is not."""
    sweeps = SweepConfig(window=window)
    _, width = windows(STEPS - 1, window)
    of_sequence, expected = run(name)
    of_sweeps, ours = run(name, sweeps)
    assert np.abs(np.diff(expected.thoughts, axis=1)).max(axis=(0, 2)).min() > 0.1  # all differ
    assert max(differences(ours.thoughts, expected.thoughts)) < TOLERANCE
    assert max(differences(content(ours.cache), content(expected.cache))) < TOLERANCE
    assert max(differences(of_sweeps, of_sequence)) < TOLERANCE
    of_fewer, fewer = run(name, dataclasses.replace(sweeps, most=width - 1, gradient=width - 1))
    assert max(differences(fewer.thoughts, expected.thoughts)) > 1e-2
    assert max(differences(of_fewer, of_sequence)) > 1e-2


def test_what_is_settled_ends_the_sweeps_of_its_item():
    """A weak link: an agent whose thoughts settle within a few sweeps."""
    c = case("full attention")
    tamed = dataclasses.replace(c, turn=0.1 * c.turn)
    expected = rollout(tamed.agent, tamed.turn, tamed.received).thoughts
    found = {}
    for tolerance, is_known in ((0.3, False), (1e-2, False), (1e-2, True)):
        found[tolerance, is_known] = rollout(
            tamed.agent,
            tamed.turn,
            tamed.received,
            Before(expected, is_known),
            sweeps=SweepConfig(window=STEPS, tolerance=tolerance),
        )
    loose, tight, known = found.values()
    assert 1 < loose.sweeps.max() < tight.sweeps.max() < STEPS - 1
    errors = [differences(out.thoughts, expected)[0] for out in (loose, tight)]
    assert errors[0] > 1e-2 > errors[1]
    # From the thoughts themselves, one sweep finds that nothing is left to do.
    assert known.sweeps.max() == 1


def test_an_item_does_not_depend_on_its_batch():
    sweeps = SweepConfig(window=STEPS, tolerance=0.3)
    c = case("linear layers")
    many = rollout(c.agent, 0.3 * c.turn, c.received, sweeps=sweeps)
    assert len(set(many.sweeps.tolist())) > 1
    for i in range(BATCH):
        one = slice(i, i + 1)
        alone = rollout(c.agent, 0.3 * c.turn, c.received[one], sweeps=sweeps, rows=(i,))
        assert alone.sweeps == many.sweeps[one]
        assert max(differences(alone.thoughts, many.thoughts[one])) < TOLERANCE


@pytest.mark.parametrize("last", [1, 2])
def test_a_gradient_passes_through_the_last_sweeps(last):
    """Against sweeps that JAX differentiates one after another, from settled thoughts."""
    c = case("full attention")
    _, expected = run("full attention")

    def scalar(turn, received):
        hidden, cache = read_body(c.agent, prompt_of(c.agent, received))
        thoughts = expected.thoughts
        for _ in range(last):
            fed = jnp.tanh(jnp.concatenate([hidden[:, None], thoughts[:, 1:-1]], axis=1) @ turn)
            out, _ = c.agent.read(
                fed, jnp.ones(fed.shape[:2], bool), c.agent.with_room(cache, STEPS - 1)
            )
            thoughts = jnp.concatenate([hidden[:, None], out], axis=1)
        return (thoughts * c.weights).sum()

    through_last = jax.jit(jax.grad(scalar, (0, 1)))(c.turn, c.received)
    ours, more = (
        run("full attention", SweepConfig(window=STEPS, gradient=count))[0]
        for count in (last, last + 1)
    )
    assert max(differences(ours, through_last)) < TOLERANCE
    assert max(differences(more, through_last)) > 1e-2


def test_a_plan_counts_the_most_sweeps():
    """The bound of the loop is in its condition, though what ends it is data."""
    config = DECODERS["full attention"]
    agent = Agent(*abstract_agent(config))
    hidden = jax.ShapeDtypeStruct((BATCH, config.width), jnp.float32)
    cache = jax.eval_shape(lambda: agent.seal(agent.empty_cache(BATCH, 4), 0))

    def flops(most):
        sweeps = SweepConfig(window=STEPS, most=most, tolerance=0.1)

        def thoughts(*args):
            agent, hidden, cache = args
            return think(agent, jnp.tanh, hidden, cache, steps=STEPS, sweeps=sweeps).thoughts

        lowered = jax.jit(thoughts).lower(agent, hidden, cache)
        return program_cost(lowered.compile().as_text()).flops

    assert flops(4) == pytest.approx(2 * flops(2), rel=0.05)
