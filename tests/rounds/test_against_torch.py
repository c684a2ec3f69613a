"""The whole algorithm against plain torch: every shipped pattern, latent and text channel."""

from __future__ import annotations

import collections
import copy
import dataclasses
import functools
import re
from collections.abc import Sequence

import chex
import jax
import numpy as np
import pytest
import torch
import torch_reference as reference
from flax import linen as nn
from torch_reference import AGENTS, QUESTIONS, TorchTeam

from rmas_jax.agents.answers import write_texts
from rmas_jax.models import Decoder
from rmas_jax.prompts import RolePrompt
from rmas_jax.rounds import text_channel
from rmas_jax.rounds.channels import LatentChannel
from rmas_jax.rounds.recursion import Unroll, run_rounds, solve

ROUNDS = 3
MAX_TOKENS = 4
SLOT_WIDTH = 44  # a text of that many letters, if no word of it were a token of the reader
NEVER = (1000,)  # no token of the vocabulary ends an answer
# Rounding grows on its way: noise on the first agent's embeddings arrives up to 12 (sequential), 40
# (deliberation), 600 (distillation) and 1000 (mixture) times as large. One reading differs by 2e-6
# between the frameworks; what arrives differs by up to 2.4e-5, 0.9e-5 and 2.1e-5 in rounds 1, 2 and
# 3: errors do not pile up over rounds, because each starts from the question again. Rounds, items
# and thoughts differ by 0.1 and more, the wrong algorithms of the control by 0.017 and more. The
# likeliest token leads by 0.009 at least.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """Function from a pattern to its `Twins`; each is built once."""
    return functools.cache(
        lambda pattern: reference.build_twins(pattern, tmp_path_factory.mktemp(pattern))
    )


@pytest.fixture(scope="module")
def expected(twins):
    """Function from a pattern to the reference's rounds, by question."""
    return functools.cache(lambda pattern: latent_rounds(twins(pattern).torch))


@torch.no_grad()
def latent_rounds(team: TorchTeam) -> list[reference.Rounds]:
    return [reference.run_rounds(team, question, rounds=ROUNDS) for question in QUESTIONS]


def vectors(rounds: Sequence[reference.Rounds]) -> np.ndarray:
    """What reached the answerer [R, B, S, D]."""
    return np.stack([np.stack([x.numpy() for x in row.received]) for row in rounds], axis=1)


def answers(team: TorchTeam, rows: Sequence[reference.Rounds], rounds: int) -> list[list[int]]:
    model = team.models[team.topology.answerer]
    return [
        reference.write(model, row.prompts[rounds - 1], ends=NEVER, max_tokens=MAX_TOKENS)
        for row in rows
    ]


@functools.partial(jax.jit, static_argnames="rounds")
def received(system, agents, links, prompts, *, rounds):
    channel = LatentChannel(system, links)
    return run_rounds(system, agents, channel, prompts, Unroll(rounds=rounds)).received


def speak(system, agents, links, prompts, rounds):
    channel = LatentChannel(system, links)
    return solve(
        system, agents, channel, prompts, rounds=rounds, end_tokens=NEVER, max_tokens=MAX_TOKENS
    ).tokens


def assert_close(ours, expected):
    np.testing.assert_allclose(ours, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("pattern", AGENTS)
def test_what_reaches_the_answerer(twins, expected, pattern):
    team, links = twins(pattern).ours, twins(pattern).links
    prompts, theirs = team.encode(QUESTIONS), vectors(expected(pattern))
    assert_close(received(team.system, team.agents, links, prompts, rounds=ROUNDS), theirs)
    for axis in range(3):  # rounds, items and thoughts are told apart
        assert np.abs(np.diff(theirs, axis=axis)).max(axis=(1, 2, 3)).min() > 1000 * TOLERANCE


@pytest.mark.parametrize("pattern", AGENTS)
def test_answers_after_any_number_of_rounds_from_one_program(twins, expected, pattern):
    team, links = twins(pattern).ours, twins(pattern).links
    chex.clear_trace_counter()
    program = jax.jit(chex.assert_max_traces(speak, n=1), static_argnums=0)
    theirs = [answers(twins(pattern).torch, expected(pattern), r + 1) for r in range(ROUNDS)]
    for rounds, tokens in enumerate(theirs, start=1):
        ours = program(team.system, team.agents, links, team.encode(QUESTIONS), rounds)
        np.testing.assert_array_equal(ours, tokens)
    assert theirs[0] != theirs[1]  # rounds make a difference,
    assert len(np.unique(theirs[0], axis=0)) > 1  # and so do questions


def test_a_question_alone_where_layers_are_recurrent(twins, expected):
    """The shortest one: beside the others it is mostly pads, which must not enter a state."""
    team, links = twins("deliberation").ours, twins("deliberation").links
    assert any(team.agents["toolcaller"].config.linear_layers)
    alone = team.encode(QUESTIONS[:1])
    ours = received(team.system, team.agents, links, alone, rounds=2)
    assert_close(ours, vectors(expected("deliberation")[:1])[:2])


# --- Controls: the same reference with one thing wrong --------------------------------------------


def wrong_link(team: TorchTeam) -> TorchTeam:
    """One output coordinate of one outer link is off by a hundredth."""
    link = copy.deepcopy(team.outer["summarizer", "code"])
    with torch.no_grad():
        link.ln_target.bias[0] += 0.01
    return dataclasses.replace(team, outer={**team.outer, ("summarizer", "code"): link})


def exchanged_slots(team: TorchTeam) -> TorchTeam:
    """The answerer reads one specialist where it expects another."""
    exchange = {"{math}": "{code}", "{code}": "{math}"}
    prompt = team.prompts["summarizer"]
    texts = [
        re.sub("{math}|{code}", lambda match: exchange[match[0]], text)
        for text in (prompt.system, prompt.first, prompt.later)
    ]
    return dataclasses.replace(team, prompts={**team.prompts, "summarizer": RolePrompt(*texts)})


def no_feedback(team: TorchTeam) -> TorchTeam:
    """One specialist reads its first prompt in every round."""
    prompt = dataclasses.replace(team.prompts["math"], later=team.prompts["math"].first)
    return dataclasses.replace(team, prompts={**team.prompts, "math": prompt})


def no_final_norm(team: TorchTeam) -> TorchTeam:
    """Thoughts of one specialist are its states before the final norm."""
    model = copy.deepcopy(team.models["science"])
    model.model.norm = torch.nn.Identity()
    return dataclasses.replace(team, models={**team.models, "science": model})


def no_inner_link(team: TorchTeam) -> TorchTeam:
    """One specialist's thoughts return, and travel, as they are."""
    return dataclasses.replace(team, inner={**team.inner, "code": torch.nn.Identity()})


@pytest.mark.parametrize(
    "change", [wrong_link, exchanged_slots, no_feedback, no_final_norm, no_inner_link]
)
def test_tolerance_notices_a_wrong_algorithm(twins, expected, change):
    theirs = vectors(latent_rounds(change(twins("mixture").torch)))
    assert np.abs(theirs - vectors(expected("mixture"))).max() > 100 * TOLERANCE


# --- Text, and what is compiled -------------------------------------------------------------------


@pytest.mark.parametrize("pattern", AGENTS)
def test_texts_in_the_slots(twins, pattern):
    team, theirs = twins(pattern).ours, twins(pattern).torch
    # So many ids end a text that some texts are shorter than others.
    members = {
        role: dataclasses.replace(member, end_tokens=tuple(range(0, len(member.tokenizer), 6)))
        for role, member in team.members.items()
    }
    ends = {role: member.end_tokens for role, member in members.items()}
    prompts = team.encode(QUESTIONS, slot_width=SLOT_WIDTH)
    how = {"rounds": ROUNDS, "max_tokens": MAX_TOKENS}
    prompt, messages = text_channel.listen(team.system.topology, members, prompts, **how)
    answerer = team.system.topology.answerer
    answers = write_texts(members[answerer], prompt, max_tokens=MAX_TOKENS).texts
    different = set()
    for i, question in enumerate(QUESTIONS):
        expected = reference.exchange_texts(
            theirs, question, rounds=ROUNDS, ends=ends, max_tokens=MAX_TOKENS
        )
        ours = [(message.round, message.role, message.texts[i]) for message in messages]
        assert [*ours, (ROUNDS - 1, answerer, answers[i])] == expected
        different |= {(i, role, text) for _, role, text in expected}
    # The texts change with rounds.
    assert len(different) > len(QUESTIONS) * len(members)


def test_decoders_are_traced_as_often_for_one_round_as_for_many(twins):
    """Each reads its prefix, its body and, in one scanned step, its thoughts."""
    team, links = twins("sequential").ours, twins("sequential").links
    args = team.agents, links, team.encode(QUESTIONS)

    def traces(program, **options):
        calls = collections.Counter()

        def count(call, args, kwargs, context):
            if isinstance(context.module, Decoder) and context.method_name == "__call__":
                calls[context.module.config.model_type] += 1
            return call(*args, **kwargs)

        with nn.intercept_methods(count):
            jax.eval_shape(functools.partial(program, team.system, **options), *args)
        return calls

    once, often = (traces(received.__wrapped__, rounds=rounds) for rounds in (1, 4))
    assert once == often == dict.fromkeys(AGENTS["sequential"].values(), 3)
    # To answer, the solver reads its body once more and has a step that is looped.
    assert traces(speak, rounds=4) == once + collections.Counter(
        {AGENTS["sequential"]["solver"]: 2}
    )
