"""What methods compute alike is computed once, and nothing of their results shows it."""

import time
from collections import Counter
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contest import BATCH, EXAMPLES, item
from teams import with_agents

from rmas_jax.evaluation import listening
from rmas_jax.evaluation.shared import Same, Shared, content
from rmas_jax.host.compilations import compilations
from rmas_jax.models.generation import SamplingConfig
from rmas_jax.rounds import text_channel
from rmas_jax.sharding import make_mesh, put_whole

METHODS = ("recursive_mas", "shuffled_latents", "recursive_text")
ROUNDS = (1, 2)
BATCHES = sum(-(-len(items) // BATCH) for items in EXAMPLES.values())


@pytest.fixture(scope="module")
def alone(contest, tmp_path_factory):
    """Rows and items of an evaluation in which every method computes all of its own."""
    return contest(tmp_path_factory.mktemp("alone"), METHODS, rounds=ROUNDS, shared_bytes=0)


@pytest.fixture
def calls(monkeypatch):
    """Name -> the arguments of each computation."""
    found = {}
    for name, module, function in (
        ("prefixes", listening, "read_prefix_jitted"),
        ("messages", text_channel, "write_texts"),
        ("rounds", listening, "listen_jitted"),
    ):
        spy = mock.Mock(wraps=getattr(module, function))
        monkeypatch.setattr(module, function, spy)
        found[name] = spy
    return found


def forget(calls):
    for spy in calls.values():
        spy.reset_mock()


def without_seconds(rows):
    return [{**row, "seconds_per_item": 0} for row in rows]


def in_order(rows):
    return sorted(without_seconds(rows), key=str)


def test_answers_are_those_of_methods_alone_and_each_part_is_computed_once(
    contest, alone, calls, tmp_path
):
    contest(tmp_path / "warm", METHODS, rounds=ROUNDS)  # what compiles is computed twice
    forget(calls)
    rows, items = contest(tmp_path / "shared", METHODS, rounds=ROUNDS)
    assert items == alone[1] and without_seconds(rows) == without_seconds(alone[0])
    read = Counter(
        (id(agent), *(np.asarray(array).tobytes() for array in arrays))
        for (agent, *arrays), _ in calls["prefixes"].call_args_list
    )
    assert max(read.values()) <= len(EXAMPLES)  # once in a split
    assert calls["messages"].call_count == BATCHES * (3 * max(ROUNDS) - 1)
    stops = [int(options["rounds"]) for _, options in calls["rounds"].call_args_list]
    starts = [int(args[5].rounds) for args, _ in calls["rounds"].call_args_list]
    assert Counter(zip(starts, stops, strict=True)) == {
        (r - 1, r): 2 * BATCHES
        for r in ROUNDS  # of two methods
    }
    # The control: alone, the same methods compute more.
    forget(calls)
    contest(tmp_path / "alone", METHODS, rounds=ROUNDS, shared_bytes=0)
    assert calls["messages"].call_count == BATCHES * sum(3 * r - 1 for r in ROUNDS)
    assert calls["prefixes"].call_count > sum(read.values())
    assert {args[5] for args, _ in calls["rounds"].call_args_list} == {None}


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_what_exceeds_the_budget_is_computed_again(contest, alone, tmp_path, monkeypatch, share):
    held, kept = [], Shared.get

    def get(own, key, make):
        value = kept(own, key, make)
        held.append(own._held)
        return value

    monkeypatch.setattr(Shared, "get", get)
    contest(tmp_path / "all", METHODS[:1], rounds=ROUNDS)
    budget = 1 + int(share * max(held))
    held.clear()
    _, items = contest(tmp_path / "some", METHODS[:1], rounds=ROUNDS, shared_bytes=budget)
    assert items == [item for item in alone[1] if item["method"] == METHODS[0]]
    assert max(held) <= budget and (max(held) > 0) == (share > 0)


def test_a_resumed_evaluation_ends_with_the_same_records(contest, alone, tmp_path):
    for last in range(1, len(METHODS) + 1):  # each process starts with nothing kept
        rows, items = contest(tmp_path, METHODS[:last], rounds=ROUNDS)
    assert sorted(items, key=str) == sorted(alone[1], key=str)
    assert in_order(rows) == in_order(alone[0])


def test_seeds_share_all_that_precedes_their_answers(contest, calls, tmp_path):
    how = {"rounds": (2,), "seeds": (1, 2, 3), "sampling": SamplingConfig(temperature=3.0)}
    methods = ["recursive_mas", "recursive_text"]
    contest(tmp_path / "warm", methods, **how)
    forget(calls)
    contest(tmp_path / "run", methods, **how)
    assert calls["messages"].call_count == 5 * BATCHES and calls["rounds"].call_count == BATCHES


def test_on_a_mesh_rounds_continue_in_one_program(contest, alone, tmp_path, monkeypatch):
    mesh = make_mesh(BATCH, devices=jax.devices()[:BATCH])
    team = with_agents(contest.team, put_whole(contest.team.agents, mesh), mesh)
    monkeypatch.setattr(contest, "team", team)
    before = listening.listen_jitted._cache_size()
    examples = {"test": EXAMPLES["test"]}
    _, items = contest(tmp_path, METHODS[:1], rounds=ROUNDS, examples=examples)
    assert listening.listen_jitted._cache_size() == before + 2  # of batches of two widths
    expected = [x for x in alone[1] if x["split"] == "test" and x["method"] == METHODS[0]]
    assert items == expected


def test_seconds_of_a_kept_value_count_for_each_use_and_compilation_for_none():
    shared = Shared(10**6)

    @jax.jit
    def double(x):
        return 2 * x

    def make():
        time.sleep(0.05)
        return double(jnp.ones(3))

    seconds = [shared.timed(lambda: shared.get(("twice",), make))[1] for _ in range(3)]
    assert all(0.05 <= second < 0.5 for second in seconds)
    nested = shared.timed(lambda: shared.get(("nest",), lambda: shared.get(("twice",), make)))
    assert 0.05 <= nested[1] < 0.1  # counted once


def test_keys_are_by_content_or_by_object():
    ids = np.arange(6, dtype=np.int32).reshape(2, 3)
    assert content(ids) == content(ids.copy())
    assert len({content(x) for x in (ids, ids.T, ids + 1, ids.astype(np.int64))}) == 4
    prompts = {"planner": ids}
    assert Same(prompts) == Same(prompts) and hash(Same(prompts)) == hash(Same(prompts))
    assert Same(prompts) != Same(dict(prompts))


def test_ragged_questions_compile_nothing_after_the_first_ones_and_rounds_are_one_program(
    contest, tmp_path
):
    def examples(*lengths):
        words = ("does", "the", "parcel", "from", "to")
        return {"test": [item(i, (words * 4)[i : i + n]) for i, n in enumerate(lengths)]}

    jax.clear_caches()
    methods, how = ("recursive_mas", "shuffled_latents"), {"rounds": (1, 2, 3)}
    contest(tmp_path / "first", methods, examples=examples(9, 8, 7, 3, 2, 1), **how)
    widths = listening.listen_jitted._cache_size()
    assert widths == 2  # of two batches: no program for each of the rounds, nor of the methods
    known = compilations()
    contest(tmp_path / "other", methods, examples=examples(9, 8, 6, 3, 1, 1), **how)
    assert compilations() == known
    assert listening.listen_jitted._cache_size() == widths
