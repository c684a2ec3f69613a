"""Recursive multi-agent systems in latent space, as pure JAX functions."""

__version__ = "0.1.0"
