"""Errors in a checkpoint's configuration or files."""

from __future__ import annotations

from rmas_jax.host.errors import InputError


class UnsupportedModelError(InputError):
    """The checkpoint needs a feature that is not implemented."""


class CheckpointError(InputError):
    """A checkpoint that is missing, damaged, or lacks the weights of its model."""
