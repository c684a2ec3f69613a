"""Saves decoders to Hugging Face directories: `config.json` and safetensors, without torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util
from safetensors.numpy import save_file

from rmas_jax.host.errors import listed
from rmas_jax.models.config import config_to_hf
from rmas_jax.models.decoder import Decoder
from rmas_jax.models.directories import CONFIG_FILE
from rmas_jax.models.errors import CheckpointError
from rmas_jax.models.int8 import is_quantised
from rmas_jax.models.stored import WEIGHT_FILE
from rmas_jax.models.stored_names import EMBEDDING
from rmas_jax.models.weights import weight_table


def save_pretrained(
    path: str | os.PathLike[str],
    model: Decoder,
    params: Mapping[str, Any],
    *,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes `config.json` and `model.safetensors`, for transformers and `load_pretrained`.

    Args:
      path: directory, made if it does not exist.
      model: the decoder.
      params: its parameters; each keeps its dtype.
      extra: fields of `config.json` that do not shape the decoder, such as `eos_token_id` and
        `max_position_embeddings`. The others come from the model.

    Raises:
      UnsupportedModelError: the family's `config.json` cannot express the configuration.
      CheckpointError: `params` are in int8, or not those of `model`; raised before any write.
    """
    c = model.config
    flat = traverse_util.flatten_dict(dict(params))
    if any(map(is_quantised, flat.values())):
        raise CheckpointError(
            "params must be those of load_pretrained without weights='int8', got int8"
        )
    table = {weight.path: weight for weight in weight_table(c)}
    problems = [f"missing: {'/'.join(key)}" for key in table.keys() - flat.keys()]
    problems += [f"unexpected: {'/'.join(key)}" for key in flat.keys() - table.keys()]
    for key in table.keys() & flat.keys():
        if flat[key].shape != table[key].shape:
            problems.append(
                f"misshapen: {'/'.join(key)} must be {table[key].shape}, got {flat[key].shape}"
            )
    if problems:
        raise CheckpointError(
            "params must be those of the model, got\n  " + "\n  ".join(listed(sorted(problems)))
        )

    tensors = {}
    for key, weight in table.items():
        param = np.asarray(flat[key])
        for layer, name in enumerate(weight.names):
            stored = weight.to_stored(param[layer] if weight.is_stacked else param)
            tensors[name] = np.ascontiguousarray(stored)  # save_file ignores strides
    raw = {
        # A decoder has no special tokens; without these fields, transformers assumes the family's.
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        **(extra or {}),
        **config_to_hf(c),
        "dtype": tensors[EMBEDDING].dtype.name,
    }

    directory = Path(path)
    directory.mkdir(parents=True, exist_ok=True)
    # Atomic: each file appears complete.
    partial = directory / f".{WEIGHT_FILE}.partial"
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.replace(directory / WEIGHT_FILE)
    partial = directory / f".{CONFIG_FILE}.partial"
    partial.write_text(json.dumps(raw, indent=2) + "\n")
    partial.replace(directory / CONFIG_FILE)
