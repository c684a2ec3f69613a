"""Sampling rules and end tokens from a checkpoint's files."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from rmas_jax.host.errors import shown
from rmas_jax.models.directories import CONFIG_FILE, is_gguf, local_checkpoint, read_json
from rmas_jax.models.errors import CheckpointError
from rmas_jax.models.gguf_header import read_header
from rmas_jax.models.gguf_tokenizer import end_tokens as gguf_end_tokens

GENERATION_FILE = "generation_config.json"


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """Rules to choose a token from logits; hashable, so static under `jit`.

    The rules are those of transformers, in its order: repetition penalty, temperature, top-k,
    top-p, min-p. Every field's default disables its rule.
    """

    temperature: float = 0.0  # divides logits; 0 takes the likeliest token
    top_k: int = 0  # only the k likeliest tokens; 0 is all
    top_p: float = 1.0  # only the likeliest tokens that together reach this probability
    min_p: float = 0.0  # only tokens with this share of the likeliest one's probability
    repetition_penalty: float = 1.0  # above 1, earlier tokens become less likely

    def __post_init__(self) -> None:
        for field, (allowed, is_allowed) in ALLOWED.items():
            value = getattr(self, field)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not abs(value) < LARGEST or not is_allowed(value):
                raise ValueError(f"{field} must be {allowed}, got {shown(value)}")


LARGEST = float(np.finfo(np.float32).max)
# Field -> the allowed values, in words and as a test.
ALLOWED = {
    "temperature": ("a number of at least 0", lambda x: x >= 0),
    "top_k": ("an integer of at least 0", lambda x: isinstance(x, int) and x >= 0),
    "top_p": ("a number from 0 to 1", lambda x: 0 <= x <= 1),
    "min_p": ("a number from 0 to 1", lambda x: 0 <= x <= 1),
    "repetition_penalty": ("a number above 0", lambda x: x > 0),
}
# Defaults of transformers for rules missing in a `generation_config.json` that samples.
HF_DEFAULTS = {"temperature": 1.0, "top_k": 50}
# Rules of transformers that change the text and are not ported -> value without effect.
UNSUPPORTED = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "penalty_alpha": 0.0,
    "typical_p": 1.0,
    "top_h": None,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "guidance_scale": 1.0,
    "min_length": 0,
    "min_new_tokens": 0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "exponential_decay_length_penalty": None,
    "bad_words_ids": None,
    "force_words_ids": None,
    "sequence_bias": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "stop_strings": None,
    "watermarking_config": None,
    "constraints": None,
    "dola_layers": None,
    "token_healing": False,
}


def sampling_from_hf(raw: Mapping[str, Any]) -> SamplingConfig:
    """Reads the dictionary of a `generation_config.json`; ignores fields without effect on text.

    As in transformers, `do_sample` false is greedy, with the repetition penalty.

    Raises:
      ValueError: a value is out of its range, or a rule is not ported.
    """
    for field, off in UNSUPPORTED.items():
        value = raw.get(field)
        if value is not None and value != off and value != []:
            raise ValueError(f"{field} must be {off!r} (not supported), got {shown(value)}")
    samples = raw.get("do_sample") or False
    if not isinstance(samples, bool):
        raise ValueError(f"do_sample must be true or false, got {shown(samples)}")
    fields = ALLOWED if samples else ("repetition_penalty",)
    given = {field: raw[field] for field in fields if raw.get(field) is not None}
    if samples:
        given = HF_DEFAULTS | given
        if given["temperature"] == 0:
            raise ValueError("temperature must be above 0 with do_sample=true, got 0")
    return SamplingConfig(**given)


def end_tokens_from_hf(raw: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids that end a text; `eos_token_id` is an id, a list of ids, or missing."""
    ids = raw.get("eos_token_id")
    listed = ids if isinstance(ids, list) else [] if ids is None else [ids]
    if any(type(token) is not int or token < 0 for token in listed):
        raise ValueError(f"eos_token_id must be an id or a list of ids, got {shown(ids)}")
    return tuple(dict.fromkeys(listed))


def sampling_defaults(
    path: str | os.PathLike[str], *, revision: str | None = None
) -> tuple[SamplingConfig, tuple[int, ...]]:
    """A checkpoint's sampling rules and end tokens, from its `generation_config.json`.

    A checkpoint without this file is greedy. Where it names no end tokens, those of `config.json`
    apply, else (). A GGUF file is greedy, with its own end tokens.

    Args:
      path: a directory, a GGUF file, or a hub id.
      revision: branch, tag or commit, where `path` is a hub id.

    Raises:
      CheckpointError: a file is missing or damaged, a value is out of its range, or a rule is not
        ported; the message names the file, the field and the allowed values.
    """
    directory = local_checkpoint(path, patterns=("*.json",), revision=revision)
    if is_gguf(directory):
        return SamplingConfig(), gguf_end_tokens(read_header(directory))
    source = directory / GENERATION_FILE
    sampling = SamplingConfig()
    end_tokens: tuple[int, ...] = ()
    try:
        if source.exists():
            raw = read_json(source)
            sampling, end_tokens = sampling_from_hf(raw), end_tokens_from_hf(raw)
        if not end_tokens:
            source = directory / CONFIG_FILE
            raw = read_json(source)
            end_tokens = end_tokens_from_hf(raw)
            text = raw.get("text_config")  # of a multimodal checkpoint
            if not end_tokens and isinstance(text, dict):
                end_tokens = end_tokens_from_hf(text)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from None
    return sampling, end_tokens
