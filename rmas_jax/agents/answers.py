"""Writing an agent's text: decoding, tool calls, and a retry where the text has no answer.

    prompt, latents | text </python> | <result> .. </result> | text | Final answer: \\boxed{ | text
    written by:       agent            tool                    agent  the retry                agent

Between these pieces the text leaves the device; the cache of the prompt's prefix stays.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import NamedTuple

import jax
import numpy as np

from rmas_jax.agents.member import Member
from rmas_jax.agents.reading import PromptInput
from rmas_jax.agents.sampling import GREEDY
from rmas_jax.agents.stop_strings import before_stop, stop_table
from rmas_jax.agents.thinking_tags import ShownText, after_thinking, missing_end, opened_by
from rmas_jax.agents.writing import write
from rmas_jax.host.nonfinite import NonFiniteError
from rmas_jax.host.processes import broadcast_from_first
from rmas_jax.models.flops import text_flops
from rmas_jax.models.generation import SamplingConfig
from rmas_jax.models.plain_text import encode
from rmas_jax.models.tokenizer import Tokenizer
from rmas_jax.prompts import SENTINEL, encode_piece, left_pad, task_types
from rmas_jax.sharding import to_host
from rmas_jax.tools import (
    CLOSING_TAGS,
    RESULT_TAGS,
    Toolbox,
    limit_text,
    next_call,
    result_text,
)

PROMPT_END = 16  # tokens of a prompt that may hold the tag of a thinking block at its end
WIDTHS = 64  # continued texts are padded to a power of two times this: few programs


@dataclasses.dataclass(frozen=True)
class AnswerRetry:
    """Continuation of a text that has no answer after its thinking."""

    answer: str  # regular expression of an answer
    opening: str  # start of the answer, which the agent continues
    max_tokens: int  # of the continuation


def answer_retry_of(task_type: str | None) -> AnswerRetry | None:
    """The retry of a task type; None where answers have no fixed format."""
    entry = {} if task_type is None else task_types().get(task_type, {})
    return AnswerRetry(**entry["answer_retry"]) if "answer_retry" in entry else None


class Texts(NamedTuple):
    """An agent's texts and their cost."""

    opening: str  # tag of the thinking block that the prompt opens: all texts start inside it
    texts: list[str]  # B, without special tokens and outer whitespace; with tool results
    tokens: np.ndarray  # [B] int32 decoded tokens, each a model step; end tokens included
    calls: np.ndarray  # [B] int32 tool calls
    retried: np.ndarray  # [B] bool
    at_limit: np.ndarray  # [B] bool; cut off at `max_tokens`, before any retry
    flops: np.ndarray  # [B] float64 of the prompt's body and the text; not of the prefix


class Piece(NamedTuple):
    """What an agent has written of B texts, on the host."""

    tokens: np.ndarray  # [B, W] int32
    lengths: np.ndarray  # [B] int32
    finite: np.ndarray  # [B] bool; the logits of all tokens are


write_jitted = jax.jit(write, static_argnames=("end_tokens", "max_tokens", "sampling"))
_stop_table = functools.lru_cache(maxsize=8)(stop_table)
_next_keys = jax.jit(jax.vmap(jax.random.fold_in, (0, None)))


def write_texts(
    member: Member,
    prompt: PromptInput,
    *,
    max_tokens: int,
    limits: np.ndarray | None = None,
    sampling: SamplingConfig = GREEDY,
    keys: jax.Array | None = None,
    toolbox: Toolbox | None = None,
    answer_retry: AnswerRetry | None = None,
    stage: str = "answer",
    first: Piece | None = None,
) -> Texts:
    """Writes a text per row. Do not jit: tools and tokenizers run on the host.

    Rollouts share the prompt, latents included: one call per rollout, with other keys.

    Args:
      member: the writer.
      prompt: batch B.
      max_tokens: maximum tokens of a text, over all its pieces but the retry.
      limits: [B] the same for each row, at most `max_tokens`; a row of 0 stays empty.
      sampling: sampling rules.
      keys: [B] PRNG keys; needed for sampling.
      toolbox: the available tools; a row pauses at its closing tag, independently of the others.
        The first process calls the tools.
      answer_retry: continuation of texts without an answer; the agent still sees its prompt and
        received latents (upstream: its text alone).
      stage: the agent's turn, as named in errors.
      first: the texts up to their first tool call or end, if they are written already, with the
        same settings.

    Raises:
      NonFiniteError: logits of the agent are NaN or infinite.
    """
    batch = prompt.ids.shape[0]
    tokenizer, end_tokens = member.tokenizer, member.end_tokens
    opening = opening_of(tokenizer, *to_host((prompt.ids, prompt.valid)))
    rows = _Rows(tokenizer, batch, end_tokens, member.stop_strings)
    stops = stops_of(member, toolbox)
    pieces = 0

    def write_piece(limits: np.ndarray, stops: np.ndarray | None, max_tokens: int) -> None:
        """Writes rows up to their limits [B]; a limit of 0 leaves a row as it is."""
        nonlocal pieces
        piece = None if pieces else first
        if piece is None:
            so_far = rows.padded() if any(rows.ids) else {}
            piece_keys = keys if keys is None or not pieces else _next_keys(keys, pieces)
            state = write_jitted(
                member.agent,
                prompt,
                **so_far,
                end_tokens=end_tokens,
                max_tokens=max_tokens,
                sampling=sampling,
                keys=piece_keys,
                limits=limits.astype(np.int32),
                stops=stops,
            )
            piece = Piece(*to_host((state.tokens, state.lengths, state.finite)))
        if len(bad := np.flatnonzero(~piece.finite)):
            raise NonFiniteError(member.role, f"{stage}: logits", bad.tolist())
        rows.add(piece.tokens, piece.lengths)
        pieces += 1

    calls, cursor = np.zeros(batch, np.int32), np.zeros(batch, np.int32)
    allowed = np.full(batch, max_tokens) if limits is None else limits
    limits = allowed
    while limits.any():
        written = rows.written.copy()
        writing = limits > 0
        write_piece(limits, stops, max_tokens)
        limits = np.where(writing, limits - (rows.written - written), 0)
        for i in np.flatnonzero(writing).tolist():
            text = rows.text(i)
            if (
                toolbox is None
                or rows.stopped[i]
                or (call := next_call(text, int(cursor[i]))) is None
            ):
                limits[i] = 0
                continue
            if calls[i] == toolbox.max_calls:
                rows.append(i, limit_text(toolbox.max_calls))
                limits[i] = 0
                continue
            calls[i] += 1
            result = broadcast_from_first(functools.partial(toolbox.run, call))
            rows.append_result(i, result_text(result, toolbox.max_characters))
            cursor[i] = len(rows.text(i))

    at_limit = (rows.written >= allowed) & ~rows.ended()
    retried = np.zeros(batch, bool)
    if answer_retry is not None:
        for i in range(batch):
            text = opening + rows.text(i)
            final = after_thinking(text)
            if final is None or not re.search(answer_retry.answer, final, re.DOTALL):
                retried[i] = True
                rows.append(i, missing_end(text) + answer_retry.opening)
        if retried.any():
            limits = np.where(retried, answer_retry.max_tokens, 0)
            write_piece(limits, stops_of(member, None), answer_retry.max_tokens)
    texts = [rows.text(i).strip() for i in range(batch)]
    prefix, valid = to_host((prompt.prefix.next_position, prompt.valid))
    flops = text_flops(
        member.agent.config,
        rows.written,
        body=valid.sum(axis=1),
        prefix=prefix,
        text=[len(ids) for ids in rows.ids],
    )
    return Texts(opening, texts, rows.written, calls, retried, at_limit, flops)


def stops_of(member: Member, toolbox: Toolbox | None) -> np.ndarray | None:
    """The table of the strings at which a text ends, or pauses for a tool; see `stop_strings`."""
    strings = (*member.stop_strings, *(CLOSING_TAGS if toolbox else ()))
    return _stop_table(member.tokenizer, strings) if strings else None


def opening_of(tokenizer: Tokenizer, ids: np.ndarray, valid: np.ndarray) -> str:
    """The opening tag of a thinking block at the end of prompts [B, T], alike in all, or ""."""
    end = ids[0, -PROMPT_END:][valid[0, -PROMPT_END:]]
    return opened_by(tokenizer.decode(end.tolist(), skip_special_tokens=False))


class _Rows:
    """Token ids of every row's text so far, and the number that the agent wrote."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        batch: int,
        end_tokens: tuple[int, ...],
        stop_strings: tuple[str, ...] = (),
    ):
        self.tokenizer, self.end_tokens, self.stop_strings = tokenizer, end_tokens, stop_strings
        self.stopped = np.zeros(batch, bool)  # at one of the stop strings
        self.shown = ShownText(tokenizer)
        self.ids: list[list[int]] = [[] for _ in range(batch)]
        self.written = np.zeros(batch, np.int32)

    def add(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        """Adds the agent's tokens [B, W] up to lengths [B], without a stop string at their end."""
        for i, (row, length) in enumerate(zip(tokens.tolist(), lengths.tolist(), strict=True)):
            new = row[:length]
            if self.stop_strings and length:
                before = before_stop(self.tokenizer, new, self.stop_strings)
                self.stopped[i] = before is not None
                new = new if before is None else before
            self.ids[i] += new
        self.written += lengths

    def append(self, i: int, text: str) -> None:
        """Adds a given text to row `i` and removes its end token."""
        self._extend(i, encode(self.tokenizer, [text])[0])

    def append_result(self, i: int, text: str) -> None:
        """Adds a tool result; only its tags may become markers."""
        before, behind = RESULT_TAGS
        mark = SENTINEL.format("question")
        content = text.removeprefix(before).removesuffix(behind)
        self._extend(i, encode_piece(self.tokenizer, mark.join(RESULT_TAGS), [content])[0])

    def _extend(self, i: int, new: list[int]) -> None:
        ids = self.ids[i]
        if ids and ids[-1] in self.end_tokens:
            ids.pop()
        ids += new

    def ended(self) -> np.ndarray:
        """Whether each row ends in an end token, or at a stop string [B]."""
        ends = [bool(ids) and ids[-1] in self.end_tokens for ids in self.ids]
        return np.array(ends) | self.stopped

    def text(self, i: int) -> str:
        """The text of row `i`, without special tokens but those of thinking."""
        return self.shown(self.ids[i])

    def padded(self) -> dict[str, np.ndarray]:
        """All rows as arguments of `write`; an empty row, which writes nothing, gets one token."""
        longest = max(map(len, self.ids))
        width = WIDTHS * 2 ** max(0, (longest - 1) // WIDTHS).bit_length()
        ids, valid = left_pad([row or [0] for row in self.ids], width)
        return {"continuation_ids": ids, "continuation_valid": valid}
