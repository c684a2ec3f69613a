"""Frozen language models: Flax ports of Hugging Face decoders, with caches and checkpoints."""

from rmas_jax.models.cache import Block, Cache, LinearState, empty_cache, repeat_rows, seal
from rmas_jax.models.config import DecoderConfig, UnsupportedModelError, config_from_hf
from rmas_jax.models.decoder import Decoder
from rmas_jax.models.errors import CheckpointError
from rmas_jax.models.hf import abstract_agent, load_pretrained
from rmas_jax.models.rope import RopeScaling
from rmas_jax.models.saving import save_pretrained
from rmas_jax.models.tokenizer import load_tokenizer

__all__ = [
    "Block",
    "Cache",
    "CheckpointError",
    "Decoder",
    "DecoderConfig",
    "LinearState",
    "RopeScaling",
    "UnsupportedModelError",
    "abstract_agent",
    "config_from_hf",
    "empty_cache",
    "load_pretrained",
    "load_tokenizer",
    "repeat_rows",
    "save_pretrained",
    "seal",
]
