"""A pretrained agent that thinks: a linear inner link, fitted by ridge regression, and prompts.

The link maps the last hidden state at a token of a text to the input embedding of the token that
follows, the least-squares form of the inner loop. Texts are word problems of reasoning-gym
(gsm_symbolic); prompts are the first tokens of others, of another seed.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rmas_jax.agents.agent import Agent, load_agent
from rmas_jax.models.tokenizer import load_tokenizer

TEXTS, LENGTH = 512, 64  # of the fit: texts, and tokens of each
PENALTY = 1e-3  # relative to the mean square of a state's elements


class RidgeLink(struct.PyTreeNode):
    """h -> h W + b."""

    weight: jax.Array  # [D, D]
    bias: jax.Array  # [D]

    def feed(self, role: str, hidden: jax.Array) -> jax.Array:
        """Hidden states [B, T, D] of any role -> input embeddings [B, T, D]."""
        del role
        return hidden @ self.weight + self.bias[None, None]


def fit(agent: Agent, ids: np.ndarray) -> RidgeLink:
    """The link for texts [N, T]; all have T tokens."""
    read = jax.jit(lambda ids: agent.read(agent.embed(ids), jnp.ones(ids.shape, bool))[0])
    states = np.concatenate(
        [np.asarray(read(rows)[:, :-1]) for rows in np.split(ids, len(ids) // 8)]
    )
    inputs = states.reshape(-1, states.shape[-1]).astype(np.float64)
    targets = (
        np.asarray(agent.embed(jnp.asarray(ids[:, 1:]))).reshape(inputs.shape).astype(np.float64)
    )
    means = inputs.mean(0), targets.mean(0)
    inputs, targets = inputs - means[0], targets - means[1]
    penalty = PENALTY * np.square(inputs).mean() * len(inputs)
    gram = inputs.T @ inputs + penalty * np.eye(inputs.shape[1])
    weight = np.linalg.solve(gram, inputs.T @ targets)
    bias = means[1] - means[0] @ weight
    return RidgeLink(jnp.asarray(weight, agent.dtype), jnp.asarray(bias, agent.dtype))


def token_rows(source: Path, count: int, *, seed: int) -> np.ndarray:
    """The first `LENGTH` tokens of word problems that have as many: ids [count, LENGTH]."""
    import reasoning_gym

    tokenizer = load_tokenizer(source)
    problems = reasoning_gym.create_dataset("gsm_symbolic", size=3 * count, seed=seed)
    encoded = (tokenizer(problem["question"])["input_ids"] for problem in problems)
    rows = [ids[:LENGTH] for ids in encoded if len(ids) >= LENGTH]
    return np.array(rows[:count], np.int32)


def load_thinker(source: Path) -> tuple[Agent, RidgeLink]:
    """A checkpoint as an agent, in float32, and its link."""
    agent = load_agent(source)
    return agent, fit(agent, token_rows(source, TEXTS, seed=0))
