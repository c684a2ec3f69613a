"""Recursive-TextMAS: the same agents, prompts and rounds as the latent system, but what crosses an
edge is decoded text.

    planner writes --> text --> critic's tokens in its slot --> critic writes --> ...

Between two agents the text leaves the device, because it changes vocabulary. Everything else is
shared with `recursion`: prefixes are read once per item, slots stand in the same place, and what
runs on the device is compiled once per role and length for all rounds.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rmas_jax.agents import read_body, read_prefix
from rmas_jax.models import Cache, Decoder
from rmas_jax.prompts import FIRST, LATER, StagePrompt, left_pad
from rmas_jax.sampling import speak
from rmas_jax.topology import System


class Turn(NamedTuple):
    """What one agent wrote at one stage."""

    texts: list[str]  # B, without special tokens and outer whitespace
    lengths: np.ndarray  # [B] int32; tokens written, the end token included


class TextSolution(NamedTuple):
    """What a text system wrote, and what it cost."""

    answers: list[str]  # B
    tokens: np.ndarray  # [B] tokens written over all stages, end tokens included
    steps: np.ndarray  # [B] sequential model steps; a prompt is read in that of its first token
    messages: list[dict[str, list[str]]]  # per round: role -> B texts; the last holds the answers


_read_prefix = jax.jit(read_prefix, static_argnames="model")


@functools.partial(jax.jit, static_argnames=("model", "end_tokens", "max_tokens"))
def _write(
    model: Decoder,
    params: Any,
    prefix: Cache,
    ids: jax.Array,
    valid: jax.Array,
    *,
    end_tokens: tuple[int, ...],
    max_tokens: int,
) -> tuple[jax.Array, jax.Array]:
    """Reads a body [B, T] and writes: tokens [B, W] and lengths [B]."""
    batch, time = ids.shape
    hidden, cache = read_body(
        model,
        params,
        prefix,
        ids=ids,
        valid=valid,
        received=jnp.zeros((batch, 0, model.config.width)),  # the slots hold tokens
        slot_index=(-1,) * time,
        room=max_tokens - 1,
    )
    speech = speak(model, params, hidden, cache, end_tokens=end_tokens, max_tokens=max_tokens)
    return speech.tokens, speech.lengths


def decode(tokenizer: Any, tokens: np.ndarray, lengths: np.ndarray) -> list[str]:
    """Texts of tokens [B, W] up to their lengths [B], special tokens and outer whitespace cut."""
    rows = [row[:n] for row, n in zip(tokens.tolist(), lengths.tolist(), strict=True)]
    return [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]


def fill_slots(
    tokenizer: Any, prompt: StagePrompt, form: int, messages: Mapping[str, Sequence[str]]
) -> tuple[np.ndarray, np.ndarray]:
    """Puts texts into a body's slots, each row padded on the left to the slot's width.

        l l | z z z z | s s      ->      l l | . m m m | s s

    Args:
      tokenizer: the reader's.
      prompt: B rows, with room for W tokens per slot; what does not fit is cut at its end.
      form: FIRST or LATER.
      messages: sender -> B texts; an empty one leaves its slot empty.

    Returns:
      ids [B, T] int32 and valid [B, T] bool.
    """
    ids, valid = prompt.body_ids[:, form].copy(), prompt.body_valid[:, form].copy()
    slots = np.flatnonzero(np.asarray(prompt.slot_index) >= 0)
    for at, sender in zip(np.split(slots, len(prompt.senders) or 1), prompt.senders, strict=False):
        rows = tokenizer(list(messages[sender]), add_special_tokens=False)["input_ids"]
        ids[:, at], message_valid = left_pad([row[: at.size] for row in rows], at.size)
        valid[:, at] &= message_valid  # a slot that this form lacks stays invalid
    return ids, valid


def take_turn(
    model: Decoder,
    params: Any,
    tokenizer: Any,
    prompt: StagePrompt,
    prefix: Cache,
    *,
    form: int,
    messages: Mapping[str, Sequence[str]],
    end_tokens: tuple[int, ...],
    max_tokens: int,
) -> Turn:
    """One agent reads what it received and writes greedily, until every row has ended."""
    tokens, lengths = _write(
        model,
        params,
        prefix,
        *fill_slots(tokenizer, prompt, form, messages),
        end_tokens=end_tokens,
        max_tokens=max_tokens,
    )
    lengths = np.asarray(lengths)
    return Turn(decode(tokenizer, np.asarray(tokens), lengths), lengths)


def answer_alone(
    model: Decoder,
    params: Any,
    tokenizer: Any,
    prompt: StagePrompt,
    *,
    end_tokens: tuple[int, ...],
    max_tokens: int,
) -> Turn:
    """One agent answers by itself: its first-round prompt, with nothing in the slots."""
    return take_turn(
        model,
        params,
        tokenizer,
        prompt,
        _read_prefix(model, params, prompt.prefix_ids, prompt.prefix_valid),
        form=FIRST,
        messages={sender: [""] * len(prompt.body_ids) for sender in prompt.senders},
        end_tokens=end_tokens,
        max_tokens=max_tokens,
    )


def solve(
    system: System,
    agents: Mapping[str, Any],
    tokenizers: Mapping[str, Any],
    prompts: Mapping[str, StagePrompt],
    *,
    rounds: int,
    end_tokens: Mapping[str, tuple[int, ...]],
    max_tokens: int,
    max_message_tokens: int | None = None,
) -> TextSolution:
    """R rounds of text; the answerer's text of the last round is the answer.

    Not to be jitted: texts change vocabulary on the host. Decoding is greedy.

    Args:
      system: topology and decoders; its links and latent steps are not used.
      agents: frozen parameters by role.
      tokenizers: by role.
      prompts: by role, batch B, as numpy arrays, laid out with W positions per slot.
      rounds: R, at least 1.
      end_tokens: role -> ids that end its text.
      max_tokens: tokens of a text at most.
      max_message_tokens: tokens of a message at most, if fewer: with M of them an agent passes on
        what it can say in the time of M latent thoughts. The answer is not cut.

    Raises:
      ValueError: fewer than one round, or messages of less than one token.
    """
    message_tokens = max_tokens if max_message_tokens is None else max_message_tokens
    if rounds < 1 or message_tokens < 1:
        raise ValueError(
            f"rounds={rounds}, max_message_tokens={max_message_tokens}: each is at least 1"
        )
    topology = system.topology
    batch = len(prompts[topology.answerer].body_ids)
    prefixes = {
        role: _read_prefix(
            system.models[role], agents[role], prompts[role].prefix_ids, prompts[role].prefix_valid
        )
        for role in topology.order
    }
    # A reader gets what each sender wrote last: in this round if it stands before the reader.
    newest = {role: [""] * batch for role in topology.order}
    tokens = np.zeros(batch, np.int32)
    messages = []
    for index in range(rounds):
        for role in topology.order:
            speaks = role == topology.answerer and index == rounds - 1
            newest[role], lengths = take_turn(
                system.models[role],
                agents[role],
                tokenizers[role],
                prompts[role],
                prefixes[role],
                form=FIRST if index == 0 else LATER,
                messages=newest,
                end_tokens=end_tokens[role],
                max_tokens=max_tokens if speaks else message_tokens,
            )
            tokens += lengths
        messages.append(dict(newest))
    # Stages follow each other and every token is a step: as many steps as tokens.
    return TextSolution(newest[topology.answerer], tokens, tokens.copy(), messages)
