"""Checks that every token id of a run has a row in the embedding.

In a compiled program, an id without a row gives NaN or another token's values. Ids are therefore
checked at their source: tokenizers and templates at load, arrays where their values are known.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from rmas_jax.host.errors import listed, shown
from rmas_jax.models.errors import CheckpointError
from rmas_jax.models.tokenizer import Tokenizer

WAY_OUT = (
    "resize the embedding (in transformers: model.resize_token_embeddings(len(tokenizer))), or use "
    "the tokenizer that the model was trained with"
)


def check_tokenizer(tokenizer: Tokenizer, rows: int, *, source: str) -> None:
    """Refuses a tokenizer whose ids for ordinary text include some without a row.

    Special tokens may lack a row: text never contains one, and published checkpoints have some for
    other sizes of the model (Gemma-3's `<image_soft_token>`). `check_ids` finds those in a chat
    template.

    Args:
      tokenizer: of an agent.
      rows: of its embedding.
      source: the checkpoint, for the error.

    Raises:
      CheckpointError: names the tokens.
    """
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    beyond = {i: t for t, i in tokenizer.get_vocab().items() if i >= rows and i not in special}
    if beyond:
        _refuse({i: beyond[i] for i in sorted(beyond)}, rows, f"{source}: tokens")


def check_ids(
    ids: Iterable[int] | np.ndarray, rows: int, *, tokenizer: Tokenizer, what: str
) -> None:
    """Refuses ids without a row; `what` names their source in the error.

    Raises:
      CheckpointError: names the tokens.
    """
    found = np.unique(np.asarray(ids, np.int64))
    if (beyond := found[found >= rows].tolist()) or (beyond := found[found < 0].tolist()):
        _refuse({i: _text(tokenizer, i) for i in beyond}, rows, what)


def check_array(ids: Any, rows: int) -> None:
    """Refuses an array with an id without a row; no check under jit.

    Raises:
      CheckpointError: names the id.
    """
    if isinstance(ids, jax.Array) and (
        isinstance(ids, jax.core.Tracer) or not ids.is_fully_addressable
    ):
        return
    known = np.asarray(ids)
    if known.size and not 0 <= known.min() <= known.max() < rows:
        worst = known.min() if known.min() < 0 else known.max()
        raise CheckpointError(
            f"token id must be from 0 to {rows - 1} (rows of the embedding), got {worst}; {WAY_OUT}"
        )


def usable_ends(
    end_tokens: Sequence[int], rows: int, *, tokenizer: Tokenizer, source: str
) -> tuple[int, ...]:
    """The end tokens that the model can write.

    Raises:
      CheckpointError: no end token has a row.
    """
    usable = tuple(token for token in end_tokens if token < rows)
    if end_tokens and not usable:
        named = {token: _text(tokenizer, token) for token in end_tokens}
        _refuse(named, rows, f"{source}: end tokens")
    return usable


def _text(tokenizer: Tokenizer, token: int) -> str | None:
    """A token's text; None where the tokenizer has no such id."""
    try:
        return tokenizer.convert_ids_to_tokens(token)
    except (IndexError, OverflowError):
        return None


def _refuse(tokens: dict[int, str | None], rows: int, where: str) -> None:
    named = [f"{shown(text)} (id {shown(token)})" for token, text in tokens.items()]
    raise CheckpointError(
        f"{where} must have ids from 0 to {rows - 1} (rows of the embedding), got "
        f"{', '.join(listed(named, 5))}; {WAY_OUT}"
    )
