"""Errors in a checkpoint's configuration or files."""

from __future__ import annotations

from rmas_jax.host.errors import InputError


class UnsupportedModelError(InputError):
    """The checkpoint needs a feature that these ports do not implement."""


class CheckpointError(InputError):
    """A checkpoint that is missing, damaged, or does not hold the weights of its model."""
