"""Encodes prompts with questions as arrays: tokens, and the slots between them.

A prompt becomes blocks, each padded on the left, so that the last position is always a real token:

    prefix            body of round r
    . . q q q q q     . l l | z z z z | . s s s      . padding, q prefix, l lead, z slot, s suffix

The prefix (system text, question) is the same in every round and is read once; every round reads
the body. Slots that the first round lacks are invalid there, so all rounds use one compiled body.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import struct

from rmas_jax.models.plain_text import encode, encode_plain, marker_ids
from rmas_jax.models.tokenizer import Tokenizer
from rmas_jax.prompts.chat import FILLED, split_template
from rmas_jax.prompts.columns import Question, filled
from rmas_jax.prompts.templates import PromptError, RolePrompt
from rmas_jax.prompts.token_rows import TokenRows

FIRST, LATER = 0, 1  # round kinds, each with its own template
TILES = (64, 8), (128, 32), (512, 64)  # up to so many tokens, multiples of the tile
LARGEST_TILE = 128  # lanes of a TPU


class StagePrompt(struct.PyTreeNode):
    """One role's prompts for a batch of questions; the batch is the leading axis."""

    prefix_ids: Any  # [B, P] int32; read once
    prefix_valid: Any  # [B, P] bool
    body_ids: Any  # [B, 2, T] int32; by round kind; 0 at slots
    body_valid: Any  # [B, 2, T] bool; by round kind; False at slots that the kind lacks
    slot_index: tuple[int, ...] = struct.field(pytree_node=False)  # [T] received vector, -1 a token
    senders: tuple[str, ...] = struct.field(pytree_node=False)  # roles, in the order of the slots


class StageTokens(struct.PyTreeNode):
    """One role's prompts for N questions without padding: the blocks around the slots.

    A tree whose leaves are `TokenRows`, of N rows each.
    """

    prefix: TokenRows
    blocks: tuple[tuple[TokenRows, TokenRows], ...]  # by block, then by round kind
    has_slots: tuple[bool, bool] = struct.field(pytree_node=False)  # by round kind
    slot_width: int = struct.field(pytree_node=False)  # vectors per slot (M)
    # Roles, in the order of the slots; one fewer than blocks.
    senders: tuple[str, ...] = struct.field(pytree_node=False)

    def __len__(self) -> int:
        return len(self.prefix)

    @property
    def lengths(self) -> np.ndarray:
        """Positions of each prompt [N] without padding, of both round kinds together."""
        slots = self.slot_width * len(self.senders) * sum(self.has_slots)
        return self.prefix.lengths + slots + sum(x.lengths for block in self.blocks for x in block)

    def take(self, rows: Any) -> StageTokens:
        """The prompts of the given questions."""
        return jax.tree.map(lambda part: part.take(rows), self)

    def widths(self, rows: Any, *, is_tiled: bool = False) -> tuple[int, ...]:
        """Tokens of the longest of the given rows, in the prefix and in each block.

        With `is_tiled`, `tiled_width` of them, but in blocks that are alike in all questions.
        """
        longest = []
        for parts in ((self.prefix,), *self.blocks):
            width = max(int(part.lengths[rows].max()) for part in parts)
            differs = any(np.ptp(part.lengths) for part in parts)
            longest.append(tiled_width(width) if is_tiled and differs else width)
        return tuple(longest)

    def padded(self, rows: Any, widths: Sequence[int]) -> StagePrompt:
        """The prompts of the given questions as arrays, with blocks of these widths."""
        prefix_ids, prefix_valid = self.prefix.padded(rows, widths[0], left=True)
        shape = (len(rows), 2, self.slot_width)
        slot = np.zeros(shape, np.int32), np.broadcast_to(np.array(self.has_slots)[:, None], shape)
        ids, valid, slot_index = [], [], []
        for k, (block, width) in enumerate(zip(self.blocks, widths[1:], strict=True)):
            padded = [of_kind.padded(rows, width, left=True) for of_kind in block]
            ids.append(np.stack([p[0] for p in padded], axis=1))
            valid.append(np.stack([p[1] for p in padded], axis=1))
            slot_index += [-1] * width
            if k < len(self.senders):
                ids.append(slot[0])
                valid.append(slot[1])
                slot_index += range(k * self.slot_width, (k + 1) * self.slot_width)
        return StagePrompt(
            prefix_ids=prefix_ids,
            prefix_valid=prefix_valid,
            body_ids=np.concatenate(ids, axis=-1),
            body_valid=np.concatenate(valid, axis=-1),
            slot_index=tuple(slot_index),
            senders=self.senders,
        )


def encode_piece(tokenizer: Tokenizer, text: str, questions: Sequence[Question]) -> list[list[int]]:
    """Token ids of a piece of a rendered template, one row per question.

    A question or column that contains a marker of the tokenizer, or completes one with the adjacent
    text, is tokenised separately, so that it cannot end its turn.

    Raises:
      PromptError: a question lacks a column of the piece.
    """
    pieces = FILLED.split(text)  # [text, field, text, field, ..., text]
    texts, fields = pieces[0::2], pieces[1::2]
    around = encode(tokenizer, texts)
    if not fields:
        return around * len(questions)
    rest = texts[1:]
    own = [[filled(question, field) for field in fields] for question in questions]
    rows = encode(tokenizer, [texts[0] + _joined(contents, rest) for contents in own])
    markers = marker_ids(tokenizer)
    ours = [token for piece in around for token in piece if token in markers]
    for i, contents in enumerate(own):
        if [token for token in rows[i] if token in markers] != ours:
            rows[i] = list(around[0])
            for content, after in zip(contents, rest, strict=True):
                rows[i] += _encode_inside(tokenizer, content)
                rows[i] += _encode_inside(tokenizer, after, plain=False)
    return rows


def _joined(contents: Sequence[str], rest: Sequence[str]) -> str:
    """Contents of fields, each with the text after it."""
    return "".join(part for pair in zip(contents, rest, strict=True) for part in pair)


def _encode_inside(tokenizer: Tokenizer, text: str, *, plain: bool = True) -> list[int]:
    """Token ids of a text inside a longer one.

    Some tokenizers (sentencepiece's) add a space at the start of every text. They get the text with
    an anchor before it, one whose tokens do not merge with the text's.
    """
    read = encode_plain if plain else encode
    alone = read(tokenizer, [text])[0]
    for anchor in ("\n", ".", "x"):
        before, letter, anchored_letter, anchored = read(
            tokenizer, [anchor, "a", f"{anchor}a", anchor + text]
        )
        if anchored_letter == before + letter:
            return alone  # this tokenizer adds no space
        if anchored[: len(before)] == before:
            return anchored[len(before) :]
    return alone


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common prefix of two sequences."""
    for i, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return i
    return min(len(first), len(second))


def declared_width(tokens: int) -> int:
    """The padded width of a block of tokens, one of few, to limit the number of programs.

    Multiples of 8 up to 64, then 96, 128, 192, 256, 384, ...: at most half as wide again.
    """
    if tokens <= 64:
        return -(-tokens // 8) * 8
    power = 1 << (tokens - 1).bit_length()
    return 3 * power // 4 if tokens <= 3 * power // 4 else power


def tiled_width(tokens: int) -> int:
    """The padded width of a block of a training batch: whole tiles of a TPU, and few programs.

    Multiples of 8 up to 64, of 32 up to 128, of 64 up to 512, then of 128.
    """
    tile = next((tile for most, tile in TILES if tokens <= most), LARGEST_TILE)
    return -(-tokens // tile) * tile


def exact_width(tokens: int) -> int:
    """The width of the longest row, for batches that are encoded once."""
    return tokens


def encode_stage(
    tokenizer: Tokenizer,
    prompt: RolePrompt,
    questions: Sequence[Question],
    *,
    slot_width: int,
    block_width: Callable[[int], int] = exact_width,
) -> StagePrompt:
    """Tokenises a role's prompt for a batch of questions.

    Args:
      tokenizer: the agent's.
      prompt: templates of the role.
      questions: B of them, with the columns of the prompt; no text can move a slot or end a turn.
      slot_width: vectors per slot (M).
      block_width: tokens of the longest row of a block -> width of the block. With
        `declared_width`, single questions need few programs.
    """
    tokens = stage_tokens(tokenizer, prompt, questions, slot_width=slot_width)
    rows = np.arange(len(questions))
    return tokens.padded(rows, [block_width(width) for width in tokens.widths(rows)])


def stage_tokens(
    tokenizer: Tokenizer, prompt: RolePrompt, questions: Sequence[Question], *, slot_width: int
) -> StageTokens:
    """As `encode_stage`, without padding, for any number of questions."""
    templates = {FIRST: prompt.first, LATER: prompt.later}
    parts = {kind: split_template(tokenizer, prompt, text) for kind, text in templates.items()}
    senders = tuple(parts[LATER][1::2])
    if tuple(parts[FIRST][1::2]) not in ((), senders):
        raise PromptError(
            f"slots of the first round must be none or those of later rounds, {list(senders)}, "
            f"got {parts[FIRST][1::2]}"
        )
    pieces = {kind: of[0::2] for kind, of in parts.items()}
    prefix, *blocks = _tokenise(tokenizer, pieces, questions)
    return StageTokens(
        prefix=prefix,
        blocks=tuple(zip(blocks[0::2], blocks[1::2], strict=True)),
        has_slots=(len(pieces[FIRST]) > 1, len(pieces[LATER]) > 1),
        slot_width=slot_width,
        senders=senders,
    )


def _tokenise(
    tokenizer: Tokenizer, pieces: dict[int, list[str]], questions: Sequence[Question]
) -> list[TokenRows]:
    """The prefix, and for each block its rows in the first round and in later ones."""
    texts = {
        kind: [encode_piece(tokenizer, text, questions) for text in of]
        for kind, of in pieces.items()
    }
    # The prefix is the common start of both prompts, the rest of each is its body. The prefix never
    # includes a prompt's last token, so a body always ends in a real token.
    shared = [
        min(_common(a, b), len(a) - 1, len(b) - 1 if len(texts[LATER]) == 1 else len(b))
        if len(texts[FIRST]) == 1
        else _common(a, b)
        for a, b in zip(texts[FIRST][0], texts[LATER][0], strict=True)
    ]
    found = [TokenRows.of([row[:n] for row, n in zip(texts[LATER][0], shared, strict=True)])]
    empty: list[list[int]] = [[] for _ in questions]
    blocks: dict[int, list[list[list[int]]]] = {}
    for kind, rows in texts.items():
        rest = [row[n:] for row, n in zip(rows[0], shared, strict=True)]
        if len(rows) == 1:  # no slot: the last block holds all
            blocks[kind] = [empty] * (len(texts[LATER]) - 1) + [rest]
        else:
            blocks[kind] = [rest, *rows[1:]]
    for of_block in zip(blocks[FIRST], blocks[LATER], strict=True):
        found += map(TokenRows.of, of_block)
    return found


def take(prompts: Any, rows: Any) -> Any:
    """The given rows of every array in a tree of prompts."""
    return jax.tree.map(lambda array: array[rows], prompts)
