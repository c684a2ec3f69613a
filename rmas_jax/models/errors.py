"""What is wrong with a model's configuration."""

from __future__ import annotations

from rmas_jax.host.errors import InputError


class UnsupportedModelError(InputError):
    """The checkpoint asks for something that these ports do not implement."""
