"""Writing: reads a prompt, then decodes until every row has ended."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rmas_jax.agents.agent import Agent
from rmas_jax.agents.reading import PromptInput, read_body
from rmas_jax.agents.sampling import GREEDY, DecodeState, speak
from rmas_jax.models.generation import SamplingConfig


def write(
    agent: Agent,
    prompt: PromptInput,
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
    """Reads a prompt, and writes until every row has ended.

        l l | z z z | s s | . w w w       w: the text so far, padded on the left

    Args:
      agent: the writer.
      prompt: its input.
      continuation_ids: [B, W] the text so far, to continue; every row ends in a real token.
      continuation_valid: [B, W] bool.
      end_tokens, max_tokens, sampling, keys, limits, stops: see `sampling.speak`.
    """
    if continuation_ids is not None:
        assert continuation_valid is not None  # both or none
        prompt = prompt.replace(
            ids=jnp.concatenate([prompt.ids, continuation_ids], 1),
            valid=jnp.concatenate([prompt.valid, continuation_valid], 1),
            slot_index=prompt.slot_index + (-1,) * continuation_ids.shape[1],
        )
    hidden, cache = read_body(agent, prompt)
    return speak(
        agent,
        hidden,
        cache,
        end_tokens=end_tokens,
        max_tokens=max_tokens,
        sampling=sampling,
        keys=keys,
        limits=limits,
        stops=stops,
    )
