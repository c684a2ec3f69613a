"""Recursive-TextMAS: the same agents, prompts and rounds as the latent system, but what crosses an
edge is decoded text.

    planner writes --> text --> critic's tokens in its slot --> critic writes --> ...

Between two agents the text leaves the device, because it changes vocabulary. Everything else is
shared with `recursion`: prefixes are read once per item, slots stand in the same place, and what
runs on the device is compiled once per role and length for all rounds.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from rmas_jax.agents import answers
from rmas_jax.agents.agent import PromptInput, read_prefix
from rmas_jax.agents.answers import write_texts
from rmas_jax.agents.sampling import GREEDY
from rmas_jax.models import Cache, Decoder
from rmas_jax.models.generation import SamplingConfig
from rmas_jax.models.plain_text import encode_plain
from rmas_jax.prompts import FIRST, LATER, StagePrompt, left_pad
from rmas_jax.sharding import put_batch
from rmas_jax.topology import System


class Message(NamedTuple):
    """What one agent wrote to the others at one stage, and what it cost."""

    round: int  # from 0
    role: str
    texts: list[str]  # B, without special tokens and outer whitespace
    tokens: np.ndarray  # [B] int32 tokens written, each a model step; the end token included
    seconds: float  # of the whole batch, host work included


class TextSolution(NamedTuple):
    """What a text system wrote."""

    opening: str  # of the answers: see `answers.Texts`
    answers: list[str]  # B
    tokens: np.ndarray  # [B] int32 tokens written over all stages, end tokens included
    messages: list[Message]  # in their order; the answers are not among them


_read_prefix = jax.jit(read_prefix, static_argnames="model")
_stage_keys = jax.jit(jax.vmap(jax.random.fold_in, (0, None)))  # other draws at every stage
JITTED = (*answers.JITTED, _read_prefix, _stage_keys)  # what a team in text may compile


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
        rows = encode_plain(tokenizer, messages[sender])
        ids[:, at], message_valid = left_pad([row[: at.size] for row in rows], at.size)
        valid[:, at] &= message_valid  # a slot that this form lacks stays invalid
    return ids, valid


def _prefix(model: Decoder, params: Any, prompt: StagePrompt, mesh: Mesh | None) -> Cache:
    return _read_prefix(model, params, *put_batch((prompt.prefix_ids, prompt.prefix_valid), mesh))


def read_messages(
    model: Decoder,
    tokenizer: Any,
    prompt: StagePrompt,
    prefix: Cache,
    *,
    form: int,
    messages: Mapping[str, Sequence[str]],
    mesh: Mesh | None = None,
) -> PromptInput:
    """What an agent reads: its prompt in form FIRST or LATER with messages (sender -> B texts)."""
    ids, valid = fill_slots(tokenizer, prompt, form, messages)
    nothing = np.zeros((len(ids), 0, model.config.width), np.float32)  # the slots hold tokens
    return PromptInput(prefix, *put_batch((ids, valid, nothing), mesh), (-1,) * ids.shape[1])


def read_alone(
    model: Decoder, params: Any, tokenizer: Any, prompt: StagePrompt, *, mesh: Mesh | None = None
) -> PromptInput:
    """What an agent by itself reads: its first-round prompt, with nothing in the slots."""
    prefix = _prefix(model, params, prompt, mesh)
    nothing = {sender: [""] * len(prompt.body_ids) for sender in prompt.senders}
    return read_messages(model, tokenizer, prompt, prefix, form=FIRST, messages=nothing, mesh=mesh)


def listen(
    system: System,
    agents: Mapping[str, Any],
    tokenizers: Mapping[str, Any],
    prompts: Mapping[str, StagePrompt],
    *,
    rounds: int,
    end_tokens: Mapping[str, tuple[int, ...]],
    max_tokens: int,
    sampling: SamplingConfig = GREEDY,
    keys: jax.Array | None = None,
    mesh: Mesh | None = None,
) -> tuple[PromptInput, list[Message]]:
    """R rounds of text, up to what the answerer reads before it answers.

    Not to be jitted: texts change vocabulary on the host. Several answers share messages as they
    share latents.

    Args:
      system: topology and decoders; its links and latent steps are not used.
      agents: frozen parameters by role.
      tokenizers: by role.
      prompts: by role, batch B, as numpy arrays, laid out with W positions per slot.
      rounds: R, at least 1.
      end_tokens: role -> ids that end its text.
      max_tokens: tokens of a message at most: with M of them an agent passes on what it can say in
        the time of M latent thoughts.
      sampling: how the tokens of messages are chosen.
      keys: [B] PRNG keys, where they are drawn.
      mesh: where the agents lie; it splits the batch.

    Raises:
      ValueError: fewer than one round, or messages of less than one token.
      NonFiniteError: logits of an agent are NaN or infinite.
    """
    if rounds < 1 or max_tokens < 1:
        raise ValueError(f"rounds={rounds}, max_tokens={max_tokens} of a message: at least 1 each")
    topology, models = system.topology, system.models
    prefixes = {
        role: _prefix(models[role], agents[role], prompts[role], mesh) for role in topology.order
    }
    # A reader gets what each sender wrote last: in this round if it stands before the reader.
    newest = {role: [""] * len(prompts[role].body_ids) for role in topology.order}
    messages = []
    for index in range(rounds):
        for role in topology.order:
            reading = read_messages(
                models[role],
                tokenizers[role],
                prompts[role],
                prefixes[role],
                form=FIRST if index == 0 else LATER,
                messages=newest,
                mesh=mesh,
            )
            if role == topology.answerer and index == rounds - 1:
                break  # it answers; it is the last in order
            started = time.perf_counter()
            written = write_texts(
                models[role],
                agents[role],
                tokenizers[role],
                reading,
                end_tokens=end_tokens[role],
                max_tokens=max_tokens,
                sampling=sampling,
                keys=None if keys is None else _stage_keys(keys, len(messages)),
                role=role,
                stage=f"round {index + 1}: message",
            )
            seconds = time.perf_counter() - started
            newest[role] = written.texts
            messages.append(Message(index, role, written.texts, written.tokens, seconds))
    return reading, messages


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
    sampling: SamplingConfig = GREEDY,
    keys: jax.Array | None = None,
) -> TextSolution:
    """R rounds of text, then the answer: `listen` and `answers.write_texts`.

    Args as there, and `max_message_tokens`, if messages are shorter than `max_tokens`.
    """
    role = system.topology.answerer
    reading, messages = listen(
        system,
        agents,
        tokenizers,
        prompts,
        rounds=rounds,
        end_tokens=end_tokens,
        max_tokens=max_tokens if max_message_tokens is None else max_message_tokens,
        sampling=sampling,
        keys=keys,
    )
    written = write_texts(
        system.models[role],
        agents[role],
        tokenizers[role],
        reading,
        end_tokens=end_tokens[role],
        max_tokens=max_tokens,
        sampling=sampling,
        keys=None if keys is None else _stage_keys(keys, len(messages)),
        role=role,
        stage=f"round {rounds}: answer",
    )
    tokens = written.tokens + sum(message.tokens for message in messages)
    return TextSolution(written.opening, written.texts, tokens, messages)
