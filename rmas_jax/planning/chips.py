"""Chips, their prices, and the least time that a program needs on one: data and arithmetic."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rmas_jax.host.errors import InputError, shown
from rmas_jax.host.yaml_files import read_yaml
from rmas_jax.planning.hlo import Cost

FOLDER = Path(__file__).parent
# Seconds in which a collective cannot be faster, however small: an assumption, about one hop over a
# link; programs with many collectives are bound by it.
COLLECTIVE_LATENCY_S = 1e-6


class SliceError(InputError):
    """Not a slice of known chips."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """Limits of a chip, and of a device: JAX divides some chips into two."""

    name: str
    chip_memory: float  # bytes of main memory
    chip_bandwidth: float  # bytes/s of main memory
    chip_peak: Mapping[str, float]  # FLOP/s by dtype
    devices: int
    links: int  # to other chips
    link: float  # bytes/s, one way, of a link
    topology: str | None  # prefix of a slice's name in libtpu; None: no compiler at hand
    price: float | None = None  # dollars per hour; None: unknown

    @property
    def memory(self) -> float:
        """Bytes of main memory of a device."""
        return self.chip_memory / self.devices

    @property
    def bandwidth(self) -> float:
        """Bytes/s of main memory of a device."""
        return self.chip_bandwidth / self.devices

    def peak(self, dtype: str) -> float:
        """FLOP/s of a device."""
        return self.chip_peak[dtype] / self.devices

    @property
    def link_bandwidth(self) -> float:
        """Bytes/s that a device sends over its share of all links at once."""
        return self.links * self.link / self.devices


@dataclasses.dataclass(frozen=True)
class Slice:
    """Connected chips of a kind, such as `v5e:4x4` or `H100:8`."""

    chip: Chip
    sizes: tuple[int, ...]

    @property
    def chips(self) -> int:
        """Their number."""
        return math.prod(self.sizes)

    @property
    def devices(self) -> int:
        """The number of JAX's devices."""
        return self.chips * self.chip.devices

    def __str__(self) -> str:
        return f"{self.chip.name}:{'x'.join(map(str, self.sizes))}"


@functools.cache
def chips() -> dict[str, Chip]:
    """All chips by name, with their prices."""
    prices = price_list()["prices"]
    return {
        name: Chip(name=name, price=prices[name], **row)
        for name, row in read_yaml(FOLDER / "chips.yaml", error=SliceError).items()
    }


@functools.cache
def price_list() -> dict[str, Any]:
    """Prices by chip, with their date and source."""
    return read_yaml(FOLDER / "prices.yaml", error=SliceError)


def parse_slice(text: str) -> Slice:
    """The slice of a name such as `v5e:4x4`.

    Raises:
      SliceError: it has another form, or the chip is unknown.
    """
    name, _, sizes = text.partition(":")
    known = {chip.lower(): chip for chip in chips()}
    if name.lower() not in known:
        raise SliceError(f"a slice's chip must be one of {', '.join(chips())}, got {shown(name)}")
    if not re.fullmatch(r"[1-9]\d{0,3}(x[1-9]\d{0,3}){0,2}", sizes):
        raise SliceError(
            f"a slice must be CHIP:SIZES, such as v5e:4x4, v5p:4x4x4 or H100:8, got {shown(text)}"
        )
    return Slice(chips()[known[name.lower()]], tuple(map(int, sizes.split("x"))))


@dataclasses.dataclass(frozen=True)
class Roofline:
    """The least seconds of a program on a device, if its resources work side by side."""

    compute_s: float  # products at the peak rate
    memory_s: float  # main memory
    link_s: float  # links to other chips
    latency_s: float  # of collectives, `COLLECTIVE_LATENCY_S` each

    @property
    def seconds(self) -> float:
        """The longest of compute, memory and links; links wait for each collective's latency."""
        return max(self.compute_s, self.memory_s, self.link_s + self.latency_s)

    @property
    def bound(self) -> str:
        """What takes longest."""
        times = {
            "compute": self.compute_s,
            "memory": self.memory_s,
            "links": self.link_s + self.latency_s,
        }
        return max(times, key=lambda name: times[name])


def roofline(cost: Cost, chip: Chip, *, dtype: str) -> Roofline:
    """The least time of a program on each of its devices.

    Args:
      cost: of one device.
      chip: of the devices.
      dtype: of the products.
    """
    return Roofline(
        compute_s=cost.flops / chip.peak(dtype),
        memory_s=cost.memory_bytes / chip.bandwidth,
        link_s=cost.link_bytes / chip.link_bandwidth,
        latency_s=cost.count() * COLLECTIVE_LATENCY_S,
    )
