"""Encoded items in files: the same items in the same order, and little of them in memory."""

from __future__ import annotations

import gc
import re
import sys
import tracemalloc
from pathlib import Path

import flat
import jax
import numpy as np
import pytest
from teams import build_team

from rmas_jax.data import Example
from rmas_jax.prompts import StageTokens, TokenRows
from rmas_jax.training.data import encoding
from rmas_jax.training.data.batches import Batches
from rmas_jax.training.data.encoding import EncodedItems, encode_examples
from rmas_jax.training.tuning.loop import encode_answers

WORDS = ("plan", "draft", "refined", "two", "a b", "from a to b")


def texts_of(i):
    return {role: (WORDS[i % 6] * (1 + i % 4),) * 2 for role in ("planner", "critic", "solver")}


EXAMPLES = [Example(str(i), " ".join(WORDS[: i % 7]), "", texts=texts_of(i)) for i in range(11)]


@pytest.mark.parametrize("encode", [encode_examples, encode_answers])
def test_items_and_their_order_are_those_of_one_part(encode, tmp_path, monkeypatch):
    team, _ = build_team(tmp_path)
    whole = encode(team, EXAMPLES)
    monkeypatch.setattr(encoding, "ENCODED_AT_ONCE", 3)
    parts = encode(team, EXAMPLES)
    flat.check_same(parts.batch(), whole.batch())
    ours, expected = (
        Batches(items, batch_size=2, key=jax.random.key(1)) for items in (parts, whole)
    )
    for step in range(12):
        assert ours.rows(step).tolist() == expected.rows(step).tolist()
        flat.check_same(ours[step], expected[step])


COUNT, WIDTH = 2000, 1500


def drawn(examples):
    """Items with a long prefix and two long texts each, and nothing else."""

    def rows(count, width):
        starts = np.arange(count + 1) * width
        return TokenRows(np.full(starts[-1], 7, np.int32), starts)

    empty = rows(len(examples), 0)
    tokens = StageTokens(rows(len(examples), WIDTH), ((empty, empty),), (False, False), 0, ())
    return EncodedItems({"solver": tokens}, {"solver": rows(2 * len(examples), WIDTH)}, rounds=2)


def held_by(make):
    """What `make` returns, and the bytes that it holds on the heap."""
    gc.collect()
    tracemalloc.start()
    try:
        made = make()
        gc.collect()
        return made, tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def read_bytes(items):
    """Bytes of the files of items that this process has in memory."""
    found, inside = 0, False
    begins = {rows.ids.ctypes.data for rows in jax.tree.leaves(items) if len(rows.ids)}
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if area := re.match(r"([0-9a-f]+)-[0-9a-f]+ ", line):
            inside = int(area[1], 16) in begins
        elif inside and line.startswith("Rss:"):
            found += 1024 * int(line.split()[1])
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_holds_the_tokens_of_the_rows_that_it_reads(monkeypatch):
    examples = [Example(str(i), "", "") for i in range(COUNT)]
    tokens = 4 * 3 * COUNT * WIDTH
    monkeypatch.setattr(encoding, "ENCODED_AT_ONCE", 100)
    in_memory, held = held_by(lambda: drawn(examples))
    assert held > tokens  # the control
    items, held = held_by(lambda: EncodedItems.on_disk(examples, drawn))
    assert held < tokens / 50
    assert items.lengths.sum() == 3 * COUNT * WIDTH and read_bytes(items) == 0
    mine = np.arange(0, COUNT, COUNT // 4)  # the system maps up to 256 KiB around each
    batch = items.batch(mine)
    assert 4 * 3 * len(mine) * WIDTH < read_bytes(items) < tokens / 4
    flat.check_same(batch, in_memory.batch(mine))
    items.batch()
    assert read_bytes(items) >= tokens  # the control
