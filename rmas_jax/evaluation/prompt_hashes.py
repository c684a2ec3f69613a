"""Digests of prompts, so that two runs can show that they asked the same."""

from __future__ import annotations

import hashlib

import numpy as np

from rmas_jax.agents.reading import PromptInput
from rmas_jax.prompts import StagePrompt
from rmas_jax.sharding import to_host

LATENT = -1  # in place of the id at a received vector


def prompt_hashes(prompt: StagePrompt, filled: PromptInput) -> tuple[str, ...]:
    """SHA-256 of the token ids of each row [B], from the prefix to the end of the body.

    Padding does not count, so it is the same in every batch; a position with a latent counts as -1,
    a message in text with its tokens. Ids are hashed as int32, little-endian.

    Args:
      prompt: as encoded, with the prefix.
      filled: the same with its slots filled.
    """
    ids, valid = to_host((filled.ids, filled.valid))
    is_latent = np.asarray(filled.slot_index) >= 0
    body = np.where(is_latent[None], LATENT, ids)
    return tuple(
        hashlib.sha256(
            np.concatenate([before[real], own[kept]]).astype("<i4").tobytes()
        ).hexdigest()
        for before, real, own, kept in zip(
            *map(np.asarray, (prompt.prefix_ids, prompt.prefix_valid, body, valid)), strict=True
        )
    )
