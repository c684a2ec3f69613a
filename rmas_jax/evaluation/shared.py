"""What the methods of an evaluation compute alike: kept, for all that need it.

    prefix of a prompt      by agent and tokens               for all methods and rounds
    latent rounds           by channel, links and prompts     for more rounds, and other seeds
    messages in text        by method and prompts             for more rounds, and other seeds

A value that exceeds the budget is computed again by the same program, so that no answer depends on
the budget, on the order of methods, or on an interruption. Seconds of a value count for each
method that uses it, as if it had computed it.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

import jax
import numpy as np

from rmas_jax.host.compilations import compilations

SHARED_BYTES = 2**30  # on each device, by default
T = TypeVar("T")
Key = tuple[Hashable, ...]


class Same:
    """A part of a key that equals the same object alone, and keeps it alive."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def content(array: np.ndarray) -> Hashable:
    """A part of a key: what an array on the host holds."""
    array = np.ascontiguousarray(array)
    return array.shape, array.dtype.str, hashlib.sha256(array.data).digest()


class Shared:
    """Values by key, with the seconds that they took; first come, first kept.

    All processes of a run have the same ones.
    """

    def __init__(self, budget: int = 0):
        """Takes the budget in bytes on each device; 0 keeps nothing."""
        self.budget = budget
        self._held = 0
        self._values: dict[Key, tuple[Any, float]] = {}
        self._saved_s = 0.0  # that values took when they were computed, over all uses

    def get(self, key: Key, make: Callable[[], T]) -> T:
        """The value of a key; it is computed where it is not kept, and kept where it fits."""
        if not self.budget:
            return make()
        if (found := self.first([key])) is not None:
            return found
        value, seconds = self.timed(lambda: jax.block_until_ready(make()))
        if self._held + (size := _size(value)) <= self.budget:
            self._held += size
            self._values[key] = value, seconds
        return value

    def first(self, keys: Iterable[Key]) -> Any | None:
        """The value of the first of these keys that is kept; None: there is none."""
        for key in keys:
            if key in self._values:
                value, seconds = self._values[key]
                self._saved_s += seconds
                return value
        return None

    def timed(self, call: Callable[[], T]) -> tuple[T, float]:
        """The result of a call that ends on the host, and its seconds without compilation.

        A call in which anything was compiled runs again. Seconds include those of kept values.
        """
        while True:
            known, saved, started = compilations(), self._saved_s, time.perf_counter()
            result = call()
            seconds = time.perf_counter() - started + self._saved_s - saved
            if compilations() == known:
                return result, seconds

    def clear(self) -> None:
        """Frees all values."""
        self._values.clear()
        self._held = 0


def _size(value: Any) -> int:
    """Bytes of a tree on each device, or on the host."""

    def size(leaf: Any) -> int:
        if isinstance(leaf, jax.Array):
            return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        return leaf.nbytes if isinstance(leaf, np.ndarray) else len(str(leaf))

    return sum(map(size, jax.tree.leaves(value)))
