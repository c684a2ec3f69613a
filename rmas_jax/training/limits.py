"""How much is read at once without gradients, so that it fits beside the agents."""

from __future__ import annotations

BATCH_ROWS = 256
BATCH_TOKENS = 2**15  # padding included; bounds keys, values and hidden states


def rows_at_once(length: int) -> int:
    """Rows of this many tokens that are read at once, at least one."""
    return max(1, min(BATCH_ROWS, BATCH_TOKENS // length))
