"""The relay dataset: word classes, splits, role texts, ceilings and the answer's format."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from rmas_jax.data import relay
from rmas_jax.data.relay import CLASS_SIZES, ROLES, SPLIT_SIZES

FIELDS = {"planner": "plan", "critic": "refined_plan", "solver": "draft"}
UNSEEN = "test_unseen_entities"


@pytest.fixture(scope="module")
def world():
    return relay.make_world()


@functools.cache
def examples(split: str) -> list[dict]:
    return list(relay.examples(split))


def phrases_in(world: relay.World, split: str) -> set[tuple[int, int]]:
    """Every phrase in a split: in questions, role texts and answers."""
    first, second = ({word: i for i, word in enumerate(words)} for words in world.words)
    pairs = re.findall(r"(?=\b([A-Z]\w+) (\w+)\b)", json.dumps(examples(split)))
    return {(first[a], second[b]) for a, b in pairs if a in first and b in second}


def asked(item: dict) -> tuple[int, int]:
    return tuple(map(int, item["id"].split("-")[:2]))


def test_no_question_stands_in_two_splits():
    splits = relay.split_questions()
    assert {name: len(split) for name, split in splits.items()} == SPLIT_SIZES
    everything = [question for split in splits.values() for question in split]
    assert len(set(everything)) == len(everything)
    for field in ("question", "id"):
        texts = [item[field] for split in splits for item in examples(split)]
        assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("split", SPLIT_SIZES)
def test_every_split_has_every_difficulty(split):
    counts = np.bincount([item["difficulty"] for item in examples(split)])
    assert len(counts) == relay.MAX_GATES + 1 and counts[0] == 0
    assert counts[1:].min() > 0.5 * counts[1:].mean()


def test_words_are_all_different_and_one_token_wide(world):
    words = [*world.words[0], *world.words[1]]
    assert len(words) == len(set(words)) == 2 * sum(CLASS_SIZES)
    assert all(re.fullmatch(r"[A-Z][a-z]{4}", word) for word in words)


def test_unseen_phrases_occur_in_no_other_split(world):
    """Neither asked about nor in any text that a role writes; their words do."""
    familiar = set()
    for split in ("train", "validation", "test"):
        present = phrases_in(world, split)
        assert len(present) > len(examples(split))  # the search finds role texts, too
        assert all(relay.is_known(phrase) for phrase in present)
        familiar |= present
    unseen = phrases_in(world, UNSEEN)
    assert not any(relay.is_known(phrase) for phrase in unseen)
    for place in (0, 1):
        words = {phrase[place] for phrase in familiar}
        assert words == set(range(sum(CLASS_SIZES)))


def test_no_gate_mixes_the_classes(world):
    first, every = CLASS_SIZES[0], np.arange(sum(CLASS_SIZES))
    for role in ROLES:
        for book in world.books[role]:
            np.testing.assert_array_equal(np.sort(book[:first]), np.arange(first))
            np.testing.assert_array_equal(np.sort(book), every)
    books = [book for role in ROLES for book in world.books[role]]
    for one, other in itertools.combinations([every, *books], 2):
        assert np.mean(one == other) < 0.1  # gates do something, each something else
    for phrase, known in [((0, 1), True), ((first, first), True), ((0, first), False)]:
        assert relay.is_known(phrase) == known
        for role in ROLES:
            assert relay.is_known(world.pass_gate(role, phrase, 1)[0]) == known


@pytest.mark.parametrize("split", ["validation", UNSEEN])
def test_role_texts_follow_the_code_books(world, split):
    """In round r the roles pass gates 3r + 1, 3r + 2 and 3r + 3, if the question has them."""
    for item in examples(split)[::7]:
        now = asked(item)
        for gate in range(3 * relay.TEXT_ROUNDS):
            role = ROLES[gate % 3]
            if gate < item["difficulty"]:
                now = tuple(book[w] for book, w in zip(world.books[role], now, strict=True))
            text = f"{world.words[0][now[0]]} {world.words[1][now[1]]}"
            left = relay.NUMBERS[max(item["difficulty"] - gate - 1, 0)]
            found = item[FIELDS[role]][gate // 3]
            assert found == f"{text}, {left} gates left"
            assert relay.parse_answer(found) == text
        assert item["answer"] == f"{text}, no gates left"


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_a_perfect_team_solves_exactly_what_its_rounds_can_reach(rounds):
    for split in SPLIT_SIZES:
        for item in examples(split):
            solved = item["draft"][rounds - 1] == item["answer"]
            assert solved == (item["difficulty"] <= 3 * rounds)


def test_no_agent_reaches_further_than_its_own_gate(world):
    for role in ROLES:
        right = []
        for item in examples("test"):
            now = asked(item)
            for _ in range(item["difficulty"]):
                now, _ = world.pass_gate(role, now, 1)
            is_right = world.text(now) == relay.parse_answer(item["answer"])
            if role == "planner" and item["difficulty"] == 1:
                assert is_right
            else:
                right.append(is_right)
        assert np.mean(right) < 0.02


def test_a_phrase_without_gates_left_stays(world):
    assert world.pass_gate("critic", (3, 4), 0) == ((3, 4), 0)


def test_question_says_the_phrase_and_the_number_of_gates(world):
    wordings = set()
    for gates in range(1, relay.MAX_GATES + 1):
        for phrase in itertools.product(range(0, 96, 17), repeat=2):
            question = relay.question_of(world, phrase, gates)
            text = world.text(phrase)
            count = f" {relay.NUMBERS[gates]} {'gate' if gates == 1 else 'gates'},"
            assert question.count(text) == question.count(count) == 1
            wordings.add(question.replace(text, "{phrase}").replace(count, " {gates} gates,"))
    assert wordings == set(relay.QUESTIONS)


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("Bodon Kalin, no gates left", "Bodon Kalin"),
        ("Bodon Kalin, two gates left", "Bodon Kalin"),
        ("  Bodon  Kalin , no gates left \n", "Bodon Kalin"),
        ("Bodon Kalin", None),
        ("Bodon Kalin no gates left", None),
        ("Bodon, no gates left", None),
        ("Bodon Kalin Meris, no gates left", None),
        ("Bodon Kalin, no gates", None),
        ("Bodon Kalin, no gates left, or so", None),
        (", no gates left", None),
        ("", None),
    ],
)
def test_only_a_text_of_the_right_form_is_an_answer(text, phrase):
    assert relay.parse_answer(text) == phrase


DIGEST = """
import hashlib, itertools, json
from rmas_jax.data import relay
items = [list(itertools.islice(relay.examples(s), 20)) for s in relay.split_questions()]
print(hashlib.sha256(json.dumps(items).encode()).hexdigest())
"""


def test_examples_are_the_same_in_every_process():
    here = [examples(split)[:20] for split in relay.split_questions()]
    digests = {hashlib.sha256(json.dumps(here).encode()).hexdigest()}
    for seed in ("1", "2"):
        out = subprocess.run(
            [sys.executable, "-c", DIGEST],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(out.stdout.strip())
    assert len(digests) == 1


def test_another_seed_is_another_world(world):
    other = relay.make_world(relay.WORLD_SEED + 1)
    assert other.words != world.words
    assert np.mean(other.books["critic"][0] == world.books["critic"][0]) < 0.1
