"""Batch limits of reading without gradients, so that a batch fits beside the agents."""

from __future__ import annotations

BATCH_ROWS = 256
BATCH_TOKENS = 2**15  # padding included; bounds keys, values and hidden states
LOGIT_BYTES = 2**32  # of attention in a layer, [B, N, T, T] in float32


def rows_at_once(
    length: int,
    heads: int,
    *,
    batch_rows: int = BATCH_ROWS,
    batch_tokens: int = BATCH_TOKENS,
    logit_bytes: int = LOGIT_BYTES,
) -> int:
    """Rows of T tokens to read at once by an agent with N query heads, at least one.

    A single row may exceed the limits: rows are not split.
    """
    logits = 4 * heads * length**2  # of a row
    return max(1, min(batch_rows, batch_tokens // length, logit_bytes // logits))
