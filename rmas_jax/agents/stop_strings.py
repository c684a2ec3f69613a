"""Strings at which writing stops, as a table that a decode loop can follow on the device.

A string may begin and end anywhere within tokens, so what is matched is characters: an automaton
whose states are the beginnings of the strings (Aho and Corasick, 1975), advanced by all of a
token's characters at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rmas_jax.models.tokenizer import token_texts


def stop_table(tokenizer: Any, strings: Sequence[str]) -> np.ndarray:
    """What a token makes of the end of a text, [S, V] int32; case does not matter.

    Text starts in state 0. State S - 1 means that one of the strings has been written, and is never
    left.

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
        """The state of a text: its longest end that is the beginning of a string."""
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
    for column in codes.T:
        table = np.where(column >= 0, moves[table, column], table)
    return table
