"""A step of tuning: the answerer alone, with an adapter, learns the final answer."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from rmas_jax.agents.adapters import Adapter
from rmas_jax.agents.agent import Agent
from rmas_jax.agents.reading import read_prefix
from rmas_jax.config import TrainingConfig
from rmas_jax.prompts import FIRST
from rmas_jax.rounds.stages import prompt_input
from rmas_jax.rounds.supervision import TextScore, read_with_text, score_text
from rmas_jax.training.data.encoding import TrainingData
from rmas_jax.training.phases.step import TrainState, make_optimizer, mean_over_parts


def answer_scores(adapter: Adapter, agent: Agent, batch: TrainingData) -> TextScore:
    """Scores [B] of the answers of an agent alone, which reads its first-round prompt.

    Args:
      adapter: of the agent.
      agent: frozen.
      batch: prompt, without positions for slots, and answer of one role; see `encode_answers`.
    """
    tuned = adapter.learning(agent.in_training())
    (prompt,), (target,) = batch.prompts.values(), batch.targets.values()
    answer = jax.tree.map(lambda x: x[:, 0], target)
    count, width = answer.ids.shape
    prefix = read_prefix(tuned, prompt.prefix_ids, prompt.prefix_valid)
    nothing = jnp.zeros((count, 0, agent.width), agent.dtype)
    read = prompt_input(prompt, prefix, nothing, kind=FIRST)
    states, _ = read_with_text(tuned, read, answer, upto=width)
    return score_text(tuned, answer, states)


def tuning_step(
    config: TrainingConfig, agent: Agent, batch: TrainingData, state: TrainState
) -> tuple[TrainState, dict[str, Any]]:
    """One optimiser step on a batch.

    Args:
      config: the training (static).
      agent: frozen.
      batch: `config.batch_size` items.
      state: adapter and optimiser state; donate it.

    Returns:
      The new state, and metrics, float32: "loss" and "grad_norm" (before clipping); by role,
      "text_exact_match" [1]; and "faults" [1, 1], the share of items whose loss is not finite.
    """
    (role,) = batch.prompts

    def loss_of(adapter: Adapter, batch: TrainingData) -> tuple[jax.Array, dict[str, Any]]:
        score = answer_scores(adapter, agent, batch)
        exact, lost = score.exact_match, ~jnp.isfinite(score.loss)
        return score.loss.mean(), {"exact": exact.mean()[None], "lost": lost.mean()[None, None]}

    value_and_grad = jax.value_and_grad(loss_of, has_aux=True)
    (loss, details), grads = mean_over_parts(
        value_and_grad, state.params, batch, config.accumulation
    )
    updates, optimizer = make_optimizer(config).update(grads, state.optimizer, state.params)
    adapter = optax.apply_updates(state.params, updates)
    metrics = {
        "loss": loss,
        "grad_norm": optax.tree.norm(grads),
        "text_exact_match": {role: details["exact"]},
        "faults": details["lost"],
    }
    return state.replace(step=state.step + 1, params=adapter, optimizer=optimizer), metrics
