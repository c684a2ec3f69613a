"""Tokenised questions and role texts as arrays on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
    encode_piece,
    left_pad,
    split_template,
)
from rmas_jax.rounds.supervision import Targets
from rmas_jax.team import Team
from rmas_jax.topology import Topology


class TrainingData(struct.PyTreeNode):
    """A split, or a batch of it; indexed by row."""

    prompts: dict[str, StagePrompt]  # by role, N rows
    targets: dict[str, Targets]  # by role with texts, N rows, R rounds

    def __len__(self) -> int:
        return next(iter(self.targets.values())).ids.shape[0]

    def rows(self, index: Any) -> TrainingData:
        """The given rows."""
        return jax.tree.map(lambda array: array[index], self)


def encode_once(tokenizer: Tokenizer, texts: Sequence[Sequence[str]]) -> list[list[list[int]]]:
    """Token ids of texts [N][R]; tokenises a text of several rounds once."""
    distinct = list(dict.fromkeys(text for item in texts for text in item))
    ids = dict(zip(distinct, encode_plain(tokenizer, distinct), strict=True))
    return [[ids[text] for text in item] for item in texts]


def encode_texts(tokenizer: Tokenizer, texts: Sequence[Sequence[str]], end: int) -> Targets:
    """Role texts [N][R] -> ids and mask [N, R, W]; each ends in the token `end`, padded right."""
    rows = [[*row, end] for item in encode_once(tokenizer, texts) for row in item]
    width = max(map(len, rows))
    ids = np.zeros((len(rows), width), np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    lengths = np.array([len(row) for row in rows])
    valid = np.arange(width)[None, :] < lengths[:, None]
    shape = (len(texts), len(texts[0]), width)
    return Targets(ids=ids.reshape(shape), valid=valid.reshape(shape))


def encode_examples(team: Team, examples: Sequence[Example]) -> TrainingData:
    """Tokenises a split for every role of a team.

    Args:
      team: whose agents read the prompts and learn from the texts.
      examples: N, each with texts of the same roles, one per round. Roles without texts get no
        targets.
    """
    return TrainingData(
        prompts=team.encode([example.question for example in examples]),
        targets={
            role: encode_texts(
                team.members[role].tokenizer,
                [example.texts[role] for example in examples],
                team.members[role].end_tokens[0],
            )
            for role in examples[0].texts
        },
    )


class Dialogues(struct.PyTreeNode):
    """Whole exchanges, prompt and role text in one row, padded on the left."""

    ids: Any  # [n, T] int32
    valid: Any  # [n, T] bool
    target: Any  # [n, T] bool; tokens of the role text, its end token included
    rows: Any = None  # [m] int; indices of rows to learn from, may repeat; None: each once


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
    questions = [example.question for example in examples]
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
    ids, valid = left_pad([[*read, *text] for read, text in number])
    lengths = np.array([len(text) for _, text in number])
    target = np.arange(ids.shape[1])[None, :] >= ids.shape[1] - lengths[:, None]
    return Dialogues(ids=ids, valid=valid, target=target, rows=np.array(rows))


def learned_tokens(dialogues: Dialogues) -> np.ndarray:
    """Indices [M] of the role-text tokens to learn from; repeated as often as their dialogue."""
    counts = dialogues.target.sum(axis=1)
    if dialogues.rows is None:
        return np.arange(counts.sum())
    ends = np.cumsum(counts)
    return np.concatenate([np.arange(ends[row] - counts[row], ends[row]) for row in dialogues.rows])
