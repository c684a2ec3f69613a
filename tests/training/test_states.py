"""What links learn from: every token and thought once, however they are batched."""

from __future__ import annotations

import dataclasses
import functools
import signal

import flat
import jax.numpy as jnp
import numpy as np
import pytest
from systems import LATENT_STEPS
from teams import QUESTIONS, build_team

from rmas_jax.host.preemption import PreemptedError, sigterm_noted
from rmas_jax.prompts import stage_tokens
from rmas_jax.rounds.supervision import Targets
from rmas_jax.training import rollouts
from rmas_jax.training.data import packing
from rmas_jax.training.data.encoding import Dialogues
from rmas_jax.training.inner.loop import embedding_table, inner_pairs, outer_pairs
from rmas_jax.training.states import token_states
from rmas_jax.training.states.token_states import (
    TokenStates,
    rollout_states,
    states_before,
    text_states,
)


@pytest.fixture(scope="module")
def team_and_links(tmp_path_factory):
    return build_team(tmp_path_factory.mktemp("team"))


@pytest.fixture(scope="module")
def dialogues():
    """Dialogues of many lengths, and texts of many lengths in them."""
    random = np.random.default_rng(0)
    lengths = np.array([64, 5, 30, 9, 40, 20, 7, 33, 16, 6, 5, 50, 8])[:, None]
    texts = random.integers(1, lengths - 2)
    from_end = np.arange(64, 0, -1)[None]
    valid = from_end <= lengths
    ids = np.where(valid, random.integers(1, 30, valid.shape), 0).astype(np.int32)
    return flat.dialogues_of(ids, valid, from_end <= texts)


@pytest.fixture
def noted(monkeypatch):
    """Shapes of the batches that are read."""
    shapes = []
    put_batch = token_states.put_batch

    def note(batch, mesh):
        shapes.append(batch[0].shape)
        return put_batch(batch, mesh)

    monkeypatch.setattr(token_states, "put_batch", note)
    return shapes


@pytest.mark.parametrize("role", ["planner", "solver"])
def test_texts_are_worth_the_same_packed_as_alone(
    team_and_links, dialogues, noted, monkeypatch, capsys, role
):
    team, _ = team_and_links
    agent = team.agents[role]
    ids, valid = dialogues.tokens.padded(np.arange(len(dialogues.tokens)), 64, left=True)
    target = np.arange(64, 0, -1) <= dialogues.text_lengths[:, None]
    alone = states_before(agent, ids, valid.astype(np.int32))
    expected = np.asarray(alone)[target[:, 1:]]
    few = functools.partial(packing.rows_at_once, batch_tokens=140)
    monkeypatch.setattr(packing, "rows_at_once", few)
    found = text_states(team, role, dialogues, progress=True)
    assert noted == [(2, 64)] * 3  # 13 dialogues in 5 rows, and an empty one
    assert f"reading, {role}: 100%" in capsys.readouterr().err
    np.testing.assert_array_equal(found.ids, ids[target])
    np.testing.assert_allclose(found.parts[0], expected, atol=1e-5)
    assert np.abs(np.diff(expected, axis=0)).min(axis=1).max() > 1e-2  # the control


def test_a_dialogue_that_occurs_several_times_is_read_once_and_learned_from_as_often(
    team_and_links, dialogues
):
    """The pairs are those of reading it every time, in the same order."""
    team, _ = team_and_links
    rows = np.array([0, 1, 2, 3, 1, 12, 1, 4, 5, 6, 7, 8, 9, 10, 11, 0])
    every_time = Dialogues(dialogues.tokens.take(rows), dialogues.text_lengths[rows])
    table = embedding_table(team, "critic")
    counterpart = np.where(np.arange(30) % 3, np.arange(30), -1)
    once, often = (
        text_states(team, "critic", read)
        for read in (dataclasses.replace(dialogues, rows=rows), every_time)
    )
    assert len(once.ids) == dialogues.text_lengths.sum() < len(often.ids) == len(once.learned)
    for learn in (inner_pairs, functools.partial(outer_pairs, counterpart=counterpart)):
        ours, expected = learn(once, table=table), learn(often, table=table)
        np.testing.assert_array_equal(ours.ids, expected.ids)
        drawn = np.arange(len(expected.ids))
        for found, wanted in zip(ours.take(drawn), expected.take(drawn), strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_reading_ends_when_it_is_asked_to(team_and_links, dialogues, noted):
    with sigterm_noted():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(PreemptedError, match="while texts are read, which starts again"):
            text_states(team_and_links[0], "planner", dialogues)
    assert not noted


def test_parts_are_counted_through():
    rows = np.arange(24, dtype=np.float32).reshape(8, 3)
    one = TokenStates((rows,), np.arange(8), np.arange(8))
    three = TokenStates((rows[:2],), np.arange(2), np.arange(2))
    three = three.with_part(rows[2:3], np.arange(2, 3))
    three = three.with_part(rows[3:], np.arange(3, 8))
    np.testing.assert_array_equal(three.ids, one.ids)
    np.testing.assert_array_equal(three.learned, one.learned)
    numbers = np.array([[7, 0, 2], [3, 3, 1]])
    np.testing.assert_array_equal(one.take(numbers), rows[numbers])
    np.testing.assert_array_equal(three.take(numbers), rows[numbers])


def test_rollouts_count_every_item_once_however_they_are_batched(
    team_and_links, monkeypatch, capsys
):
    """And in the same order. Stages that are not right do not count: here all are."""
    team, links = team_and_links

    roll_out = rollouts.roll_out

    def all_right(*args, **options):
        out = roll_out(*args, **options)
        right = {
            role: score.replace(exact_match=jnp.ones_like(score.exact_match))
            for role, score in out.scores.items()
        }
        return out.replace(scores=right)

    monkeypatch.setattr(rollouts, "roll_out", all_right)
    shape = (len(QUESTIONS), 2, LATENT_STEPS)
    targets = Targets(ids=np.ones(shape, np.int32), valid=np.ones(shape, bool))
    prompts = {
        role: stage_tokens(member.tokenizer, member.template, QUESTIONS, slot_width=LATENT_STEPS)
        for role, member in team.members.items()
    }
    data = flat.encoded_items(prompts, dict.fromkeys(prompts, targets))
    whole, wrapped = (
        rollout_states(team, links, data, rounds=2, batch_size=size, progress=size == 2)
        for size in (3, 2)
    )
    assert capsys.readouterr().err.count("rounds of the links: 100%") == 1
    for role in team.system.topology.order:
        assert len(whole[role][0]) == len(wrapped[role][0]) == np.prod(shape)
        for ours, theirs in zip(whole[role], wrapped[role], strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4)
