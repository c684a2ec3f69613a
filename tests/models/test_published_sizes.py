"""The published models that systems are made of, as abstract shapes with their parameter counts.

Configurations are the fields of each repository's `config.json` that shape the decoder. Counts are
exact and were found, digit for digit, in public records of these checkpoints (`PUBLISHED` says in
which kind), not computed here.
"""

from __future__ import annotations

import copy
import math

import jax
import jax.numpy as jnp
import pytest
import transformers

from rmas_jax.models import Decoder, config_from_hf
from rmas_jax.models.config import config_to_hf
from rmas_jax.models.weights import weight_table

LLAMA_3_2 = {
    "model_type": "llama",
    "vocab_size": 128256,
    "intermediate_size": 8192,
    "num_key_value_heads": 8,
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
}
QWEN2_5_1_5B = {
    "model_type": "qwen2",
    "vocab_size": 151936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_window_layers": 21,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
}
QWEN3_5 = {
    "model_type": "qwen3_5_text",
    "vocab_size": 248320,
    "head_dim": 256,
    "hidden_act": "silu",
    "attention_bias": False,
    "attn_output_gate": True,
    "full_attention_interval": 4,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {
        "mrope_interleaved": True,
        "mrope_section": [11, 11, 10],
        "rope_type": "default",
        "rope_theta": 10000000,
        "partial_rotary_factor": 0.25,
    },
}


def qwen3_5(*, tied: bool, **sizes: int) -> dict:
    """A checkpoint with vision, whose text tower has these sizes."""
    text = QWEN3_5 | sizes | {"tie_word_embeddings": tied}
    return {"model_type": "qwen3_5", "text_config": text, "tie_word_embeddings": tied}


CONFIGS = {
    "Qwen/Qwen3-1.7B": {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "attention_bias": False,
        "hidden_act": "silu",
        "max_window_layers": 28,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
    },
    "meta-llama/Llama-3.2-1B": LLAMA_3_2
    | {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "head_dim": 64},
    "meta-llama/Llama-3.2-3B": LLAMA_3_2
    | {"hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 24, "head_dim": 128},
    "Qwen/Qwen2.5-Math-1.5B": QWEN2_5_1_5B,
    "Qwen/Qwen2.5-Coder-3B": QWEN2_5_1_5B
    | {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "max_window_layers": 36,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
    },
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": QWEN2_5_1_5B | {"tie_word_embeddings": False},
    "google/gemma-3-4b-it": {  # leaves heads and vocabulary to the defaults
        "model_type": "gemma3",
        "text_config": {
            "model_type": "gemma3_text",
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
    },
    "BioMistral/BioMistral-7B": {
        "model_type": "mistral",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
    },
    "Qwen/Qwen3.5-2B": qwen3_5(
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=24,
        num_attention_heads=8,
        num_key_value_heads=2,
        linear_num_value_heads=16,
        tied=True,
    ),
    "Qwen/Qwen3.5-4B": qwen3_5(
        hidden_size=2560,
        intermediate_size=9216,
        num_hidden_layers=32,
        num_attention_heads=16,
        num_key_value_heads=4,
        linear_num_value_heads=32,
        tied=True,
    ),
    "Qwen/Qwen3.5-9B": qwen3_5(
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=32,
        num_attention_heads=16,
        num_key_value_heads=4,
        linear_num_value_heads=32,
        tied=False,
    ),
    "ByteDance/Ouro-1.4B": {
        "model_type": "ouro",
        "vocab_size": 49152,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 128,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "total_ut_steps": 4,
    },
}
PUBLISHED = {
    # Files and llama.cpp have 2,031,739,904: the tied projection (151936 x 2048) once more.
    "Qwen/Qwen3-1.7B": 2_031_739_904 - 151936 * 2048,
    # Of the weight files; Math-1.5B has the sizes of Qwen2.5-1.5B, BioMistral those of Mistral-7B,
    # whose counts these are.
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "Qwen/Qwen2.5-Math-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-Coder-3B": 3_085_938_688,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": 1_777_088_000,
    "BioMistral/BioMistral-7B": 7_241_732_096,
    # Text towers: `n_params` that llama.cpp reports of their GGUF conversions.
    "google/gemma-3-4b-it": 3_880_263_168,  # with vision 4,300,079,472
    "Qwen/Qwen3.5-2B": 1_881_825_088,
    "Qwen/Qwen3.5-4B": 4_205_751_296,
    "Qwen/Qwen3.5-9B": 8_953_803_264,
    # As benchmarks on GitHub state it; the exit gate is included.
    "ByteDance/Ouro-1.4B": 1_434_652_673,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_published_model_has_the_published_size(name):
    config = config_from_hf(CONFIGS[name])
    assert config_from_hf(config_to_hf(config)) == config
    model = Decoder(config)
    shapes = jax.eval_shape(
        model.init,
        jax.random.key(0),
        jnp.zeros((1, 2, config.width)),
        jnp.ones((1, 2), bool),
    )["params"]
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == PUBLISHED[name]
    table = {w.path: w.shape for w in weight_table(config)}
    actual = {
        tuple(key.key for key in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    }
    assert table == actual


@pytest.mark.parametrize("name", [n for n in CONFIGS if "Ouro" not in n])
def test_published_model_is_that_of_transformers(name):
    """The same tensors, of the same shapes, as in a torch model built from the same fields."""
    import torch

    raw = CONFIGS[name]
    config = config_from_hf(raw)
    theirs = transformers.AutoConfig.for_model(**copy.deepcopy(raw))  # it fills in dictionaries
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(theirs.get_text_config())
    expected = {n: tuple(p.shape) for n, p in model.named_parameters()}  # a tied one once
    ours = {n: weight.stored_shape for weight in weight_table(config) for n in weight.names}
    assert ours == expected
