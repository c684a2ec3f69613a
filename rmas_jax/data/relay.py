"""The embedded data set: a pass phrase recoded at gates, by code books spread over three agents.

A pass phrase has two words. Every gate replaces each word by another: the red, green and blue
gate each have a code book. A question names a phrase and a number of gates, which alternate
red, green, blue, red, ... The planner has learnt the red book, the critic the green one and the
solver the blue one, so one round (planner, critic, solver) covers at most three gates, and no agent
alone covers more than its own.

Words are of two classes that no gate mixes. Phrases whose two words are of one class are known,
phrases of mixed class are unseen: links are trained on known phrases only, so the unseen ones,
made of familiar words, test whether links translate or memorise.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np

ROLES = ("planner", "critic", "solver")
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MAX_GATES = 9
TEXT_ROUNDS = 4  # rounds with role texts; after the third nothing changes
QUESTIONS = (
    "The pass phrase {phrase} goes through {gates} gates, red, green and blue in turn. "
    "What does it read then?",
    "A traveller with the phrase {phrase} passes {gates} gates, red, green and blue in turn. "
    "Which phrase leaves the last one?",
    "After {gates} gates, red, green and blue in turn, what has become of the phrase {phrase}?",
)

CLASS_SIZES = (72, 24)  # words of either class, at each of the two places
SPLIT_SIZES = {"train": 4000, "validation": 500, "test": 1000, "test_unseen_entities": 1000}
WORLD_SEED = 20260422

Phrase = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class World:
    """Words and code books."""

    words: tuple[tuple[str, ...], tuple[str, ...]]  # of the first and of the second place
    books: dict[str, tuple[np.ndarray, np.ndarray]]  # role -> per place, [words] int: the new word

    def text(self, phrase: Phrase) -> str:
        """A phrase in words."""
        return " ".join(words[w] for words, w in zip(self.words, phrase, strict=True))

    def pass_gate(self, role: str, phrase: Phrase, left: int) -> tuple[Phrase, int]:
        """One agent's turn: recodes the phrase if gates remain."""
        if not left:
            return phrase, 0
        first, second = (int(book[w]) for book, w in zip(self.books[role], phrase, strict=True))
        return (first, second), left - 1


def message(world: World, phrase: Phrase, left: int) -> str:
    """A role's text: the current phrase and the number of remaining gates."""
    return f"{world.text(phrase)}, {NUMBERS[left]} gates left"


def parse_answer(text: str) -> str | None:
    """The phrase in a role's text, or None where the text has another format."""
    phrase, comma, rest = text.strip().partition(",")
    if not comma or not rest.strip().endswith("gates left") or len(phrase.split()) != 2:
        return None
    return " ".join(phrase.split())


def _invent(rng: np.random.Generator, count: int, taken: set[str]) -> tuple[str, ...]:
    """Made-up words of two syllables, all different."""
    syllables = ["".join(pair) for pair in itertools.product("bdfgklmnprstvz", "aeiou")]
    words: list[str] = []
    while len(words) < count:
        word = "".join(rng.choice(syllables, 2)).capitalize() + rng.choice(list("nrlsmk"))
        if word not in taken:
            taken.add(word)
            words.append(word)
    return tuple(words)


def make_world(seed: int = WORLD_SEED) -> World:
    """The world of a seed; the embedded agents are trained on that of `WORLD_SEED`."""
    rng = np.random.default_rng(seed)
    taken: set[str] = set()
    words = (_invent(rng, sum(CLASS_SIZES), taken), _invent(rng, sum(CLASS_SIZES), taken))

    def book() -> np.ndarray:  # a permutation within each class
        first, second = CLASS_SIZES
        return np.concatenate([rng.permutation(first), first + rng.permutation(second)])

    return World(words, {role: (book(), book()) for role in ROLES})


def is_known(phrase: Phrase) -> bool:
    """Whether both words are of one class; no gate changes that."""
    return (phrase[0] < CLASS_SIZES[0]) == (phrase[1] < CLASS_SIZES[0])


def question_of(world: World, phrase: Phrase, gates: int) -> str:
    """The question; its wording is a function of phrase and gates."""
    wording = QUESTIONS[(phrase[0] + 5 * phrase[1] + gates) % len(QUESTIONS)]
    question = wording.format(phrase=world.text(phrase), gates=NUMBERS[gates])
    return question.replace("one gates", "one gate")


def answer(world: World, phrase: Phrase, gates: int) -> str:
    """The text that solves a problem: the phrase after all its gates."""
    for i in range(gates):
        phrase, _ = world.pass_gate(ROLES[i % len(ROLES)], phrase, gates)
    return message(world, phrase, 0)


def example(world: World, phrase: Phrase, gates: int) -> dict:
    """One problem with each role's target text in each round."""
    texts: dict[str, list[str]] = {role: [] for role in ROLES}
    now, left = phrase, gates
    for _ in range(TEXT_ROUNDS):
        for role in ROLES:
            now, left = world.pass_gate(role, now, left)
            texts[role].append(message(world, now, left))
    return {
        "id": f"{phrase[0]}-{phrase[1]}-{gates}",
        "question": question_of(world, phrase, gates),
        "plan": texts["planner"],
        "refined_plan": texts["critic"],
        "draft": texts["solver"],
        "answer": answer(world, phrase, gates),
        "difficulty": gates,
    }


def split_questions() -> dict[str, list[tuple[Phrase, int]]]:
    """(phrase, gates) of every split; splits are disjoint."""
    size = range(sum(CLASS_SIZES))
    questions = list(itertools.product(itertools.product(size, size), range(1, MAX_GATES + 1)))
    order = np.random.default_rng(WORLD_SEED + 1).permutation(len(questions))
    small = CLASS_SIZES[0]  # words from this index on are of the second class
    known: list[list[tuple[Phrase, int]]] = [[], []]
    unseen: list[tuple[Phrase, int]] = []
    for phrase, gates in (questions[i] for i in order):
        (known[phrase[0] >= small] if is_known(phrase) else unseen).append((phrase, gates))
    # The second class has fewer phrases than words: this share makes all words equally frequent.
    share = CLASS_SIZES[1] / sum(CLASS_SIZES)
    splits, used = {}, [0, 0]
    for split, count in SPLIT_SIZES.items():
        if split == "test_unseen_entities":
            splits[split] = unseen[-count:]  # the first ones were seen during development
            continue
        parts = []
        for of_class, amount in enumerate((count - round(count * share), round(count * share))):
            start = used[of_class]
            parts += known[of_class][start : start + amount]
            used[of_class] += amount
        splits[split] = [parts[i] for i in np.random.default_rng(WORLD_SEED).permutation(count)]
    return splits


def examples(split: str) -> Iterator[dict]:
    """Every example of a split, in a fixed order."""
    world = make_world()
    for phrase, gates in split_questions()[split]:
        yield example(world, phrase, gates)
