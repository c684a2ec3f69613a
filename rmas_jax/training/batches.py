"""Questions and role texts as arrays: tokenised once, then only indexed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import struct

from rmas_jax.prompts import (
    SENTINEL,
    RolePrompt,
    StagePrompt,
    encode_stage,
    left_pad,
    split_template,
)
from rmas_jax.recursion import Targets
from rmas_jax.topology import Topology


@struct.dataclass
class TrainingData:
    """A split, ready to be indexed by row."""

    prompts: dict[str, StagePrompt]  # by role, N rows
    targets: dict[str, Targets]  # by role that has texts, N rows, R rounds

    def __len__(self) -> int:
        return next(iter(self.targets.values())).ids.shape[0]

    def rows(self, index: Any) -> TrainingData:
        """The given rows."""
        return jax.tree.map(lambda array: array[index], self)


def encode_texts(tokenizer: Any, texts: Sequence[Sequence[str]]) -> Targets:
    """Role texts [N][R] -> ids and mask [N, R, W]; each ends in the end token, padded right."""
    rows = [
        [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        for item in texts
        for text in item
    ]
    width = max(map(len, rows))
    ids = np.zeros((len(rows), width), np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    lengths = np.array([len(row) for row in rows])
    valid = np.arange(width)[None, :] < lengths[:, None]
    shape = (len(texts), len(texts[0]), width)
    return Targets(ids=ids.reshape(shape), valid=valid.reshape(shape))


def encode_examples(
    examples: Sequence[Mapping[str, Any]],
    tokenizers: Mapping[str, Any],
    prompts: Mapping[str, RolePrompt],
    *,
    text_fields: Mapping[str, str],
    slot_width: int,
) -> TrainingData:
    """Tokenises a split for every role.

    Args:
      examples: rows with "question" and, under each role's field, one text per round.
      tokenizers: by role.
      prompts: by role.
      text_fields: role -> field of its texts; roles without texts get no targets.
      slot_width: vectors per slot.
    """
    questions = [example["question"] for example in examples]
    return TrainingData(
        prompts={
            role: encode_stage(tokenizers[role], prompts[role], questions, slot_width=slot_width)
            for role in prompts
        },
        targets={
            role: encode_texts(tokenizers[role], [example[field] for example in examples])
            for role, field in text_fields.items()
        },
    )


def batch_rows(key: jax.Array, step: jax.Array, *, size: int, batch_size: int) -> jax.Array:
    """Row numbers [batch_size] of a step: a new permutation each epoch, a remainder dropped.

    A function of the key and the step alone, so a resumed run reads what the uninterrupted one
    would have read.
    """
    per_epoch = size // batch_size
    epoch, place = step // per_epoch, step % per_epoch
    order = jax.random.permutation(jax.random.fold_in(key, epoch), size)
    return jax.lax.dynamic_slice_in_dim(order, place * batch_size, batch_size)


@struct.dataclass
class Dialogues:
    """Whole exchanges, prompt and role text in one row, padded on the left."""

    ids: Any  # [n, T] int32
    valid: Any  # [n, T] bool
    target: Any  # [n, T] bool; tokens of the role text, its end token included


def encode_dialogues(
    examples: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    prompt: RolePrompt,
    *,
    topology: Topology,
    role: str,
    text_fields: Mapping[str, str],
    rounds: int,
) -> Dialogues:
    """What a role reads and should write, as text: its prompt with the senders' texts in the slots.

    A slot holds what its sender wrote in the same round or, on a feedback edge, in the one before;
    it stays empty where the sender has no texts.
    """
    pieces = [split_template(tokenizer, prompt, form) for form in (prompt.first, prompt.later)]
    marker = SENTINEL.format("question")
    feedback = {sender for sender, receiver in topology.feedback_edges if receiver == role}
    rows = []
    for r in range(rounds):
        texts, senders = pieces[min(r, 1)][0::2], pieces[min(r, 1)][1::2]
        columns = [
            [text.replace(marker, example["question"]) for example in examples] for text in texts
        ]
        for k, sender in enumerate(senders):
            wrote, field = r - (sender in feedback), text_fields.get(sender)
            is_sent = field is not None and wrote >= 0
            sent = [example[field][wrote] if is_sent else "" for example in examples]
            columns.insert(2 * k + 1, sent)
        columns.append([example[text_fields[role]][r] for example in examples])
        encoded = [tokenizer(column, add_special_tokens=False)["input_ids"] for column in columns]
        for *prompt_ids, text_ids in zip(*encoded, strict=True):
            rows.append(([t for ids in prompt_ids for t in ids], text_ids))
    ids, valid = left_pad([[*read, *text, tokenizer.eos_token_id] for read, text in rows])
    lengths = np.array([len(text) + 1 for _, text in rows])
    target = np.arange(ids.shape[1])[None, :] >= ids.shape[1] - lengths[:, None]
    return Dialogues(ids=ids, valid=valid, target=target)
