"""Packing: every dialogue once and whole, and little beside it."""

from __future__ import annotations

import flat
import numpy as np
import pytest

from rmas_jax.training.data.encoding import Dialogues
from rmas_jax.training.data.packing import packed_batches, packing_groups

WIDTH, HEADS = 64, 4


def dialogues_of(lengths: np.ndarray) -> Dialogues:
    """Dialogues of these lengths; the second half of each is its role text."""
    from_end = np.arange(lengths.max(), 0, -1)[None]
    valid = from_end <= lengths[:, None]
    ids = np.where(valid, np.random.default_rng(0).integers(1, 10**6, valid.shape), 0)
    return flat.dialogues_of(ids.astype(np.int32), valid, from_end <= lengths[:, None] // 2)


@pytest.mark.parametrize("shards", [1, 8])
@pytest.mark.parametrize("seed", range(5))
def test_every_dialogue_is_read_once_in_one_piece(seed, shards):
    random = np.random.default_rng(seed)
    lengths = np.exp(random.normal(3.5, 0.8, random.integers(1, 60))).astype(int) + 4
    dialogues = dialogues_of(lengths)
    batches = list(
        packed_batches(
            dialogues,
            width=WIDTH,
            heads=HEADS,
            batch_tokens=1000,
            batch_rows=16,
            shards=shards,
        )
    )
    found = []
    for ids, segments, numbers in batches:
        assert ids.shape == segments.shape == numbers.shape and len(ids) % shards == 0
        assert ids.size <= max(1000, shards * ids.shape[1]) and len(ids) <= 16
        assert not ids[segments == 0].any() and (numbers[segments == 0] == -1).all()
        for row in range(len(ids)):
            changes = np.flatnonzero(np.diff(segments[row], prepend=0))
            assert len(changes) == len(set(segments[row][changes]))  # none comes back
            for segment in set(segments[row]) - {0}:
                where = segments[row] == segment
                found.append((tuple(ids[row, where]), tuple(numbers[row, where])))
    expected, start = [], 0
    for ids, length in zip(dialogues.tokens, lengths, strict=True):
        read = length - length // 2
        numbers = [-1] * read + list(range(start, start + length // 2))
        start += length // 2
        expected.append((tuple(ids), tuple(numbers)))
    assert sorted(found) == sorted(expected)


def test_hardly_any_padding_is_read():
    lengths = np.random.default_rng(0).integers(20, 200, 300)
    batches = packed_batches(
        dialogues_of(lengths), width=512, heads=HEADS, batch_tokens=4000, batch_rows=64
    )
    assert sum(batch.ids.size for batch in batches) < 1.1 * lengths.sum()
    assert len(lengths) * lengths.max() > 1.7 * lengths.sum()  # what padding alone would read


@pytest.mark.parametrize("shards", [1, 2])
def test_attention_to_long_texts_stays_within_its_limit(shards):
    """Rows of 1,024 tokens take 17 MB of logits: of four heads, in float32."""

    def rows(**limits):
        options = {"width": 512, "heads": HEADS, "shards": shards} | limits
        return {len(b.ids) for b in packed_batches(dialogues_of(np.full(8, 1000)), **options)}

    assert rows() == {8}  # 32,768 tokens would be allowed
    assert rows(logit_bytes=68_000_000) == {4}
    assert rows(logit_bytes=1) == {shards}  # that much is read in any case
    assert rows(heads=2 * 4096) == {shards}  # 33 GB a row: the limit that is always there
    assert rows(heads=256) == {4}


def test_one_long_text_makes_no_long_rows_of_short_ones():
    lengths = np.array([4096] + [100] * 50)
    long, short = packing_groups(lengths, WIDTH)
    assert list(long) == [0] and list(short) == list(range(1, 51))
    # A wide agent spends so little on attention that nothing speaks against one width.
    assert [len(group) for group in packing_groups(np.arange(90, 400), 4096)] == [310]
