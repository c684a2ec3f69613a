"""Checkpoints of tests, changed on disk: their configuration, their tensors, their files."""

from __future__ import annotations

import json

import jax
import numpy as np
import safetensors.numpy

WEIGHTS = "model.safetensors"


def edit_config(directory, **changes):
    path = directory / "config.json"
    raw = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in raw.items() if v is not ...}))


def edit_weights(directory, edit):
    tensors = safetensors.numpy.load_file(directory / WEIGHTS)
    edit(tensors)
    safetensors.numpy.save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})


def shard(directory, parts=2):
    """Rewrites a checkpoint as shards with an index; returns the names of the shards."""
    tensors = safetensors.numpy.load_file(directory / WEIGHTS)
    (directory / WEIGHTS).unlink()
    files = [f"model-{i + 1:05}-of-{parts:05}.safetensors" for i in range(parts)]
    weight_map = {name: files[i % parts] for i, name in enumerate(sorted(tensors))}
    for file in files:
        safetensors.numpy.save_file(
            {name: tensors[name] for name, home in weight_map.items() if home == file},
            directory / file,
        )
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return files


def assert_same_params(ours, expected):
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
