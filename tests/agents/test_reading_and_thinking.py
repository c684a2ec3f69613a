"""Reading and thinking, against the definition: every step reads the whole input."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems import CONFIGS, LINEAR, naive_thoughts, random_agent

from rmas_jax.agents.reading import PromptInput, place, read_body, read_prefix
from rmas_jax.agents.thinking import think
from rmas_jax.links import apply_link
from rmas_jax.models.cache import empty_state
from rmas_jax.prompts import left_pad

ROLES = sorted(CONFIGS)  # a Qwen3, a Llama and a Gemma-3
TOLERANCE = 1e-4
# Per row: prefix, tokens before the slot, tokens after it; one row has no prefix, one no lead.
ROWS = (
    ([3, 1, 4, 1, 5], [9], [2, 6, 5]),
    ([], [3, 5, 8, 9], [7]),
    ([9, 3], [], [2, 3, 8, 4]),
)
SLOTS = 2


def blocks(rows=ROWS, *, spare: int = 0) -> dict:
    """Rows -> arrays for `read_prefix` and `read_body`; `spare` more pads in each block."""
    columns = list(zip(*rows, strict=True))
    padded = [left_pad(c, max(map(len, c)) + spare) for c in columns]
    (prefix_ids, prefix_valid), (lead, lead_valid), (suffix, suffix_valid) = padded
    slot = np.zeros((len(rows), SLOTS), np.int32)
    return {
        "prefix_ids": prefix_ids,
        "prefix_valid": prefix_valid,
        "ids": np.concatenate([lead, slot, suffix], axis=1),
        "valid": np.concatenate([lead_valid, slot == 0, suffix_valid], axis=1),
        "slot_index": (-1,) * lead.shape[1] + (0, 1) + (-1,) * suffix.shape[1],
    }


def received_by(role: str, batch: int = len(ROWS)) -> np.ndarray:
    rng = np.random.default_rng(5)
    return rng.normal(size=(batch, SLOTS, CONFIGS[role].width)).astype(np.float32)


def prompt_of(agent, arrays, received, prefix=None):
    """What the agent reads, with its prefix read."""
    if prefix is None:
        prefix = read_prefix(agent, arrays["prefix_ids"], arrays["prefix_valid"])
    return PromptInput(prefix, arrays["ids"], arrays["valid"], received, arrays["slot_index"])


def rollout(config, agent, link, received, arrays, *, steps):
    """Thoughts [B, M, D] by the code under test."""
    hidden, cache = read_body(agent, prompt_of(agent, arrays, received))
    feed = functools.partial(apply_link, config, link)
    return think(agent, feed, hidden, cache, steps=steps).thoughts


@functools.partial(jax.jit, static_argnames=("config", "slot_index", "steps"))
def _rollout(config, agent, link, received, arrays, *, slot_index, steps):
    arrays = arrays | {"slot_index": slot_index}
    return rollout(config, agent, link, received, arrays, steps=steps)


def run(tiny, role, arrays, received, *, steps):
    arrays = dict(arrays)
    slot_index = arrays.pop("slot_index")
    return _rollout(
        tiny.system.inner[role],
        tiny.agents[role],
        tiny.links.inner[role],
        received,
        arrays,
        slot_index=slot_index,
        steps=steps,
    )


@functools.cache
def expected(tiny, role, steps):
    vectors = received_by(role)
    rows = [
        np.concatenate([tiny.embed(role, prefix + lead), vectors[i], tiny.embed(role, suffix)])
        for i, (prefix, lead, suffix) in enumerate(ROWS)
    ]
    feed = functools.partial(apply_link, tiny.system.inner[role], tiny.links.inner[role])
    return naive_thoughts(tiny.agents[role], feed, rows, steps)


@pytest.mark.parametrize(
    ("role", "steps"),
    [(role, 3) for role in ROLES] + [("solver", 1), ("critic", 2), ("planner", 4)],
)
def test_cached_thoughts_equal_reading_everything_anew(tiny_system, role, steps):
    naive = expected(tiny_system, role, 4)[:, :steps]
    ours = run(tiny_system, role, blocks(), received_by(role), steps=steps)
    np.testing.assert_allclose(ours, naive, rtol=TOLERANCE, atol=TOLERANCE)
    moves = np.abs(np.diff(naive, axis=1)).max(axis=(0, 2))
    assert np.all(moves > 0.1)  # no step could be left out


@pytest.mark.parametrize("role", ROLES)
def test_batch_of_one_equals_batch_of_many(tiny_system, role):
    vectors = received_by(role)
    many = run(tiny_system, role, blocks(), vectors, steps=3)
    alone = run(tiny_system, role, blocks(ROWS[2:]), vectors[2:], steps=3)
    np.testing.assert_allclose(alone[0], many[2], rtol=TOLERANCE, atol=TOLERANCE)


def test_linear_layers_carry_their_state_from_prefix_to_thoughts():
    agent = random_agent(LINEAR, 0)
    arrays, steps = blocks(), 3
    received = np.random.default_rng(5).normal(size=(len(ROWS), SLOTS, 12)).astype(np.float32)
    turn = np.random.default_rng(6).normal(size=(12, 12)).astype(np.float32) / 4

    def feed(hidden):
        return hidden @ turn

    @functools.partial(jax.jit, static_argnames="forgetful")
    def run(agent, received, forgetful=False):
        prompt = prompt_of(agent, arrays, received)
        if forgetful:
            state = empty_state(LINEAR, len(ROWS))
            prompt = prompt.replace(prefix=prompt.prefix.replace(state=state))
        hidden, cache = read_body(agent, prompt)
        return think(agent, feed, hidden, cache, steps=steps).thoughts

    table = np.asarray(agent.params["embedding"])
    rows = [
        np.concatenate([table[prefix + lead], received[i], table[suffix]])
        for i, (prefix, lead, suffix) in enumerate(ROWS)
    ]
    naive = naive_thoughts(agent, feed, rows, steps)
    np.testing.assert_allclose(run(agent, received), naive, rtol=TOLERANCE, atol=TOLERANCE)
    assert np.all(np.abs(np.diff(naive, axis=1)).max(axis=(0, 2)) > 0.1)
    without = np.abs(run(agent, received, forgetful=True) - naive).max(axis=(1, 2))
    assert without[0] > 0.01 and without[1] < TOLERANCE  # the second row has no prefix


def test_a_batch_without_any_prefix(tiny_system):
    rows = [([], prefix + lead, suffix) for prefix, lead, suffix in ROWS]
    vectors = received_by("solver")
    ours = run(tiny_system, "solver", blocks(rows), vectors, steps=1)
    naive = expected(tiny_system, "solver", 4)[:, :1]
    np.testing.assert_allclose(ours, naive, rtol=TOLERANCE, atol=TOLERANCE)


def test_pads_and_tokens_at_slots_change_nothing(tiny_system):
    """Neither how many nor of what content."""
    arrays, vectors = blocks(), received_by("solver")
    plain = run(tiny_system, "solver", arrays, vectors, steps=3)
    more = run(tiny_system, "solver", blocks(spare=3), vectors, steps=3)
    np.testing.assert_allclose(more, plain, rtol=TOLERANCE, atol=TOLERANCE)
    other = dict(arrays)
    other["prefix_ids"] = np.where(arrays["prefix_valid"], arrays["prefix_ids"], 17)
    is_token = arrays["valid"] & (np.asarray(arrays["slot_index"]) < 0)[None]
    other["ids"] = np.where(is_token, arrays["ids"], 17)
    assert (other["ids"] != arrays["ids"]).sum() > 6
    np.testing.assert_array_equal(run(tiny_system, "solver", other, vectors, steps=3), plain)
    other["ids"] = np.where(is_token, 17, arrays["ids"])
    assert np.abs(run(tiny_system, "solver", other, vectors, steps=3) - plain).max() > 0.1


def test_received_vectors_stand_where_the_slot_index_says():
    embeds = np.arange(2 * 5 * 3, dtype=np.float32).reshape(2, 5, 3)
    received = -1 - np.arange(2 * 3 * 3, dtype=np.float32).reshape(2, 3, 3)
    placed = np.asarray(place(embeds, received, (-1, 2, 0, -1, 1)))
    np.testing.assert_array_equal(placed[:, [1, 2, 4]], received[:, [2, 0, 1]])
    np.testing.assert_array_equal(placed[:, [0, 3]], embeds[:, [0, 3]])


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_as_many_vectors_come_as_there_are_places(count):
    embeds, received = np.ones((2, 5, 3), np.float32), np.ones((2, count, 3), np.float32)
    with pytest.raises(ValueError, match=f"slots must hold {count} vectors, got 3: .*slot_width"):
        place(embeds, received, (-1, 0, 1, 2, -1))


def test_nothing_received_leaves_the_embeddings_and_their_dtype():
    embeds = jnp.ones((2, 4, 3), jnp.bfloat16)
    nothing = np.zeros((2, 0, 3), np.float32)
    np.testing.assert_array_equal(place(embeds, nothing, (-1,) * 4), embeds)
    placed = place(embeds, np.zeros((2, 1, 3), np.float32), (-1, 0, -1, -1))
    assert placed.dtype == jnp.bfloat16 and not np.any(placed[:, 1])


def test_a_prefix_serves_many_bodies(tiny_system):
    """Reading a body leaves the prefix as it was, and equals reading both at once."""
    arrays = blocks()

    @jax.jit
    def read(agent, received):
        prefix = read_prefix(agent, arrays["prefix_ids"], arrays["prefix_valid"])

        def body(received):
            hidden, cache = read_body(agent, prompt_of(agent, arrays, received, prefix))
            return hidden, cache.past[0], cache.used, cache.tail.valid

        return prefix.past[0], body(received), body(-received), body(received)

    before, first, other, again = read(tiny_system.agents["solver"], received_by("solver"))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert np.abs(first[0] - other[0]).max() > 0.1
    jax.tree.map(np.testing.assert_array_equal, first[1], before)
    assert first[2] == 0 and first[3].shape == (len(ROWS), 0)  # nothing written, no room


def scalar_of_thoughts(tiny, role, weights):
    def scalar(link, agent, received):
        thoughts = rollout(tiny.system.inner[role], agent, link, received, blocks(), steps=3)
        return (thoughts * weights).sum()

    return scalar


def test_gradient_of_thoughts_agrees_with_finite_differences(tiny_system, float64):
    role = "solver"
    agent, link = float64((tiny_system.agents[role], tiny_system.links.inner[role]))
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(len(ROWS), 3, CONFIGS[role].width))
    received = received_by(role).astype(np.float64)
    scalar = scalar_of_thoughts(tiny_system, role, weights)
    value_and_grad = jax.jit(jax.value_and_grad(scalar, (0, 2)))
    _, grads = value_and_grad(link, agent, received)
    assert all(g.dtype == np.float64 for g in jax.tree.leaves(grads))
    assert all(np.abs(g).max() > 1e-3 for g in jax.tree.leaves(grads))
    for _ in range(3):
        toward = jax.tree.map(lambda x: rng.normal(size=x.shape), (link, received))
        values = []
        for step in (1e-6, -1e-6):
            moved = jax.tree.map(lambda x, t, s=step: x + s * t, (link, received), toward)
            values.append(value_and_grad(moved[0], agent, moved[1])[0])
        products = jax.tree.map(lambda g, t: (g * t).sum(), grads, toward)
        slope = sum(jax.tree.leaves(products))
        np.testing.assert_allclose((values[0] - values[1]) / 2e-6, slope, rtol=1e-6)


def test_thinking_composes_under_jit_grad_and_vmap(tiny_system):
    received = received_by("critic")
    weights = np.random.default_rng(0).normal(size=(3, 3, 12)).astype(np.float32)
    scalar = scalar_of_thoughts(tiny_system, "critic", weights)
    link, agent = tiny_system.links.inner["critic"], tiny_system.agents["critic"]
    scales = np.array([1.0, 0.5, -1.0], np.float32)
    several = jax.tree.map(lambda p: jnp.stack([s * p for s in scales]), link)
    value_and_grad = jax.jit(jax.value_and_grad(scalar))
    mapped = jax.jit(jax.vmap(jax.value_and_grad(scalar), (0, None, None)))
    values, grads = mapped(several, agent, received)
    assert np.ptp(values) > 0.1
    for i in range(len(scales)):
        one, its_grads = value_and_grad(jax.tree.map(lambda p, i=i: p[i], several), agent, received)
        np.testing.assert_allclose(values[i], one, rtol=1e-4)
        for ours, alone in zip(jax.tree.leaves(grads), jax.tree.leaves(its_grads), strict=True):
            np.testing.assert_allclose(ours[i], alone, rtol=1e-3, atol=1e-4)
