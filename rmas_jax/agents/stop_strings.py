"""Stop strings as a transition table for the decode loop on the device.

A string may begin and end anywhere within tokens, so the table matches characters: an automaton
whose states are the prefixes of the strings (Aho and Corasick, 1975), advanced by all of a token's
characters at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rmas_jax.models.plain_text import encode_plain
from rmas_jax.models.tokenizer import Tokenizer, token_texts


def before_stop(
    tokenizer: Tokenizer, ids: Sequence[int], strings: Sequence[str]
) -> list[int] | None:
    """Token ids of a text before the first of some strings; None if it has none. Ignores case.

    ids    Rome | .\\n | User | : The        tokens that only begin before the string are
    kept   Rome | .                        replaced by those of their own text
    """

    def text_of(ids: Sequence[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=True)

    text, kept = text_of(ids), list(ids)
    found = [text.lower().find(string.lower()) for string in strings]
    if not (places := [place for place in found if place >= 0]):
        return None
    while kept and len(text_of(kept)) > min(places):
        kept.pop()
    rest = text[len(text_of(kept)) : min(places)]
    return kept + (encode_plain(tokenizer, [rest])[0] if rest else [])


def stop_table(tokenizer: Tokenizer, strings: Sequence[str]) -> np.ndarray:
    """State after a token, by state and token id: [S, V] int32; ignores case.

    Text starts in state 0. State S - 1 is final: the text holds one of the strings.

        state, for "</s>":   0 ""    1 "<"    2 "</"    3 "</s"    4 "</s>"
        table[1, id of "/s> so"] = 4

    Raises:
      ValueError: there are no strings, or an empty one.
    """
    if not strings or not all(strings):
        raise ValueError(f"stop strings must be one or more, none of them empty, got {strings!r}")
    strings = [string.lower() for string in strings]
    beginnings = sorted({s[:n] for s in strings for n in range(len(s))}, key=lambda s: (len(s), s))
    stopped = len(beginnings)
    state = {text: i for i, text in enumerate(beginnings)}
    letters = {letter: i + 1 for i, letter in enumerate(sorted(set("".join(strings))))}  # 0: others

    def after(text: str) -> int:
        """The state of a text: its longest suffix that is a prefix of a string."""
        if text.endswith(tuple(strings)):
            return stopped
        return next(state[text[n:]] for n in range(len(text) + 1) if text[n:] in state)

    moves = np.zeros((stopped + 1, len(letters) + 1), np.int32)
    moves[stopped] = stopped
    for text in beginnings:
        for letter, column in letters.items():
            moves[state[text], column] = after(text + letter)

    texts = [text.lower() for text in token_texts(tokenizer)]
    codes = np.full((len(texts), max(map(len, texts))), -1)
    for i, text in enumerate(texts):
        codes[i, : len(text)] = [letters.get(letter, 0) for letter in text]
    table = np.tile(np.arange(stopped + 1, dtype=np.int32)[:, None], (1, len(texts)))
    for columns in codes.T:
        table = np.where(columns >= 0, moves[table, columns], table)
    return table
