"""Replaced messages, against the definition: the receiver's prompt with other vectors, or none."""

import functools
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems import (
    LATENT_STEPS,
    QUESTIONS,
    build_pattern,
    naive_thoughts,
    read_whole,
    run_naively,
)

from rmas_jax.agents.reading import read_body
from rmas_jax.links import apply_link
from rmas_jax.prompts import encode_stage
from rmas_jax.rounds.channels import LatentChannel
from rmas_jax.rounds.interventions import Intervention
from rmas_jax.rounds.messages import (
    arrived_messages,
    noise_messages,
    other_items,
    other_messages,
    own_messages,
)
from rmas_jax.rounds.recursion import listen
from rmas_jax.rounds.stages import begin
from rmas_jax.rounds.trace import trace_rounds
from rmas_jax.topology import edge_name

ROUNDS = 3
TOLERANCE = 1e-4


@functools.partial(jax.jit, static_argnames="system")
def last_state(system, agents, links, prompts, rounds, intervention):
    """The answerer's hidden states [B, D] at the end of its prompt."""
    channel = LatentChannel(system, links)
    outcome = listen(system, agents, channel, prompts, rounds=rounds, intervention=intervention)
    return read_body(agents[system.topology.answerer], outcome.prompt)[0]


def intervention_of(tiny, *, replaced=(), absent=(), seed=0):
    """Random messages on all edges; (edge name, round) pairs in which they arrive, or none does."""
    random, system = np.random.default_rng(seed), tiny.system
    names = {edge_name(edge): edge for edge in system.topology.edges}
    shape = (ROUNDS, len(QUESTIONS), system.latent_steps)
    messages = {
        name: jnp.asarray(random.normal(size=(*shape, system.width(edge[1]))), jnp.float32)
        for name, edge in names.items()
    }
    chosen = [
        {name: jnp.array([(name, r) in pairs for r in range(ROUNDS)]) for name in names}
        for pairs in (replaced, absent)
    ]
    return Intervention(messages, *chosen)


def by_definition(tiny, intervention, rounds=ROUNDS):
    def deliver(edge, index, vectors):
        name = edge_name(edge)
        if intervention.is_absent[name][index]:
            return vectors[:, :0]
        if intervention.is_replaced[name][index]:
            return np.asarray(intervention.messages[name][index])
        return vectors

    bodies = run_naively(tiny, rounds=rounds, deliver=deliver)[2]
    answerer = tiny.agents[tiny.system.topology.answerer]
    return np.stack([states[-1] for states in read_whole(answerer, bodies)])


def states(tiny, intervention, rounds=ROUNDS):
    prompts = tiny.prompts()
    return last_state(tiny.system, tiny.agents, tiny.links, prompts, rounds, intervention)


CHANGES = [
    {"replaced": [("planner->critic", 2)]},
    {"replaced": [("critic->solver", 2), ("solver->planner", 1)]},
    {"absent": [("planner->critic", 1)]},
    {"absent": [("solver->planner", 2)], "replaced": [("critic->solver", 0)]},
    {"absent": [("critic->solver", 2)]},
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_receiver_reads_what_the_intervention_delivers(tiny_system, change):
    given = intervention_of(tiny_system, **change)
    ours, plain = states(tiny_system, given), states(tiny_system, None)
    np.testing.assert_allclose(ours, by_definition(tiny_system, given), atol=TOLERANCE)
    assert np.abs(ours - plain).max(axis=1).min() > 100 * TOLERANCE  # every item is affected


@pytest.mark.parametrize(
    ("change", "rounds"),
    [
        ({}, ROUNDS),
        ({"replaced": [("critic->solver", 1)]}, 1),  # a round that is not run
        ({"absent": [("solver->planner", 0)]}, ROUNDS),  # nothing has arrived yet
    ],
)
def test_what_does_not_arrive_changes_nothing(tiny_system, change, rounds):
    given = intervention_of(tiny_system, **change)
    expected = states(tiny_system, None, rounds)
    np.testing.assert_allclose(states(tiny_system, given, rounds), expected, atol=1e-6)


def everywhere(tiny):
    return [(edge_name(e), r) for e in tiny.system.topology.edges for r in range(ROUNDS)]


def test_recorded_messages_give_what_they_gave(tiny_system):
    tiny = tiny_system
    channel = LatentChannel(tiny.system, tiny.links)
    trace = trace_rounds(tiny.system, tiny.agents, channel, tiny.prompts(), rounds=ROUNDS)
    messages = arrived_messages(tiny.system.topology, trace.stages, rounds=ROUNDS)
    given = intervention_of(tiny, replaced=everywhere(tiny))
    ours = states(tiny, given.replace(messages=messages))
    np.testing.assert_allclose(ours, states(tiny, None), atol=TOLERANCE)
    swapped = other_messages(messages, np.array([1, 2, 0]))
    other = states(tiny, given.replace(messages=swapped))
    assert np.abs(other - ours).max(axis=1).min() > 100 * TOLERANCE


def test_nothing_at_all_arrives_as_without_latents(tiny_system):
    tiny = tiny_system
    given = intervention_of(tiny, absent=everywhere(tiny))
    silent = tiny.system.replace(latent_steps=0)
    prompts = {
        role: encode_stage(tiny.tokenizer, prompt, QUESTIONS, slot_width=0)
        for role, prompt in tiny.role_prompts.items()
    }
    expected = last_state(silent, tiny.agents, tiny.links, prompts, ROUNDS, None)
    np.testing.assert_allclose(states(tiny, given), expected, atol=TOLERANCE)


def test_slots_of_several_senders_are_told_apart():
    tiny = build_pattern("mixture")
    edges = [edge_name(edge) for edge in tiny.system.topology.edges]
    into = [name for name in edges if name.endswith("->summarizer")]
    assert len(into) == 3
    for name in into:
        for change in ({"replaced": [(name, 1)]}, {"absent": [(name, 1)]}):
            given = intervention_of(tiny, **change)
            found = states(tiny, given, 2)
            np.testing.assert_allclose(found, by_definition(tiny, given, 2), atol=TOLERANCE)


def test_own_messages_are_thoughts_of_the_receiver_without_the_message(tiny_system):
    tiny = tiny_system
    channel = LatentChannel(tiny.system, tiny.links)
    stages = begin(tiny.system, tiny.agents, channel, tiny.prompts())
    own = jax.jit(own_messages, static_argnames="rounds")(stages, rounds=ROUNDS)
    for edge in tiny.system.topology.edges:
        role = edge[1]
        feed = functools.partial(apply_link, tiny.system.inner[role], tiny.links.inner[role])
        for index in range(ROUNDS):
            nothing = np.zeros((0, tiny.system.width(role)), np.float32)
            slots = tiny.slots(role, later=index > 0)
            bodies = [
                tiny.body(role, question, later=index > 0, inbox=dict.fromkeys(slots, nothing))
                for question in QUESTIONS
            ]
            thoughts = naive_thoughts(tiny.agents[role], feed, bodies, LATENT_STEPS)
            found = own[edge_name(edge)][index]
            np.testing.assert_allclose(found, feed(thoughts), rtol=TOLERANCE, atol=TOLERANCE)


def test_noise_has_the_moments_of_each_position():
    random = np.random.default_rng(0)
    mixing = random.normal(size=(2, 3, 4, 4))  # by round and position
    plain = random.normal(size=(2, 400, 3, 4))
    values = 5 + np.einsum("rnmd,rmde->rnme", plain, mixing)
    noise = noise_messages({"a->b": values.astype(np.float32)}, seed=1)["a->b"]
    for r in range(2):
        for m in range(3):
            np.testing.assert_allclose(noise[r, :, m].mean(0), values[r, :, m].mean(0), atol=0.7)
            ours, theirs = np.cov(noise[r, :, m].T), np.cov(values[r, :, m].T)
            np.testing.assert_allclose(ours, theirs, atol=0.35 * np.abs(theirs).max())
    flat = [x[0, :, 0].ravel() for x in (noise, values)]
    assert abs(np.corrcoef(*flat)[0, 1] - np.corrcoef(flat[1], flat[1])[0, 1]) > 0.5
    again = noise_messages({"a->b": values.astype(np.float32)}, seed=1)["a->b"]
    np.testing.assert_array_equal(noise, again)


def test_noise_of_few_items_stays_in_their_span_and_of_many_needs_little_memory():
    few = np.random.default_rng(0).normal(size=(1, 3, 1, 8)).astype(np.float32)
    noise = noise_messages({"a->b": few}, seed=1)["a->b"]
    deviations = few[0, :, 0] - few[0, :, 0].mean(0)
    beyond = np.linalg.svd(deviations)[2][2:]  # deviations of three items span two directions
    drawn = noise[0, :, 0] - few[0, :, 0].mean(0)
    np.testing.assert_allclose(drawn @ beyond.T, 0, atol=1e-5)
    assert np.abs(drawn).max() > 0.1
    many = np.zeros((1, 4000, 1, 2), np.float32)
    tracemalloc.start()
    noise_messages({"a->b": many}, seed=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4000**2  # N x N numbers take 4 or 8 times as many bytes


def test_another_item_has_another_question_and_another_answer():
    questions, answers = ["a", "b", "a", "c", "d"], ["1", "1", "2", "2", "3"]
    for seed in range(20):
        for i, j in enumerate(other_items(questions, answers, seed=seed)):
            assert questions[i] != questions[j] and answers[i] != answers[j]
    drawn = {tuple(other_items(questions, answers, seed=seed)) for seed in range(20)}
    assert len(drawn) > 3
    with pytest.raises(ValueError, match="got none other than 0's: 'a'"):
        other_items(["a", "b"], ["1", "1"], seed=0)
    # Programs have tests for gold answers.
    assert other_items(["a", "b"], ["", ""], seed=0).tolist() == [1, 0]
    with pytest.raises(ValueError, match="got none other than 0's: 'a'"):
        other_items(["a", "a"], ["", ""], seed=0)
