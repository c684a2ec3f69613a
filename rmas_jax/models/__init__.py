"""Frozen language models: Flax ports of Hugging Face decoders, their caches and checkpoints."""

from rmas_jax.models.cache import Block, Cache, LinearState, empty_cache, seal
from rmas_jax.models.config import DecoderConfig, UnsupportedModelError, config_from_hf
from rmas_jax.models.decoder import Decoder
from rmas_jax.models.hf import load_pretrained
from rmas_jax.models.rope import RopeScaling
from rmas_jax.models.saving import save_pretrained
from rmas_jax.models.tokenizer import load_tokenizer
from rmas_jax.models.weights import CheckpointError

__all__ = [
    "Block",
    "Cache",
    "CheckpointError",
    "Decoder",
    "DecoderConfig",
    "LinearState",
    "RopeScaling",
    "UnsupportedModelError",
    "config_from_hf",
    "empty_cache",
    "load_pretrained",
    "load_tokenizer",
    "save_pretrained",
    "seal",
]
