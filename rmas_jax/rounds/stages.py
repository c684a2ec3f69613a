"""One agent's turn in a round: what reaches its slots, what it reads and thinks, what it sends.

inbox --> arrivals --> take_turn: read, think --> deliver --> inbox
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from rmas_jax.agents.agent import PromptInput, read_body, read_prefix, think
from rmas_jax.models import Cache, CheckpointError, Decoder
from rmas_jax.models.vocabulary import check_array
from rmas_jax.prompts import StagePrompt
from rmas_jax.rounds.channels import Channel
from rmas_jax.rounds.conditional import cond_or_zeros
from rmas_jax.topology import System, edge_name

LOGITS_AT_ONCE = 2**26  # of a batch, [B, C, V] in float32: 256 MiB


@struct.dataclass
class Targets:
    """What one role should write in every round, for training."""

    ids: jax.Array  # [B, R, W] int32, padded on the right
    valid: jax.Array  # [B, R, W] bool


def read_prefixes(system: System, agents: Any, prompts: Mapping[str, StagePrompt]) -> dict:
    """Reads every role's prefix; the caches serve all rounds and the answer."""
    return {
        role: read_prefix(
            system.models[role], agents[role], prompts[role].prefix_ids, prompts[role].prefix_valid
        )
        for role in system.topology.order
    }


def check_prompt_ids(
    system: System,
    prompts: Mapping[str, StagePrompt],
    targets: Mapping[str, Targets] | None = None,
) -> None:
    """Refuses token ids without a row of their agent's embedding; under jit they are not known.

    Raises:
      CheckpointError: gives role and id.
    """
    for role, prompt in prompts.items():
        text = [] if targets is None or role not in targets else [targets[role].ids]
        for ids in (prompt.prefix_ids, prompt.body_ids, *text):
            try:
                check_array(ids, system.models[role].config.vocab_size)
            except CheckpointError as error:
                raise CheckpointError(f"{role}: {error}") from None


def reading_of(
    prompt: StagePrompt, prefix: Cache, received: jax.Array, *, form: jax.Array | int
) -> PromptInput:
    """A prompt in form FIRST or LATER with latents [B, S, D] in its slots."""
    return PromptInput(
        prefix=prefix,
        ids=jnp.take(prompt.body_ids, form, axis=1),
        valid=jnp.take(prompt.body_valid, form, axis=1),
        received=received,
        slot_index=prompt.slot_index,
    )


def arrivals(
    system: System, agents: Any, prompt: StagePrompt, inbox: Mapping[str, jax.Array], role: str
) -> jax.Array:
    """What reaches a role's slots [B, S, D], from what crossed the edges last (by edge name).

    In the order of the slots in the prompt, which need not be that of the edges.
    """
    shape = prompt.body_ids.shape[0], 0, system.width(role)
    names = [edge_name((sender, role)) for sender in prompt.senders]
    nothing = jnp.zeros(shape, agent_dtype(agents[role]))
    return jnp.concatenate([nothing, *(inbox[name] for name in names)], axis=1)


def take_turn(
    system: System,
    agents: Any,
    channel: Channel,
    prompt: StagePrompt,
    prefix: Cache,
    role: str,
    *,
    form: jax.Array | int,
    arrived: jax.Array,
    target: Targets | None = None,
    is_scored: jax.Array | bool = True,
    teacher_forced: bool = False,
    thinks: jax.Array | bool = True,
    truncate_steps: int | None = None,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
    """One stage: reads the prompt in form FIRST or LATER with what arrived [B, S, D], and thinks.

    A text is read only as far as its loss or teacher-forced thoughts need it. What is no `bool` but
    an array is decided on the device, so that one program serves rounds that differ in it.

    Args:
      system, agents, channel: the system.
      prompt: of the role, batch B.
      prefix: of the role, from `read_prefixes`.
      role: who takes the turn.
      form: of the prompt.
      arrived: from `arrivals`.
      target: the role's text of this round.
      is_scored: whether the text has a loss.
      teacher_forced: whether thoughts are the states over the text.
      thinks: where there is no target, whether thoughts are needed; zeros if not.
      truncate_steps: see `agents.think`.

    Returns:
      Thoughts [B, M, D]; and the (loss [B], exact_match [B]) of the text: None if it is never
      scored, zeros where an array says that it is not.
    """
    steps, model, params = system.latent_steps, system.models[role], agents[role]
    width = 0 if target is None else target.ids.shape[1]
    feed = functools.partial(channel.feed, role)
    roll_out = functools.partial(
        think, model, params, feed, steps=steps, truncate_steps=truncate_steps
    )

    def read():
        return read_body(
            model,
            params,
            prefix,
            ids=jnp.take(prompt.body_ids, form, axis=1),
            valid=jnp.take(prompt.body_valid, form, axis=1),
            received=arrived,
            slot_index=prompt.slot_index,
            room=max(steps, width) - 1,
        )

    if target is None:
        if thinks is True:
            return roll_out(*read()), None
        nothing = jnp.zeros((arrived.shape[0], steps, arrived.shape[2]), arrived.dtype)
        return jax.lax.cond(thinks, lambda: roll_out(*read()), lambda: nothing), None
    hidden, cache = read()
    needed = width if is_scored is True else steps if teacher_forced else 1
    states, after = read_text(model, params, target, hidden[:, None], cache, upto=needed)

    def score():
        return text_losses(
            model, params, target, read_text(model, params, target, states, after)[0]
        )

    written = None
    if is_scored is True:
        written = score()
    elif is_scored is not False:
        written = cond_or_zeros(is_scored, score)
    return (states[:, :steps] if teacher_forced else roll_out(hidden, cache)), written


def deliver(
    system: System,
    agents: Any,
    channel: Channel,
    role: str,
    thoughts: jax.Array,
    *,
    probes: Mapping[str, jax.Array] | None = None,
) -> dict[str, jax.Array]:
    """What a role's thoughts [B, M, D] become on each of its edges: edge name -> [B, M, D']."""
    sent = {}
    for edge in system.topology.edges:
        if edge[0] == role:
            name = edge_name(edge)
            vectors = channel.send(edge, thoughts) + (probes or {}).get(name, 0.0)
            sent[name] = vectors.astype(agent_dtype(agents[edge[1]]))
    return sent


def rows_finite(*arrays: jax.Array) -> jax.Array:
    """Whether everything in the rows of arrays [B, ...] is finite: [B] bool."""
    return functools.reduce(
        jnp.logical_and, [jnp.isfinite(x).all(axis=tuple(range(1, x.ndim))) for x in arrays]
    )


def read_text(
    model: Decoder,
    params: Any,
    target: Targets,
    states: jax.Array,
    cache: Cache,
    *,
    upto: int | None = None,
) -> tuple[jax.Array, Cache]:
    """Reads on in a given text, after its prompt or where it was left.

    Args:
      model: the agent's decoder.
      params: its parameters.
      target: the text, [B, W].
      states: [B, w, D] that predict its first w tokens; the first is that of the last prompt token.
      cache: with the w - 1 tokens that were read for them.
      upto: tokens to have states of, at least w; None is all W.

    Returns:
      States [B, upto, D], and the cache.
    """
    tokens = slice(states.shape[1] - 1, (upto or target.ids.shape[1]) - 1)
    ids, valid = target.ids[:, tokens], target.valid[:, tokens]
    if ids.shape[1] == 0:
        return states, cache
    embeds = model.apply({"params": params}, ids, method="embed")
    read, cache = model.apply({"params": params}, embeds, valid, cache)
    return jnp.concatenate([states, read], axis=1), cache


def text_losses(
    model: Decoder, params: Any, target: Targets, states: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mean cross-entropy of a text [B], and whether greedy decoding writes it [B].

    `states` [B, W, D] predict each of its tokens.
    """
    losses, hits = token_losses(model, params, states, target.ids)
    losses = (losses * target.valid).sum(1) / target.valid.sum(1)
    return losses, jnp.all(hits | ~target.valid, axis=1)


def token_losses(
    model: Decoder, params: Any, states: jax.Array, ids: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of tokens [B, W] under the states [B, W, D] before them, and greedy hits.

    At most `LOGITS_AT_ONCE` logits exist at a time, also in the backward pass: longer texts are
    scanned in chunks of positions, and a chunk's logits are computed again for its gradient.
    """
    batch, width = ids.shape
    chunk = min(width, max(1, LOGITS_AT_ONCE // (batch * model.config.vocab_size)))

    def of_chunk(_, scanned):
        states, ids = scanned
        logits = model.apply({"params": params}, states, method="unembed")
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, ids)
        return None, (losses, jnp.argmax(logits, axis=-1) == ids)

    if chunk == width:
        return of_chunk(None, (states, ids))[1]
    count = -(-width // chunk)

    def split(x):  # [B, W, ...] -> [chunks, B, C, ...]
        padding = [(0, 0), (0, count * chunk - width)] + [(0, 0)] * (x.ndim - 2)
        return jnp.pad(x, padding).reshape(batch, count, chunk, *x.shape[2:]).swapaxes(0, 1)

    of_chunk = jax.checkpoint(of_chunk, prevent_cse=False)
    _, out = jax.lax.scan(of_chunk, None, (split(states), split(ids)))
    return tuple(x.swapaxes(0, 1).reshape(batch, -1)[:, :width] for x in out)


def no_feedback(system: System, agents: Any, prompts: Mapping[str, StagePrompt]) -> dict:
    """Feedback edges before the first round: zeros, which no first prompt has a slot for."""
    batch = prompts[system.topology.answerer].body_ids.shape[0]
    return {
        edge_name((sender, role)): jnp.zeros(
            (batch, system.latent_steps, system.width(role)), agent_dtype(agents[role])
        )
        for sender, role in system.topology.feedback_edges
    }


def nothing_received(system: System, agents: Any, prompts: Mapping[str, StagePrompt]) -> jax.Array:
    """[B, 0, D]: what reaches the answerer where nothing is passed."""
    role = system.topology.answerer
    return jnp.zeros(
        (prompts[role].body_ids.shape[0], 0, system.width(role)), agent_dtype(agents[role])
    )


def agent_dtype(params: Any) -> Any:
    """Of an agent's embeddings, and so of what it reads."""
    return params["embedding"].dtype
