"""Eight fake devices, strict numerics, and tiny random torch models to compare with."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before the first import of huggingface_hub

import jax
import jax.numpy as jnp
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_captured_constants_warn_bytes", 1 << 20)
# Compiling takes most of the time of the tests. A test of speed or memory turns this off again.
jax.config.update("jax_disable_most_optimizations", True)
if jax.__version_info__[:2] == (0, 10):  # XLA stops at flags that it does not know
    # The older emitters compile three times as fast. XLA reads its flags when a backend starts.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_use_fusion_emitters=false"

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,  # not hidden_size / heads
    # At the default of 0.02 a model is so tame that a wrong rotary base passes as rounding.
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "max_position_embeddings": 64,
}
WINDOWS = ["sliding_attention", "full_attention", "sliding_attention"]
# Case -> model type and the options in which it differs from SIZES.
CASES = {
    "llama": ("llama", {"tie_word_embeddings": True}),
    "llama-mqa-untied": ("llama", {"num_key_value_heads": 1, "tie_word_embeddings": False}),
    "llama-mha": ("llama", {"num_key_value_heads": 4, "head_dim": 8}),
    "qwen3": ("qwen3", {"tie_word_embeddings": False}),
    "qwen3-tied": ("qwen3", {"tie_word_embeddings": True, "rms_norm_eps": 1e-3}),
    "qwen3-window": (
        "qwen3",
        {"use_sliding_window": True, "sliding_window": 3, "layer_types": WINDOWS},
    ),
    "gemma3": (
        "gemma3_text",
        {"sliding_window": 4, "layer_types": WINDOWS, "query_pre_attn_scalar": 20},
    ),
    "gemma3-mqa-untied": (
        "gemma3_text",
        {
            "sliding_window": 3,
            "layer_types": WINDOWS,
            "num_key_value_heads": 1,
            "tie_word_embeddings": False,
        },
    ),
}


@dataclasses.dataclass(frozen=True)
class Oracle:
    """A tiny torch model and the directory to which transformers saved it."""

    model: Any
    directory: Path


def build_torch_model(case: str) -> Any:
    """A random float32 torch model with norm weights that are not all alike."""
    import torch  # here, so that tests without an oracle start quickly
    import transformers

    torch.set_num_threads(2)
    transformers.logging.set_verbosity_error()
    model_type, options = CASES[case]
    config = transformers.AutoConfig.for_model(model_type, **SIZES | options)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter += 0.3 * torch.randn_like(parameter)
    return model.requires_grad_(False)


@pytest.fixture(scope="session")
def oracle(tmp_path_factory):
    """Function from a case of CASES to its `Oracle`; each is built once."""
    built: dict[str, Oracle] = {}

    def build(case: str) -> Oracle:
        if case not in built:
            model = build_torch_model(case)
            directory = tmp_path_factory.mktemp(case)
            model.save_pretrained(directory)
            built[case] = Oracle(model, directory)
        return built[case]

    return build


@pytest.fixture(scope="session")
def tiny_system():
    """Three random heterogeneous agents with links and prompts; see `systems`."""
    from systems import build_tiny_system

    return build_tiny_system()


@pytest.fixture
def float64(monkeypatch):
    """Double precision throughout, also where the code asks for float32: for finite differences.

    Gives a function that casts a tree.
    """
    monkeypatch.setattr(jnp, "float32", jnp.float64)

    def cast(tree):
        return jax.tree.map(
            lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
        )

    with jax.enable_x64(True):
        yield cast
