"""Random Llamas of a wanted size."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rmas_jax.agents.agent import Agent
from rmas_jax.models import Decoder, config_from_hf

HEAD_DIM = 64
VOCABULARY = 32000  # tokens, unless a benchmark needs others


def llama_sizes(parameters: int, layers: int, vocabulary: int) -> dict[str, int]:
    """Sizes of a Llama of this depth whose number of parameters is nearest to `parameters`."""

    def sizes(heads: int) -> dict[str, int]:
        width = heads * HEAD_DIM
        return {
            "vocab_size": vocabulary,
            "hidden_size": width,
            "intermediate_size": -(-width * 8 // 3 // 64) * 64,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads // 3 if heads % 3 == 0 else heads,
            "head_dim": HEAD_DIM,
            "tie_word_embeddings": True,
        }

    def count(of: dict[str, int]) -> int:
        width, kv = of["hidden_size"], of["num_key_value_heads"] * HEAD_DIM
        layer = 2 * width * (width + kv + 1) + 3 * width * of["intermediate_size"]
        return of["vocab_size"] * width + layers * layer + width

    return min(map(sizes, range(1, 65)), key=lambda of: abs(count(of) - parameters))


def random_llama(parameters: int, layers: int, vocabulary: int, *, seed: int = 0) -> Agent:
    """A random float32 agent of about this many parameters."""
    sizes = {"model_type": "llama", **llama_sizes(parameters, layers, vocabulary)}
    decoder = Decoder(config_from_hf(sizes))
    empty = jnp.zeros((1, 1, decoder.config.width)), jnp.ones((1, 1), bool)
    return Agent(decoder, jax.jit(decoder.init)(jax.random.key(seed), *empty)["params"])
