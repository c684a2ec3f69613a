"""Activations of feed-forward layers: functions, and names in configuration files."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax


class Activation(NamedTuple):
    """One activation."""

    apply: Callable[[jax.Array], jax.Array]
    hf_names: tuple[str, ...]  # in a `config.json`; saving uses the first


ACTIVATIONS = {
    "silu": Activation(jax.nn.silu, ("silu", "swish")),
    "gelu": Activation(functools.partial(jax.nn.gelu, approximate=False), ("gelu", "gelu_python")),
    "gelu_tanh": Activation(
        jax.nn.gelu,
        ("gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_accurate", "gelu_python_tanh"),
    ),
    "relu": Activation(jax.nn.relu, ("relu",)),
}
# Name in a file -> key of ACTIVATIONS.
FROM_HF = {hf_name: name for name, (_, names) in ACTIVATIONS.items() for hf_name in names}
