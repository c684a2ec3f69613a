"""Decoding text: sampler rules, and a `lax.while_loop` that stops when every row has stopped."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from rmas_jax.agents.agent import Agent
from rmas_jax.models import Cache
from rmas_jax.models.generation import SamplingConfig

GREEDY = SamplingConfig()
BLOCK, LEAST_BLOCK = 1024, 32  # of `likeliest`, in tokens
LEAST_TEMPERATURE = 1e-6  # equivalent to greedy; logits divided by less may overflow


def penalise_repetition(logits: jax.Array, seen: jax.Array, penalty: float) -> jax.Array:
    """Makes seen tokens (`seen` [B, V] bool) less likely: lowers their logits [B, V].

    Positive logits are divided by the penalty, negative ones multiplied.
    """
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


def keep_top_k(logits: jax.Array, k: int) -> jax.Array:
    """Rules out all but the k likeliest tokens of [B, V], and ties with them."""
    least = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0][:, -1:]
    return jnp.where(logits < least, -jnp.inf, logits)


def keep_top_p(logits: jax.Array, p: jax.Array | float) -> jax.Array:
    """Rules out all but the fewest likeliest tokens of [B, V] whose probability reaches p.

    A number for all rows, or [B, 1] one for each.
    """
    order = jnp.argsort(logits, axis=-1)  # the likeliest last
    ordered = jnp.take_along_axis(logits, order, axis=-1)
    out = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1) <= 1 - p
    out = out.at[:, -1].set(False)
    out = jnp.put_along_axis(jnp.zeros_like(out), order, out, axis=-1, inplace=False)
    return jnp.where(out, -jnp.inf, logits)


def keep_min_p(logits: jax.Array, share: float) -> jax.Array:
    """Rules out tokens of [B, V] below this share of the likeliest one's probability."""
    probabilities = jax.nn.softmax(logits, axis=-1)
    least = share * jnp.max(probabilities, axis=-1, keepdims=True)
    return jnp.where(probabilities < least, -jnp.inf, logits)


def apply_rules(
    logits: jax.Array, sampling: SamplingConfig, seen: jax.Array | None = None
) -> jax.Array:
    """Logits [B, V] of the sampled distribution; tokens that are ruled out are at -inf.

    A disabled rule costs nothing; greedy decoding uses the repetition penalty alone.
    """
    if sampling.repetition_penalty != 1 and seen is not None:
        logits = penalise_repetition(logits, seen, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return logits
    if sampling.temperature != 1:
        logits = logits / max(sampling.temperature, LEAST_TEMPERATURE)
    if sampling.top_k:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p < 1:
        logits = keep_top_p(logits, sampling.top_p)
    if sampling.min_p:
        logits = keep_min_p(logits, sampling.min_p)
    return logits


def row_keys(key: jax.Array, rows: jax.typing.ArrayLike) -> jax.Array:
    """A PRNG key [B] for each row from its number [B], such as an item's index in its data.

    A row's draws are then independent of its batch.
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(rows))


def draw(logits: jax.Array, keys: jax.Array, step: jax.Array) -> jax.Array:
    """A token [B] for each row of logits [B, V], by the row's key [B] and the step's number.

    The number [] is that of all rows, or [B] each row's.
    """
    keys = jax.vmap(jax.random.fold_in, (0, 0 if jnp.ndim(step) else None))(keys, step)
    return jax.vmap(jax.random.categorical)(keys, logits)


def seen_tokens(ids: jax.Array, valid: jax.Array, vocab_size: int) -> jax.Array:
    """The tokens of a prompt as [B, V] bool, from ids and valid [B, T]."""
    seen = jnp.zeros((ids.shape[0], vocab_size + 1), bool)
    places = jnp.where(valid, ids, vocab_size)  # pads go to a column that is cut off
    return seen.at[jnp.arange(ids.shape[0])[:, None], places].set(True)[:, :vocab_size]


def likeliest(logits: jax.Array) -> jax.Array:
    """The first of the largest of each row [B, V], as `jnp.argmax`; NaN is as large as infinity.

    First among the largest of each block of tokens, then within its block: over a whole vocabulary,
    XLA's argmax takes 5 to 25 times as long on a CPU.
    """
    batch, vocabulary = logits.shape
    width = math.gcd(vocabulary, BLOCK)
    if width < LEAST_BLOCK:
        return jnp.argmax(logits, axis=-1)
    logits = jnp.where(jnp.isnan(logits), jnp.inf, logits)  # a maximum drops NaN on a CPU
    blocks = logits.reshape(batch, vocabulary // width, width)
    block = jnp.argmax(blocks.max(-1), axis=-1)
    within = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return block * width + jnp.argmax(within, axis=-1)


class RowRules(struct.PyTreeNode):
    """Rules of each row, as data: one program writes texts of different requests."""

    temperature: jax.Array  # [B] float32; 0: the likeliest token
    top_p: jax.Array  # [B] float32; 1: all tokens
    limits: jax.Array  # [B] int32; maximum tokens of the text


def choose_tokens(
    logits: jax.Array,
    sampling: SamplingConfig,
    *,
    keys: jax.Array | None,
    step: jax.Array,
    seen: jax.Array | None = None,
    rules: RowRules | None = None,
) -> jax.Array:
    """The next token [B] of each row, from logits [B, V].

    Args:
      logits: of the agent.
      sampling: the rules; of those for each row, temperature and top-p are not used.
      keys: [B] PRNG keys; None: greedy.
      step: the token's number, see `draw`.
      seen: [B, V] bool, see `penalise_repetition`.
      rules: of each row. No row depends on those of the others.
    """
    if rules is not None:
        assert keys is not None  # rows that draw need them
        return _choose_by_row(logits, sampling, keys, step, seen, rules)
    logits = apply_rules(logits, sampling, seen)
    if sampling.temperature > 0 and keys is not None:
        return draw(logits, keys, step)
    return likeliest(logits)


def _choose_by_row(
    logits: jax.Array,
    sampling: SamplingConfig,
    keys: jax.Array,
    step: jax.Array,
    seen: jax.Array | None,
    rules: RowRules,
) -> jax.Array:
    """Draws only where a row draws, and sorts only where one that draws has a top-p."""
    logits = apply_rules(logits, dataclasses.replace(sampling, temperature=0.0), seen)
    greedy, draws = likeliest(logits), rules.temperature > 0
    has_top_p = draws & (rules.top_p < 1)

    def top_p(scaled: jax.Array) -> jax.Array:
        return jnp.where(has_top_p[:, None], keep_top_p(scaled, rules.top_p[:, None]), scaled)

    def drawn() -> jax.Array:
        scaled = logits / jnp.maximum(rules.temperature, LEAST_TEMPERATURE)[:, None]
        if sampling.top_k:
            scaled = keep_top_k(scaled, sampling.top_k)
        scaled = jax.lax.cond(jnp.any(has_top_p), top_p, lambda x: x, scaled)
        if sampling.min_p:
            scaled = keep_min_p(scaled, sampling.min_p)
        return jnp.where(draws, draw(scaled, keys, step), greedy)

    return jax.lax.cond(jnp.any(draws), drawn, lambda: greedy)


class DecodeState(struct.PyTreeNode):
    """State of the decode loop."""

    tokens: jax.Array  # [B, W] int32; the text so far, 0 after a row's end
    lengths: jax.Array  # [B] int32; tokens written, the end token included
    done: jax.Array  # [B] bool; the row has ended
    step: jax.Array  # [] int32; columns of `tokens` written; each but the first cost a model step
    cache: Cache  # without finished blocks; its tail has the text
    finite: jax.Array  # [B] bool; the logits of all tokens are finite; a row ends where they fail
    seen: jax.Array | None = None  # [B, V] bool; tokens of prompt and text, if penalised
    stop_state: jax.Array | None = None  # [B] int32; row of `stops` that the text has reached
    # [B, W] float32; of each token, before rules, if they are kept
    logprobs: jax.Array | None = None


class Ending(NamedTuple):
    """What ends a row, beside numbers that are not finite."""

    tokens: jax.Array  # [E] int32; end tokens
    limits: jax.Array | None = None  # [B] int32; maximum tokens of each row
    stops: jax.Array | None = None  # [S, V] int32 from `stop_strings.stop_table`


def advance(
    agent: Agent,
    hidden: jax.Array,
    state: DecodeState,
    step: jax.Array,
    *,
    sampling: SamplingConfig,
    keys: jax.Array | None,
    ending: Ending,
    rules: RowRules | None = None,
) -> tuple[DecodeState, jax.Array, jax.Array | None]:
    """Chooses the next token [B] of every row from its state [B, D]; 0 in rows that have ended.

    Returns:
      The state but for `tokens`, `logprobs` and `step`; the token; and its log probability [B]
      before all rules, if the state keeps them. `step` [] or [B] is its number.
    """
    raw = agent.unembed(hidden[:, None])[:, 0]
    raw = agent.partition.constrain(raw, "samples", None)  # rules sort a row's logits
    token = choose_tokens(raw, sampling, keys=keys, step=step, seen=state.seen, rules=rules)
    # argmax prefers NaN and infinity to all other logits, so a bad row chooses one.
    chosen = jnp.take_along_axis(raw, token[:, None], axis=1)[:, 0]
    logprob = None
    if state.logprobs is not None:
        logprob = chosen - jax.nn.logsumexp(raw, axis=-1)
    finite = state.finite & (state.done | jnp.isfinite(chosen))
    token = jnp.where(state.done, 0, token).astype(jnp.int32)
    lengths = state.lengths + ~state.done
    done = state.done | ~finite | jnp.any(token[:, None] == ending.tokens[None, :], axis=1)
    seen, stop_state, stops = state.seen, state.stop_state, ending.stops
    if seen is not None:  # unused in rows that have ended
        seen = seen.at[jnp.arange(hidden.shape[0]), token].set(True)
    if stops is not None and stop_state is not None:
        # A padded vocabulary has ids past the tokenizer's last; they add no text.
        stop_state = jnp.where(token < stops.shape[1], stops[stop_state, token], stop_state)
        done |= stop_state == stops.shape[0] - 1
    if ending.limits is not None:
        done |= lengths >= ending.limits
    state = state.replace(
        lengths=lengths, done=done, finite=finite, seen=seen, stop_state=stop_state
    )
    return state, token, logprob


@jax.named_scope("speak")
def speak(
    agent: Agent,
    hidden: jax.Array,
    cache: Cache,
    *,
    end_tokens: tuple[int, ...],
    max_tokens: int,
    sampling: SamplingConfig = GREEDY,
    keys: jax.Array | None = None,
    seen: jax.Array | None = None,
    limits: jax.Array | None = None,
    stops: jax.Array | None = None,
) -> DecodeState:
    """Writes until every row has ended.

    Args:
      agent: the writer.
      hidden: [B, D] state at the last position read.
      cache: of all positions read; its tail is empty.
      end_tokens: ids that end a row; may be empty.
      max_tokens: W, maximum number of tokens; at least 1.
      sampling: sampling rules; default greedy.
      keys: [B] PRNG keys, one per row (`row_keys`); needed unless the temperature is 0.
      seen: [B, V] bool, the tokens of the prompt (`seen_tokens`), for the repetition penalty;
        None penalises new tokens only. Latents are no tokens.
      limits: [B] int32, maximum tokens of each row, if fewer than `max_tokens`; a row of 0 writes
        nothing.
      stops: [S, V] int32 from `stop_strings.stop_table`: a row also ends at one of these strings.

    Raises:
      ValueError: the temperature is above 0, and there is not one key per row.
    """
    batch = hidden.shape[0]
    if sampling.temperature > 0 and (keys is None or keys.shape[:1] != (batch,)):
        given = "none" if keys is None else f"shape {keys.shape}"
        raise ValueError(
            f"keys must be one per row ({batch}, from `row_keys`) at temperature="
            f"{sampling.temperature}, got {given}"
        )
    if sampling.repetition_penalty == 1:
        seen = None
    elif seen is None:
        seen = jnp.zeros((batch, agent.config.vocab_size), bool)
    agent = agent.during("writing").with_unembedding()
    ending = Ending(jnp.asarray(end_tokens, jnp.int32), limits, stops)
    begun = agent.in_steps(agent.with_room(cache, max_tokens - 1))

    def choose(hidden: jax.Array, state: DecodeState) -> DecodeState:
        """Appends the next token of every row to the state."""
        state, token, _ = advance(
            agent, hidden, state, state.step, sampling=sampling, keys=keys, ending=ending
        )
        return state.replace(tokens=state.tokens.at[:, state.step].set(token), step=state.step + 1)

    def running(state: DecodeState) -> jax.Array:
        return (state.step < max_tokens) & ~jnp.all(state.done)

    def write(state: DecodeState) -> DecodeState:
        last = jax.lax.dynamic_slice_in_dim(state.tokens, state.step - 1, 1, axis=1)
        # A row that has ended reads padding, which no position attends to.
        hidden, cache = agent.read(
            agent.embed(last), ~state.done[:, None], state.cache.replace(past=begun.past)
        )
        return choose(hidden[:, 0], state.replace(cache=cache.replace(past=())))

    start = DecodeState(
        tokens=jnp.zeros((batch, max_tokens), jnp.int32),
        lengths=jnp.zeros(batch, jnp.int32),
        done=jnp.zeros(batch, bool) if limits is None else limits <= 0,
        step=jnp.zeros((), jnp.int32),
        # Finished blocks are closed over, not carried.
        cache=begun.replace(past=()),
        finite=jnp.ones(batch, bool),
        seen=seen,
        stop_state=None if stops is None else jnp.zeros(batch, jnp.int32),
    )
    start = choose(hidden, start)
    if max_tokens == 1:  # no step to compile: the tail has no room
        return start
    return jax.lax.while_loop(running, write, start)
