"""Compiles a program from shapes alone, and says what it needs on each device."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

from rmas_jax.planning.bounds import Bound
from rmas_jax.planning.chips import Slice, roofline
from rmas_jax.planning.compiling import Compilations
from rmas_jax.planning.hlo import Cost, program_cost

log = logging.getLogger(__name__)


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
    taken: float = 1.0  # share of the runs of its conditionals that take the expensive branch
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
    lower_s: float
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
            "lower_s": self.lower_s,
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


@dataclasses.dataclass(frozen=True, eq=False)
class Planned:
    """A program's plan, and the program."""

    plan: ProgramPlan
    outputs: Any  # tree of jax.ShapeDtypeStruct with shardings; None: it does not fit
    lowered: Any
    executable: Any  # None: it does not fit, or an earlier compilation was at hand


Compile = Callable[[Program], Any]  # -> shapes of the results; None: it needs more memory
Chain = Callable[[Compile], None]  # compiles programs in their order


def plan_chains(chains: Sequence[Chain], compilations: Compilations) -> list[Planned]:
    """Plans chains of programs, as many at once as there are cores: a compiler mostly uses one.

    Programs of a chain follow each other. Results are in the order of the chains.
    """

    def plan(chain: Chain) -> list[Planned]:
        found: list[Planned] = []

        def compile_(program: Program) -> Any:
            found.append(plan_program(program, compilations))
            return found[-1].outputs

        chain(compile_)
        return found

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        try:
            return [planned for found in threads.map(plan, chains) for planned in found]
        except BaseException:
            compilations.is_stopped.set()  # the pool waits for its threads
            raise


def plan_program(program: Program, compilations: Compilations) -> Planned:
    """Compiles a program, and says what it needs."""
    started = time.perf_counter()
    lowered = program.lower()
    lower_s = time.perf_counter() - started
    sharding = next(
        (x.sharding for x in jax.tree.leaves(program.arguments) if x.sharding is not None), None
    )
    compiled = compilations.compile(lowered, sharding)
    cost, started = None, time.perf_counter()
    if compiled.text is not None:
        cost = program_cost(compiled.text, unknown_trips=program.trips, taken=program.taken)
    count_s = time.perf_counter() - started
    log.info(
        "%s: lowered in %.0f s, compiled in %.0f s, counted in %.0f s",
        program.name, lower_s, compiled.seconds, count_s,
    )  # fmt: skip
    plan = ProgramPlan(
        program.name,
        program.items,
        program.runs,
        _memory(program, compiled.sizes),
        cost,
        program.bound,
        lower_s,
        compiled.seconds,
        program.is_answer,
    )
    return Planned(plan, compiled.outputs, lowered, compiled.executable)


def _memory(program: Program, sizes: Mapping[str, int]) -> dict[str, int]:
    """Bytes by class, of a program with these sizes."""
    held = {name: tree_bytes(tree) for name, tree in program.arguments.items()}
    beside = {name: tree_bytes(tree) for name, tree in program.beside.items()}
    classes = dict.fromkeys((*beside, *held))
    memory = {name: held.get(name, 0) + beside.get(name, 0) for name in classes}
    padding = max(0, sizes.get("argument", 0) - sum(held.values()))
    caches = min(program.caches, sizes["temp"])
    found = {
        "inputs": memory.get("inputs", 0) + padding,
        "outputs": sizes.get("output", 0) - sizes.get("alias", 0),
        "caches": memory.get("caches", 0) + caches,
        "temporaries": sizes["temp"] - caches,
        "code": sizes.get("generated_code", 0),
    }
    return {name: size for name, size in (memory | found).items() if size}


def tree_bytes(tree: Any) -> int:
    """Bytes on each device of arrays or of their shapes."""
    return sum(
        math.prod(leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape))
        * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
