"""Data sets as `Example`s: the embedded one, published ones, and the user's files."""

from rmas_jax.data.examples import Example
from rmas_jax.data.rows import BadRow, DataError

__all__ = ["BadRow", "DataError", "Example"]
