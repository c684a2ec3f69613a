"""Drawn rectangles as rows of tokens without padding, and the columns of a group cut from them."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np

from rmas_jax.prompts import StageTokens, TokenRows
from rmas_jax.rounds.supervision import Targets
from rmas_jax.training.data.encoding import Dialogues, EncodedItems, TrainingData


def token_rows(ids: np.ndarray, valid: np.ndarray) -> TokenRows:
    """The valid tokens of each row of [..., W]."""
    width = ids.shape[-1]
    rows = zip(ids.reshape(-1, width), valid.reshape(-1, width), strict=True)
    return TokenRows.of([row[counts].tolist() for row, counts in rows])


def encoded_items(
    prompts: Mapping[str, StageTokens], targets: Mapping[str, Targets]
) -> EncodedItems:
    """The items of a split with these texts."""
    return EncodedItems(
        prompts=dict(prompts),
        texts={role: token_rows(target.ids, target.valid) for role, target in targets.items()},
        rounds=next(iter(targets.values())).ids.shape[1],
    )


def dialogues_of(ids: np.ndarray, valid: np.ndarray, target: np.ndarray) -> Dialogues:
    """Dialogues [n, T] that are padded on the left."""
    return Dialogues(tokens=token_rows(ids, valid), text_lengths=target.sum(axis=1))


def trim(data: TrainingData, *, text_width: int = 0) -> TrainingData:
    """Drops the columns of a rectangle that are padding in every row."""
    prompts = {}
    for role, prompt in data.prompts.items():
        slots = np.asarray(prompt.slot_index)
        prefix = prompt.prefix_valid.any(axis=0)
        body = prompt.body_valid.any(axis=(0, 1)) | (slots >= 0)
        prompts[role] = prompt.replace(
            prefix_ids=prompt.prefix_ids[:, prefix],
            prefix_valid=prompt.prefix_valid[:, prefix],
            body_ids=prompt.body_ids[..., body],
            body_valid=prompt.body_valid[..., body],
            slot_index=tuple(slots[body].tolist()),
        )
    targets = {}
    for role, target in data.targets.items():
        width = max(text_width, int(target.valid.sum(axis=-1).max()))
        targets[role] = Targets(ids=target.ids[..., :width], valid=target.valid[..., :width])
    return TrainingData(prompts=prompts, targets=targets)


def row_lengths(data: TrainingData) -> np.ndarray:
    """Valid positions of each row [N], summed over roles and rounds."""
    marks = [valid for p in data.prompts.values() for valid in (p.prefix_valid, p.body_valid)]
    marks += [target.valid for target in data.targets.values()]
    return sum(valid.reshape(len(valid), -1).sum(axis=1) for valid in marks)


def check_same(ours: TrainingData, expected: TrainingData) -> None:
    """Asserts that two batches are the same arrays with the same slots."""
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
