"""What an agent can do, as pure functions: read a prompt, think in latents, write text.

An agent is a `Decoder` (static) with its parameters; nothing here is jitted and nothing is kept
between calls but what a cache holds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from rmas_jax.agents.sampling import GREEDY, DecodeState, speak
from rmas_jax.models import Cache, Decoder, empty_cache, seal
from rmas_jax.models.generation import SamplingConfig


@struct.dataclass
class PromptInput:
    """All that an agent reads before it writes: its prompt, with something in the slots."""

    prefix: Cache  # from `read_prefix`
    ids: jax.Array  # [B, T] int32; the body; anything where latents stand
    valid: jax.Array  # [B, T] bool
    received: jax.Array  # [B, S, D] latents of all slots; S is 0 where the slots hold tokens
    slot_index: tuple[int, ...] = struct.field(pytree_node=False)  # [T], see `place`


def read_prefix(model: Decoder, params: Any, ids: jax.Array, valid: jax.Array) -> Cache:
    """Reads the part of a prompt that no round changes.

    Args:
      model: the agent's decoder.
      params: its parameters.
      ids: [B, P] token ids, padded on the left.
      valid: [B, P] bool.

    Returns:
      A cache whose only finished block is the prefix.
    """
    embeds = model.apply({"params": params}, ids, method="embed")
    cache = empty_cache(model.config, ids.shape[0], ids.shape[1], dtype=embeds.dtype)
    if not ids.shape[1]:  # the prompt's forms have no common start
        return seal(cache, model.config, 0)
    _, cache = model.apply({"params": params}, embeds, valid, cache)
    return seal(cache, model.config, 0)


def place(embeds: jax.Array, received: jax.Array, slot_index: tuple[int, ...]) -> jax.Array:
    """Puts received vectors at a body's slots.

    Args:
      embeds: [B, T, D] embeddings of the body's tokens.
      received: [B, S, D] vectors of all slots, in order.
      slot_index: [T] which received vector stands at a position, -1 for a token.

    Raises:
      ValueError: there are not as many vectors as places; a gather would take the last one again.
    """
    places = sum(number >= 0 for number in slot_index)
    if places != received.shape[1] or max(slot_index, default=-1) >= received.shape[1]:
        raise ValueError(
            f"the prompt has slots for {places} vectors, and {received.shape[1]} reach them: "
            "prompts must be encoded with slot_width=latent_steps"
        )
    if not places:
        return embeds
    index = jnp.asarray(slot_index)
    vectors = received[:, jnp.maximum(index, 0)].astype(embeds.dtype)
    return jnp.where((index >= 0)[None, :, None], vectors, embeds)


def read_body(
    model: Decoder,
    params: Any,
    prefix: Cache,
    *,
    ids: jax.Array,
    valid: jax.Array,
    received: jax.Array,
    slot_index: tuple[int, ...],
    room: int,
) -> tuple[jax.Array, Cache]:
    """Reads what follows the prefix: `[lead | slots | suffix]`.

    Args:
      model: the agent's decoder.
      params: its parameters.
      prefix: cache from `read_prefix`; it is not changed, so every round starts from it.
      ids: [B, T] token ids; anything at slots.
      valid: [B, T] bool; the last position is valid in every row.
      received: [B, S, D] vectors for the slots.
      slot_index: [T], see `place`.
      room: how many single steps will follow.

    Returns:
      The last hidden state [B, D] and a cache with room for `room` positions.
    """
    embeds = place(model.apply({"params": params}, ids, method="embed"), received, slot_index)
    cache = prefix.replace(
        tail=empty_cache(model.config, *ids.shape, dtype=embeds.dtype).tail,
        used=jnp.zeros((), jnp.int32),
    )
    hidden, cache = model.apply({"params": params}, embeds, valid, cache)
    return hidden[:, -1], seal(cache, model.config, room)


def think(
    model: Decoder,
    params: Any,
    feed: Callable[[jax.Array], jax.Array],
    hidden: jax.Array,
    cache: Cache,
    *,
    steps: int,
    truncate_steps: int | None = None,
) -> jax.Array:
    """Makes latent thoughts: each hidden state returns as the next input (paper eq. 1).

    The first thought is the state at the last prompt token, so M thoughts take M - 1 model steps;
    what the last one would feed back is never run.

    Args:
      model: the agent's decoder.
      params: its parameters.
      feed: hidden states [B, T, D] -> input embeddings [B, T, D]; the inner link.
      hidden: [B, D] state at the last position read.
      cache: what was read, with room for `steps` - 1 positions.
      steps: M, at least 1.
      truncate_steps: thoughts that a gradient passes through on its way back, itself included:
        after every so many, what the next ones come from (states and cache) is taken without a
        gradient. None: all.

    Returns:
      [B, M, D] hidden states.
    """
    if steps == 1:  # the state there is: no step to compile, and no room for one
        return hidden[:, None]
    valid = jnp.ones((hidden.shape[0], 1), bool)

    def step(carry, index):
        thought = carry[0]
        if truncate_steps is not None:
            is_cut = (index + 1) % truncate_steps == 0
            carry = jax.tree.map(lambda x: jnp.where(is_cut, jax.lax.stop_gradient(x), x), carry)
        hidden, now = carry
        embeds = feed(hidden[:, None])
        out, now = model.apply({"params": params}, embeds, valid, now.replace(past=cache.past))
        return (out[:, 0], now.replace(past=())), thought

    # The finished blocks are closed over: only the tail of M positions is carried.
    start = (hidden, cache.replace(past=()))
    (last, _), thoughts = jax.lax.scan(step, start, jnp.arange(steps - 1))
    return jnp.concatenate([thoughts.swapaxes(0, 1), last[:, None]], axis=1)


def write(
    model: Decoder,
    params: Any,
    reading: PromptInput,
    *,
    continuation_ids: jax.Array | None = None,
    continuation_valid: jax.Array | None = None,
    end_tokens: tuple[int, ...],
    max_tokens: int,
    sampling: SamplingConfig = GREEDY,
    keys: jax.Array | None = None,
    limits: jax.Array | None = None,
    stops: jax.Array | None = None,
) -> DecodeState:
    """Reads, and writes until every row has ended.

        l l | z z z | s s | . w w w       w: what it has written so far, padded on the left

    Args:
      model: the agent's decoder.
      params: its parameters.
      reading: what comes before its text.
      continuation_ids: [B, W] the text so far, to go on from; every row ends in a real token.
      continuation_valid: [B, W] bool.
      end_tokens, max_tokens, sampling, keys, limits, stops: see `sampling.speak`.
    """
    ids, valid, slot_index = reading.ids, reading.valid, reading.slot_index
    if continuation_ids is not None:
        ids, valid = (
            jnp.concatenate([ids, continuation_ids], 1),
            jnp.concatenate([valid, continuation_valid], 1),
        )
        slot_index += (-1,) * continuation_ids.shape[1]
    hidden, cache = read_body(
        model,
        params,
        reading.prefix,
        ids=ids,
        valid=valid,
        received=reading.received,
        slot_index=slot_index,
        room=max_tokens - 1,
    )
    return speak(
        model,
        params,
        hidden,
        cache,
        end_tokens=end_tokens,
        max_tokens=max_tokens,
        sampling=sampling,
        keys=keys,
        limits=limits,
        stops=stops,
    )
