"""Tokenised questions and role texts on the host, and batches of them as arrays."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import struct

from rmas_jax.agents.member import Member
from rmas_jax.data.examples import Example
from rmas_jax.models.plain_text import encode_plain
from rmas_jax.models.tokenizer import Tokenizer
from rmas_jax.prompts import (
    FIRST,
    LATER,
    StagePrompt,
    StageTokens,
    TokenRows,
    encode_piece,
    split_template,
    stage_tokens,
    tiled_width,
)
from rmas_jax.prompts.token_rows import TokenFile
from rmas_jax.rounds.supervision import Targets
from rmas_jax.team import Team
from rmas_jax.topology import Topology

ENCODED_AT_ONCE = 4096  # items; a list of ids takes several times their bytes


class TrainingData(struct.PyTreeNode):
    """A batch: padded arrays, indexed by row."""

    prompts: dict[str, StagePrompt]  # by role, B rows
    targets: dict[str, Targets]  # by role with texts, B rows, R rounds

    def __len__(self) -> int:
        return next(iter(self.targets.values())).ids.shape[0]

    def rows(self, index: Any) -> TrainingData:
        """The given rows."""
        return jax.tree.map(lambda array: array[index], self)


class Widths(NamedTuple):
    """Columns of a batch."""

    prompts: dict[str, tuple[int, ...]]  # by role: of the prefix and of each block
    targets: dict[str, int]  # by role with texts


class EncodedItems(struct.PyTreeNode):
    """The items of a split as tokens without padding: a tree whose leaves are `TokenRows`."""

    prompts: dict[str, StageTokens]  # by role, N questions
    texts: dict[str, TokenRows]  # by role with texts, N x R rows, item by item
    rounds: int = struct.field(pytree_node=False)  # R

    @classmethod
    def on_disk(
        cls, examples: Sequence[Example], encode: Callable[[Sequence[Example]], EncodedItems]
    ) -> EncodedItems:
        """Encodes examples part by part; their tokens are in temporary files, mapped into memory.

        A process holds the pages of the items that it reads, and 8 bytes for each row of tokens.
        The files have no name: they end with the items.
        """
        files: list[TokenFile] = []
        tree = None
        with contextlib.ExitStack() as stack:
            for start in range(0, len(examples), ENCODED_AT_ONCE):
                part = encode(list(examples[start : start + ENCODED_AT_ONCE]))
                leaves, tree = jax.tree.flatten(part)
                files = files or [
                    TokenFile(stack.enter_context(tempfile.TemporaryFile())) for _ in leaves
                ]
                for file, rows in zip(files, leaves, strict=True):
                    file.add(rows)
            return jax.tree.unflatten(tree, [file.mapped() for file in files])

    def __len__(self) -> int:
        return len(next(iter(self.prompts.values())))

    @property
    def text_lengths(self) -> dict[str, np.ndarray]:
        """Tokens of each text [N, R], by role with texts."""
        return {role: rows.lengths.reshape(-1, self.rounds) for role, rows in self.texts.items()}

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each item [N], summed over roles and rounds."""
        prompts = sum(prompt.lengths for prompt in self.prompts.values())
        return prompts + sum(lengths.sum(axis=1) for lengths in self.text_lengths.values())

    def rows(self, index: Any) -> EncodedItems:
        """The given items."""
        texts = self._text_rows(index)
        return self.replace(
            prompts={role: prompt.take(index) for role, prompt in self.prompts.items()},
            texts={role: rows.take(texts) for role, rows in self.texts.items()},
        )

    def widths(self, index: Any, *, text_width: int = 0, is_tiled: bool = False) -> Widths:
        """Of the longest of the given items.

        Args:
          index: numbers of the items.
          text_width: minimum columns of texts (teacher forcing needs M), as far as the longest text
            of all items reaches.
          is_tiled: rounds widths up by `tiled_width` where items differ, so that other items of
            like length have the same widths, and their steps the same programs.
        """
        targets = {}
        for role, lengths in self.text_lengths.items():
            width = max(int(lengths[index].max()), min(text_width, int(lengths.max())))
            targets[role] = tiled_width(width) if is_tiled and np.ptp(lengths) else width
        prompts = self.prompts.items()
        return Widths(
            {role: prompt.widths(index, is_tiled=is_tiled) for role, prompt in prompts}, targets
        )

    def batch(self, index: Any = None, widths: Widths | None = None) -> TrainingData:
        """The given items as padded arrays, by default all and as wide as the longest of them."""
        index = np.arange(len(self)) if index is None else np.asarray(index)
        widths = self.widths(index) if widths is None else widths
        texts = self._text_rows(index)
        return TrainingData(
            prompts={
                role: prompt.padded(index, widths.prompts[role])
                for role, prompt in self.prompts.items()
            },
            targets={
                role: pad_texts(rows, texts, widths.targets[role], rounds=self.rounds)
                for role, rows in self.texts.items()
            },
        )

    def _text_rows(self, index: Any) -> np.ndarray:
        first = self.rounds * np.asarray(index)
        return (first[:, None] + np.arange(self.rounds)).ravel()


def pad_texts(texts: TokenRows, rows: np.ndarray, width: int, *, rounds: int) -> Targets:
    """The given rows of texts, those of an item together, as targets padded on the right."""
    ids, valid = texts.padded(rows, width, left=False)
    return Targets(ids.reshape(-1, rounds, width), valid.reshape(-1, rounds, width))


def encode_once(tokenizer: Tokenizer, texts: Sequence[Sequence[str]]) -> list[list[list[int]]]:
    """Token ids of texts [N][R]; tokenises a text of several rounds once."""
    distinct = list(dict.fromkeys(text for item in texts for text in item))
    ids = dict(zip(distinct, encode_plain(tokenizer, distinct), strict=True))
    return [[ids[text] for text in item] for item in texts]


def encode_texts(tokenizer: Tokenizer, texts: Sequence[Sequence[str]], end: int) -> TokenRows:
    """Role texts [N][R] -> N x R rows of tokens, item by item; each ends in the token `end`."""
    return TokenRows.of([[*row, end] for item in encode_once(tokenizer, texts) for row in item])


def encode_examples(team: Team, examples: Sequence[Example]) -> EncodedItems:
    """Tokenises a split for every role of a team.

    Args:
      team: whose agents read the prompts and learn from the texts.
      examples: N, each with texts of the same roles, one per round. Roles without texts get no
        targets.
    """
    return EncodedItems.on_disk(examples, functools.partial(_encode, team))


def _encode(team: Team, examples: Sequence[Example]) -> EncodedItems:
    questions = [example.inputs for example in examples]
    return EncodedItems(
        prompts={
            role: stage_tokens(
                member.tokenizer, member.template, questions, slot_width=team.system.latent_steps
            )
            for role, member in team.members.items()
        },
        texts={
            role: encode_texts(
                team.members[role].tokenizer,
                [example.texts[role] for example in examples],
                team.members[role].end_tokens[0],
            )
            for role in examples[0].texts
        },
        rounds=len(next(iter(examples[0].texts.values()))),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Dialogues:
    """Whole exchanges: each row is a prompt and, at its end, the role text."""

    tokens: TokenRows  # n rows
    text_lengths: np.ndarray  # [n] tokens of the role text, its end token included
    rows: np.ndarray | None = None  # [m] indices of rows to learn from, may repeat; None: each once

    @property
    def in_text(self) -> np.ndarray:
        """Whether each token of all rows is one of a role text [total]."""
        text_starts = self.tokens.starts[1:] - self.text_lengths
        return np.arange(len(self.tokens.ids)) >= np.repeat(text_starts, self.tokens.lengths)

    @property
    def text_ids(self) -> np.ndarray:
        """The tokens of all role texts, in order."""
        return self.tokens.ids[self.in_text]


def encode_dialogues(
    examples: Sequence[Example],
    member: Member,
    *,
    topology: Topology,
    rounds: int,
) -> Dialogues:
    """A role's dialogues: its prompt with the senders' texts in the slots, and its role text.

    A slot holds its sender's text of the same round or, on a feedback edge, of the previous one; it
    is empty if the sender has no texts. A role without texts learns those of the answerer. A role
    text ends in the first end token. A dialogue of several rounds is stored once, and `rows` holds
    its index for each of them, round by round.
    """
    role, tokenizer, prompt = member.role, member.tokenizer, member.template
    pieces = [split_template(tokenizer, prompt, text) for text in (prompt.first, prompt.later)]
    questions = [example.inputs for example in examples]
    around = [[encode_piece(tokenizer, text, questions) for text in of[0::2]] for of in pieces]
    senders = [of[1::2] for of in pieces]
    feedback = {sender for sender, receiver in topology.feedback_edges if receiver == role}
    learned = [example.texts_to_learn(role, topology.answerer) for example in examples]
    wrote = {  # by role, [N][R] token ids
        other: encode_once(tokenizer, [example.texts[other] for example in examples])
        for other in {*senders[0], *senders[1]} & examples[0].texts.keys()
    } | {role: encode_once(tokenizer, learned)}
    number: dict[tuple[tuple[int, ...], ...], int] = {}  # prompt and text -> row
    rows = []
    for r in range(rounds):
        kind = FIRST if r == 0 else LATER
        for i in range(len(examples)):
            read = [*around[kind][0][i]]
            for sender, after in zip(senders[kind], around[kind][1:], strict=True):
                sent = r - (sender in feedback)
                read += wrote[sender][i][sent] if sender in wrote and sent >= 0 else []
                read += after[i]
            dialogue = tuple(read), (*wrote[role][i][r], member.end_tokens[0])
            rows.append(number.setdefault(dialogue, len(number)))
    return Dialogues(
        tokens=TokenRows.of([[*read, *text] for read, text in number]),
        text_lengths=np.array([len(text) for _, text in number]),
        rows=np.array(rows),
    )


def learned_tokens(dialogues: Dialogues) -> np.ndarray:
    """Indices [M] of the role-text tokens to learn from; repeated as often as their dialogue."""
    counts = dialogues.text_lengths
    if dialogues.rows is None:
        return np.arange(counts.sum())
    ends = np.cumsum(counts)
    return np.concatenate([np.arange(ends[row] - counts[row], ends[row]) for row in dialogues.rows])
