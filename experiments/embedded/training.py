"""Trains an embedded agent on corpora: losses, perturbed messages, steps, shares of exact texts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from experiments.embedded.corpus import Corpus
from rmas_jax.agents.agent import Agent
from rmas_jax.models import Decoder

NEXT_EMBEDDING_WEIGHT = 1.0


def blur(
    key: jax.Array, embeds: jax.Array, soft: jax.Array, table: jax.Array, *, used: jax.Array
) -> jax.Array:
    """Perturbs message embeddings in half of the rows.

    There, every soft position is scaled by 0.7 to 1.4, mixed with another of the `used` tokens (up
    to 30 %) and gets Gaussian noise of up to 0.7 of its rms.
    """
    table = table[used]
    keys = jax.random.split(key, 5)
    rows = embeds.shape[0]
    active = (jax.random.uniform(keys[0], (rows, 1, 1)) < 0.5) & soft[..., None]
    rms = jnp.sqrt(jnp.mean(embeds**2, -1, keepdims=True))
    noise = jax.random.normal(keys[1], embeds.shape)
    level = jax.random.uniform(keys[2], (rows, 1, 1), maxval=0.7)
    other = table[jax.random.randint(keys[3], soft.shape, 0, table.shape[0])]
    share, scale = jax.random.uniform(keys[4], (2, *soft.shape, 1))
    soft_embeds = (1 - 0.3 * share) * embeds + 0.3 * share * other + level * rms * noise
    return jnp.where(active, (0.7 + 0.7 * scale) * soft_embeds, embeds)


def token_losses(
    agent: Agent, batch: Corpus, tail: int, soften: Callable | None = None
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Reads a batch.

    All targets are in the last `tail` positions, and only these have logits.

    Returns:
      Cross-entropy [B, tail], zero except at targets; whether all targets of a row are correct [B];
      the states [B, tail, D] before these tokens, and the tokens' embeddings [B, tail, D].
    """
    # One-hot products: on CPU the gradient of a gather, a scatter, costs more than both products.
    table = agent.embedding_table()
    clean = jax.nn.one_hot(batch.ids, len(table)) @ table
    embeds = clean if soften is None else soften(clean, batch.soft, jax.lax.stop_gradient(table))
    hidden = agent.read(embeds, batch.valid)[0][:, -tail - 1 : -1]
    logits = agent.unembed(hidden)
    labels, mask = batch.ids[:, -tail:], batch.target[:, -tail:]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels) * mask
    right = jnp.all((jnp.argmax(logits, -1) == labels) | ~mask, axis=1)
    return losses, right, hidden, clean[:, -tail:]


def next_embedding_loss(
    head: jax.Array, hidden: jax.Array, embeds: jax.Array, mask: jax.Array
) -> jax.Array:
    """Mean 1 - cos between a linear map of each state and the next token's (fixed) embedding."""
    cosine = optax.cosine_similarity(hidden @ head, jax.lax.stop_gradient(embeds), epsilon=1e-8)
    return ((1 - cosine) * mask).sum() / mask.sum()


def target_width(parts: Sequence[Corpus]) -> int:
    """The most targets of a row, which are its last positions."""
    return max(int(part.target.sum(1).max()) for part in parts)


def train(
    decoders: Sequence[Decoder],
    params: Any,
    parts: Sequence[Corpus],
    *,
    batch: Sequence[int],
    steps: int,
    key: jax.Array,
    learning_rate: float,
    name: str = "agent",
) -> tuple[Any, float]:
    """Trains all weights on every part at once; returns them and the last loss.

    Args:
      decoders: take turns, step by step; of the same weights.
      params: to start from.
      parts: corpora.
      batch: rows of each part in a step.
      steps: of Adam with a warm-up of 50 steps and a cosine decay.
      key: of rows and of perturbations.
      learning_rate: the highest one.
      name: for the progress bar.
    """
    tail = target_width(parts)
    used = jnp.asarray(np.unique(parts[-1].ids[parts[-1].valid]))
    trained: dict[str, Any] = {"params": params, "head": jnp.eye(decoders[0].config.width)}
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, 50, steps)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.05)
    )

    def loss_fn(
        trained: Any, decoder: Decoder, parts: Sequence[Corpus], key: jax.Array
    ) -> jax.Array:
        agent, total = Agent(decoder, trained["params"]), jnp.float32(0)
        for part, size, k in zip(parts, batch, jax.random.split(key, len(parts)), strict=True):
            row_key, blur_key = jax.random.split(k)
            rows = jax.random.randint(row_key, (size,), 0, part.ids.shape[0])
            drawn = jax.tree.map(lambda array, rows=rows: array[rows], part)
            soften = functools.partial(blur, blur_key, used=used)
            losses, _, hidden, embeds = token_losses(agent, drawn, tail, soften)
            mask = drawn.target[:, -tail:]
            total += losses.sum() / mask.sum()
            total += NEXT_EMBEDDING_WEIGHT * next_embedding_loss(
                trained["head"], hidden, embeds, mask
            )
        return total

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
    def step(
        decoder: Decoder, trained: Any, state: Any, parts: Sequence[Corpus], key: jax.Array
    ) -> tuple[Any, Any, jax.Array]:
        loss, grads = jax.value_and_grad(loss_fn)(trained, decoder, parts, key)
        updates, state = optimizer.update(grads, state, trained)
        return optax.apply_updates(trained, updates), state, loss

    parts, state = jax.device_put(list(parts)), optimizer.init(trained)
    bar = tqdm(range(steps), desc=name)
    for i in bar:
        now = decoders[i % len(decoders)]
        trained, state, loss = step(now, trained, state, parts, jax.random.fold_in(key, i))
        if i % 50 == 0:
            bar.set_postfix(loss=f"{loss:.3f}")
    return trained["params"], float(loss)


@functools.partial(jax.jit, static_argnames="tail")
def _exact(agent: Agent, corpus: Corpus, *, tail: int) -> jax.Array:
    return token_losses(agent, corpus, tail)[1]


def exact_share(agent: Agent, corpus: Corpus, size: int = 512) -> float:
    """Share of rows whose targets are all predicted, from the text before them."""
    tail = target_width([corpus])
    starts = range(0, len(corpus.ids), size)
    cut = (jax.tree.map(lambda a, i=i: a[i : i + size], corpus) for i in starts)
    return float(np.concatenate([_exact(agent, c, tail=tail) for c in cut]).mean())
