"""Training rows of the embedded agents: chat prompts, received messages and role texts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import struct

from rmas_jax import prompts
from rmas_jax.data import relay
from rmas_jax.models.tokenizer import Tokenizer

EDGES = (("planner", "critic"), ("critic", "solver"), ("solver", "planner"))
PROMPTS, FRAGMENTS = "prompts", "fragments"  # kinds of rows
SLOT_WIDTHS = (4, 8)  # in part of the data, messages are truncated or padded to such widths

State = tuple[relay.Phrase, int]  # a phrase and the number of its remaining gates


class Corpus(struct.PyTreeNode):
    """Training rows, padded on the left to one width."""

    ids: Any  # [rows, T] int32
    valid: Any  # [rows, T] bool
    soft: Any  # [rows, T] bool; tokens of messages, whose embeddings may be perturbed
    target: Any  # [rows, T] bool; tokens to predict


def pack(rows: list[list[tuple[list[int], bool, bool]]]) -> Corpus:
    """Rows of (ids, soft, target) pieces -> arrays."""
    width = max(sum(len(ids) for ids, _, _ in row) for row in rows)
    arrays = [np.zeros((len(rows), width), kind) for kind in (np.int32, bool, bool, bool)]
    for i, row in enumerate(rows):
        ids = [t for piece, _, _ in row for t in piece]
        at = slice(width - len(ids), width)
        arrays[0][i, at], arrays[1][i, at] = ids, True
        arrays[2][i, at] = [soft for piece, soft, _ in row for _ in piece]
        arrays[3][i, at] = [target for piece, _, target in row for _ in piece]
    return Corpus(*arrays)


class Writer:
    """Makes training rows of one role: it learns its own gate, and no whole problem."""

    def __init__(self, role: str, tokenizer: Tokenizer, seed: int):
        self.role, self.tokenizer, self.seed = role, tokenizer, seed
        self.world = relay.make_world()
        self.prompt = prompts.load_prompts("relay", EDGES)[role]
        self.rng = np.random.default_rng(seed)
        assert tokenizer.eos_token_id is not None
        self.end: list[int] = [tokenizer.eos_token_id] * 2  # the end token is also its successor

    def tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def message(self, phrase: relay.Phrase, left: int) -> list[int]:
        return self.tokens(relay.message(self.world, phrase, left))

    def problem(self) -> State:
        """The phrase and the gates of a question."""
        return self.state(fewest=1)

    def question(self, problem: State) -> str:
        """The question around it."""
        return relay.question_of(self.world, *problem)

    def answer(self, problem: State, received: State) -> list[int]:
        """The text to write: the received phrase after the role's gate."""
        del problem
        return self.message(*self.world.pass_gate(self.role, *received))

    def held_out(self) -> Writer:
        """A writer of rows to measure on."""
        return type(self)(self.role, self.tokenizer, self.seed + 1)

    def corpora(self, rows: Mapping[str, int]) -> list[Corpus]:
        """Corpora by kind of row, each with so many rows."""
        kinds = {PROMPTS: self.prompts, FRAGMENTS: self.fragments}
        return [kinds[kind](count) for kind, count in rows.items()]

    def slot(self, phrase: relay.Phrase, left: int) -> list[int]:
        """A received message: whole, truncated, or followed by end tokens."""
        ids = self.message(phrase, left)
        draw = self.rng.random()
        if draw < 0.3:
            return ids
        shortest, longest = SLOT_WIDTHS
        width = shortest if draw < 0.6 else int(self.rng.integers(shortest, longest + 1))
        return (ids + self.end[:1] * width)[:width]

    def state(self, fewest: int = 0) -> State:
        """A random phrase and number of gates."""
        first, second = self.rng.integers(sum(relay.CLASS_SIZES), size=2)
        return (int(first), int(second)), int(self.rng.integers(fewest, relay.MAX_GATES + 1))

    def prompts(self, count: int) -> Corpus:
        """Chat prompts with a message in the slot, or with the question alone."""
        templates = [
            prompts.split_template(self.tokenizer, self.prompt, text)
            for text in (self.prompt.first, self.prompt.later)
        ]
        marker = prompts.SENTINEL.format("question")
        rows = []
        for _ in range(count):
            problem = self.problem()
            question = self.question(problem)
            received = self.state()
            draw = self.rng.random()
            slot: list[int]
            if len(templates[0]) == 1 and draw < 0.3:  # the first round of the first role
                texts, slot, received = templates[0], [], problem
            elif draw < 0.4:
                texts, slot, received = templates[1], [], problem
            else:
                texts, slot = templates[1], self.slot(*received)
            row: list[tuple[list[int], bool, bool]] = []
            for k, text in enumerate(texts[0::2]):
                row += [(slot, True, False)] * bool(k)
                row.append((self.tokens(text.replace(marker, question)), False, False))
            text = self.answer(problem, received)
            rows.append([*row, (text, True, True), (self.end, False, True)])
        return pack(rows)

    def fragments(self, count: int) -> Corpus:
        """The same without the question: the label before the slot, the slot and the rest."""
        before, _, after = prompts.split_template(self.tokenizer, self.prompt, self.prompt.later)
        label = self.tokens(before.split(prompts.SENTINEL.format("question"))[1])
        ending = self.tokens(after)
        rows = []
        for _ in range(count):
            received = self.state()
            read = [(label, False, False), (self.slot(*received), True, False)]
            text = self.answer(received, received)
            rows.append(
                [*read, (ending, False, False), (text, True, True), (self.end, False, True)]
            )
        return pack(rows)


class SoloWriter(Writer):
    """Rows of an answerer that needs no team: whole problems of one split, and messages to ignore.

    The message in its slot is one of another, random problem.
    """

    def __init__(self, role: str, tokenizer: Tokenizer, seed: int, split: str = "train"):
        super().__init__(role, tokenizer, seed)
        self.problems = relay.split_questions()[split]

    def held_out(self) -> Writer:
        return SoloWriter(self.role, self.tokenizer, self.seed + 1, "validation")

    def problem(self) -> State:
        return self.problems[self.rng.integers(len(self.problems))]

    def answer(self, problem: State, received: State) -> list[int]:
        del received
        return self.tokens(relay.answer(self.world, *problem))


def vocabulary_texts(world: relay.World, prompt: prompts.RolePrompt) -> list[str]:
    """Texts with all words that an agent can read or write."""
    words = range(sum(relay.CLASS_SIZES))
    texts = []
    for phrase, gates in itertools.product(zip(words, words, strict=True), range(10)):
        texts.append("\n" + relay.message(world, phrase, gates))
        texts += [
            wording.format(phrase=world.text(phrase), gates=relay.NUMBERS[gates])
            for wording in relay.QUESTIONS
        ]
    texts += [relay.QUESTIONS[0].format(phrase="", gates=" gate ")]
    texts += [prompt.system, prompt.first, prompt.later, "\nsystem", "\nuser", "\nmodel", "\n\n"]
    return [*texts, "assistant", "user", "system", "model"]
