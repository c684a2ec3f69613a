"""Lists of random tokens that an agent reads twice: thoughts of words that no training text holds.

Role texts hold few words, and an inner link learns what these look like; asked for another one, its
nearest token is often wrong. Before a second copy of a list the states of a language model predict
its tokens, whatever they are (induction heads, Olsson et al. 2022), so that lists show a link the
whole vocabulary at the price of two tokens each.
"""

from __future__ import annotations

import numpy as np

from rmas_jax.models.plain_text import encode_plain
from rmas_jax.models.tokenizer import Tokenizer
from rmas_jax.prompts import TokenRows
from rmas_jax.training.data.encoding import Dialogues, learned_tokens

LIST_TOKENS = 64  # of a copy: the first few of the second one are hard to foresee


def encode_lists(tokenizer: Tokenizer, tokens: np.ndarray, count: int) -> Dialogues:
    """Dialogues of a list, a line end and, as the text, the list again.

    Args:
      tokenizer: of the agent that reads them; a list begins with its first token, if it has one.
      tokens: ids to draw from, every one about equally often; at least one.
      count: number of lists, the same ones at every call.
    """
    rng = np.random.default_rng(0)
    size = count * LIST_TOKENS
    orders = [rng.permutation(tokens) for _ in range(-(-size // len(tokens)))]
    lists = np.concatenate([np.zeros(0, np.int32), *orders])[:size].reshape(count, LIST_TOKENS)
    first = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    between = encode_plain(tokenizer, ["\n"])[0]
    rows = [[*first, *drawn, *between, *drawn] for drawn in lists.tolist()]
    return Dialogues(TokenRows.of(rows), np.full(count, LIST_TOKENS))


def with_lists(texts: Dialogues, lists: Dialogues) -> Dialogues:
    """Dialogues and, after them, lists; the former repeat, to be half of what is learned."""
    learned, drawn = learned_tokens(texts), lists.text_lengths
    times = max(1, round(drawn.sum() / len(learned)))
    rows = np.arange(len(texts.tokens)) if texts.rows is None else texts.rows
    return Dialogues(
        TokenRows.joined(texts.tokens, lists.tokens),
        np.concatenate([texts.text_lengths, drawn]),
        np.concatenate([np.tile(rows, times), len(texts.tokens) + np.arange(len(drawn))]),
    )
