"""A text that is passed on while its tokens are being written, as far as it cannot change any more.

    stop string "\\nUser:"    tokens    Ro | me. |  \\n | Us | er | :  The
                             passed    Ro | me.              held back: a blank at the end, a half
                                                             character, what may begin a stop string

All parts together are the text of `answers.write_texts` for the same tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from rmas_jax.agents.stop_strings import before_stop
from rmas_jax.agents.thinking_tags import ShownText
from rmas_jax.models.tokenizer import Tokenizer, token_texts

HALF = "\ufffd"  # in place of a character whose bytes are incomplete
BYTE = re.compile("<0x[0-9A-F]{2}>")  # name of a token that is a byte, in some vocabularies


class Part(NamedTuple):
    """The next part of a text."""

    text: str
    tokens: list[tuple[str, float]]  # each with its log probability; none without a text


class TokenTexts:
    """The texts of a tokenizer's tokens, alone and together."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.shown = ShownText(tokenizer)
        vocabulary = tokenizer.get_vocab().items()
        self.bytes = {token for name, token in vocabulary if BYTE.fullmatch(name)}
        texts = enumerate(token_texts(tokenizer))
        self.alone = [text or HALF * (token in self.bytes) for token, text in texts]

    def of(self, token: int) -> str:
        """The text of a token; none of special ones, and beyond the tokenizer's last."""
        return self.alone[token] if token < len(self.alone) else ""


class TextStream:
    """The text of an agent, from its tokens."""

    def __init__(self, texts: TokenTexts, *, opening: str = "", stops: Sequence[str] = ()):
        """Args:
        texts: of the agent's tokenizer.
        opening: the tag of a thinking block that the prompt opens.
        stops: the text ends before the first of these, in any case; none of them is empty.
        """
        self.texts, self.stops = texts, stops
        self.ids: list[int] = []  # up to the one that completes a stop string
        self.has_stopped = False
        self._logprobs: list[float] = []
        self._kept: list[int] = []  # once it has stopped: ids of the text before the string
        self._opening = opening  # until it is passed
        self._passed = ""
        self._taken = 0  # tokens whose log probability is passed
        self._length = 0  # characters of these

    def add(self, tokens: Sequence[int], logprobs: Sequence[float]) -> None:
        """Takes the next tokens; drops those behind a stop string."""
        known = len(self.ids)
        self.ids += tokens
        self._logprobs += logprobs
        if not self.stops:
            return
        # A string that is found stays where it is, unless bytes behind it change the text.
        if self.texts.bytes.isdisjoint(tokens) and self._before_stop(len(self.ids)) is None:
            return
        for count in range(known + 1, len(self.ids) + 1):
            if (kept := self._before_stop(count)) is not None:
                self.has_stopped, self._kept = True, kept
                del self.ids[count:], self._logprobs[count:]
                return

    def _before_stop(self, count: int) -> list[int] | None:
        return before_stop(self.texts.tokenizer, self.ids[:count], self.stops)

    def part(self) -> Part | None:
        """The next part that no later token can change; None: there is none yet."""
        # Later bytes may change bytes at the end, also across tokens that are no text.
        whole, open_ended = len(self.ids), self.texts.bytes | self.texts.shown.hidden
        while whole and self.ids[whole - 1] in open_ended:
            whole -= 1
        raw = self.texts.shown(self.ids[:whole])
        settled = self._settled(raw)
        if not (text := self._next(raw[:settled])):
            return None
        upto = self._taken
        while upto < len(self.ids) and self._length + len(self._piece(upto)) <= settled:
            self._length += len(self._piece(upto))
            upto += 1
        return Part(text, self._take(upto))

    def last(self) -> Part:
        """The rest of a text that has ended."""
        if not self.has_stopped:
            return Part(self._next(self.texts.shown(self.ids)), self._take(len(self.ids)))
        text, whole = self._next(self.texts.shown(self._kept)), 0
        while whole < len(self._kept) and self._kept[whole] == self.ids[whole]:
            whole += 1
        tokens = self._take(whole)
        if cut := "".join(self.texts.of(token) for token in self._kept[whole:]):
            tokens.append((cut, self._logprobs[whole]))  # the part of a token before the string
        return Part(text, tokens)

    def _settled(self, raw: str) -> int:
        """Characters of the text so far that later tokens leave as they are."""
        end = len(raw.rstrip(HALF))
        lower, held = raw[:end].lower(), 0
        for stop in self.stops:
            begins = (n for n in range(len(stop) - 1, held, -1) if lower.endswith(stop[:n].lower()))
            held = next(begins, held)
        return end - min(held, end)

    def _next(self, text: str) -> str:
        """The part of a text, without outer blanks, that is not passed yet."""
        text = text.strip()
        new = text[len(self._passed) :] if text.startswith(self._passed) else ""
        opening, self._opening = self._opening, ""
        self._passed += new
        return opening + new

    def _take(self, upto: int) -> list[tuple[str, float]]:
        """Tokens up to a number with their log probabilities; special ones are no text."""
        found = [
            (self._piece(i), self._logprobs[i]) for i in range(self._taken, upto) if self._piece(i)
        ]
        self._taken = max(self._taken, upto)
        return found

    def _piece(self, place: int) -> str:
        return self.texts.of(self.ids[place])
