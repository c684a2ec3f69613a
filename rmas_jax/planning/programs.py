"""Compiles a program from shapes alone, and says what it needs on each device."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from rmas_jax.planning.bounds import Bound
from rmas_jax.planning.chips import Slice, roofline
from rmas_jax.planning.hlo import Cost, program_cost

# What the compiler says where a program's memory exceeds a device's.
OUT_OF_MEMORY = re.compile(r"RESOURCE_EXHAUSTED.*?HLO temporaries \(([\d.]+)([KMGT])\)", re.DOTALL)
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A program of a run, before it is compiled."""

    name: str
    lower: Callable[[], jax.stages.Lowered]  # from shapes with shardings
    items: int  # of a batch
    arguments: Mapping[str, Any]  # class of memory -> trees of jax.ShapeDtypeStruct
    beside: Mapping[str, Any]  # the same, of arrays that stay on the devices meanwhile
    caches: int = 0  # bytes of caches that the program makes, on each device
    runs: int | None = None  # in the run; None: as often as there are batches
    trips: int | None = None  # runs of its loops whose number is data
    bound: Bound | None = None
    is_answer: bool = False  # whether every answer needs it
    is_throughput: bool = True  # whether the throughput of a run depends on it


@dataclasses.dataclass(frozen=True)
class ProgramPlan:
    """What a program needs on each device."""

    name: str
    items: int
    runs: int | None
    memory: Mapping[str, int]  # bytes by class
    cost: Cost | None  # None: the compiler refused it, for lack of memory
    bound: Bound | None
    compile_s: float
    is_answer: bool = False

    @property
    def total_memory(self) -> int:
        """Bytes of all classes."""
        return sum(self.memory.values())

    def seconds(self, wanted: Slice, *, dtype: str) -> float:
        """The least seconds of a run on a slice; infinite where it does not fit."""
        if self.cost is None:
            return math.inf
        return roofline(self.cost, wanted.chip, dtype=dtype).seconds

    def distance(self, wanted: Slice, *, dtype: str) -> float | None:
        """Estimated seconds in units of the bound of `planning.bounds`; None without a bound."""
        if self.bound is None:
            return None
        least = self.bound.seconds(wanted.chip, wanted.devices, dtype=dtype)
        return self.seconds(wanted, dtype=dtype) / least if least else None

    def as_json(self, wanted: Slice | None, *, dtype: str) -> dict[str, Any]:
        """Values of JSON; sizes in bytes, times in seconds."""
        out: dict[str, Any] = {
            "program": self.name,
            "items": self.items,
            "runs": self.runs,
            "memory": dict(self.memory),
            "total_memory": self.total_memory,
            "compile_s": self.compile_s,
        }
        if self.cost is not None:
            out |= {
                "flops": self.cost.flops,
                "memory_bytes": self.cost.memory_bytes,
                "link_bytes": self.cost.link_bytes,
                "collectives": {
                    kind: {"count": count, "link_bytes": size}
                    for kind, (count, size) in self.cost.by_kind.items()
                },
            }
        if wanted is not None and self.cost is not None:
            line = roofline(self.cost, wanted.chip, dtype=dtype)
            out |= dataclasses.asdict(line) | {
                "seconds": line.seconds,
                "bound": line.bound,
                "times_the_bound": self.distance(wanted, dtype=dtype),
            }
        return out


def plan_program(program: Program) -> tuple[ProgramPlan, Any, Any]:
    """Compiles a program; returns what it needs, and the program as lowered and as compiled.

    The last is None where the compiler finds that the memory of the chip is too small.
    """
    started = time.perf_counter()
    held = {name: tree_bytes(tree) for name, tree in program.arguments.items()}
    beside = {name: tree_bytes(tree) for name, tree in program.beside.items()}
    classes = dict.fromkeys((*beside, *held))
    memory = {name: held.get(name, 0) + beside.get(name, 0) for name in classes}
    lowered = program.lower()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if (found := OUT_OF_MEMORY.search(str(error))) is None:
            raise
        memory["temporaries"] = int(float(found[1]) * UNITS[found[2]])
        return _planned(program, memory, None, started), lowered, None
    stats: Any = compiled.memory_analysis()
    memory["inputs"] = memory.get("inputs", 0) + max(
        0, stats.argument_size_in_bytes - sum(held.values())
    )
    memory["outputs"] = stats.output_size_in_bytes - stats.alias_size_in_bytes
    caches = min(program.caches, stats.temp_size_in_bytes)
    memory["caches"] = memory.get("caches", 0) + caches
    memory["temporaries"] = stats.temp_size_in_bytes - caches
    memory["code"] = stats.generated_code_size_in_bytes
    cost = program_cost(compiled.as_text() or "", unknown_trips=program.trips)
    return _planned(program, memory, cost, started), lowered, compiled


def _planned(
    program: Program, memory: Mapping[str, int], cost: Cost | None, started: float
) -> ProgramPlan:
    return ProgramPlan(
        program.name,
        program.items,
        program.runs,
        {name: size for name, size in memory.items() if size},
        cost,
        program.bound,
        time.perf_counter() - started,
        program.is_answer,
    )


def tree_bytes(tree: Any) -> int:
    """Bytes on each device of arrays or of their shapes."""
    return sum(
        math.prod(leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape))
        * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
