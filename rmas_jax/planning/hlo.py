"""Counts what a compiled program does on one device: FLOPs, bytes of main memory, collectives.

XLA's own `cost_analysis` counts the body of a loop once. Here a loop counts as often as it runs:
the compiler's known trip count, or else the bound in the loop's condition. Of a conditional the
most expensive branch counts, by the share of the runs that take it.

    entry
      while  x 28 (layers)  ->  fusion: dot      28 x its FLOPs
                                all-gather       28 x its bytes through the device's links
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator

from rmas_jax.planning.hlo_flops import instruction_flops
from rmas_jax.planning.hlo_text import Computation, Instruction, Module, parse

# Bytes that a device sends through its links, by operand bytes and devices of a group, in a ring.
LINK_BYTES: dict[str, Callable[[float, int], float]] = {
    "all-gather": lambda size, n: size * (n - 1),
    "all-reduce": lambda size, n: 2 * size * (n - 1) / n,
    "reduce-scatter": lambda size, n: size * (n - 1) / n,
    "all-to-all": lambda size, n: size * (n - 1) / n,
    "ragged-all-to-all": lambda size, n: size * (n - 1) / n,
    "collective-permute": lambda size, n: size,
    "collective-broadcast": lambda size, n: size,
}
# Instructions that move no bytes themselves.
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "domain",
    "partition-id", "replica-id", "opt-barrier", "add-dependency", "iota", "get-dimension-size",
}  # fmt: skip
ROOM = 'custom_call_target="AllocateBuffer"'  # on TPUs; nothing is written to it
STARTS = "AsyncCollectiveStart"  # the target of a custom call, on TPUs
COPIED = {"copy-done", "slice-done", "dynamic-slice-done"}  # ends of copies that began before
SLICES = {"dynamic-slice", "slice", "gather"}  # read as much of operand 0 as they return


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective operation, as often as it runs."""

    kind: str  # key of LINK_BYTES
    devices: int  # of a group
    operand_bytes: int  # of one device, for one run
    operation: str  # its place in the traced program; empty if the compiler made it
    times: float = 1  # with the share of the runs of a conditional

    @property
    def link_bytes(self) -> float:
        """Bytes that a device sends through its links, over all runs."""
        return self.times * LINK_BYTES[self.kind](self.operand_bytes, self.devices)


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a program does on one device."""

    flops: float = 0.0  # of dots and convolutions; 2 per multiplication and addition
    memory_bytes: float = 0.0  # read from and written to main memory
    collectives: tuple[Collective, ...] = ()

    @property
    def link_bytes(self) -> float:
        """Bytes that a device sends through its links."""
        return sum(collective.link_bytes for collective in self.collectives)

    def count(self, kind: str | None = None) -> int:
        """How many collectives run, of a kind or of all kinds."""
        return round(sum(c.times for c in self.collectives if kind in (None, c.kind)))

    @property
    def by_kind(self) -> dict[str, tuple[int, float]]:
        """Kind of collective -> runs, and bytes through a device's links."""
        kinds = dict.fromkeys(collective.kind for collective in self.collectives)
        return {
            kind: (
                self.count(kind),
                sum(c.link_bytes for c in self.collectives if c.kind == kind),
            )
            for kind in sorted(kinds)
        }

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.flops + other.flops,
            self.memory_bytes + other.memory_bytes,
            self.collectives + other.collectives,
        )

    def __mul__(self, times: float) -> Cost:
        repeated = (dataclasses.replace(c, times=c.times * times) for c in self.collectives)
        return Cost(self.flops * times, self.memory_bytes * times, tuple(repeated) if times else ())

    __rmul__ = __mul__


def program_cost(
    text: str,
    *,
    unknown_trips: int | None = None,
    taken: float = 1.0,
    counts: Callable[[Instruction], bool] | None = None,
) -> Cost:
    """The cost of a program on one device.

    Args:
      text: of `compiled.as_text()`.
      unknown_trips: runs of a loop whose number is data, such as that of rounds in `listen`.
      taken: share of the runs of a conditional that take its most expensive branch.
      counts: whether an instruction counts, a fusion as a whole; None: all do.

    Raises:
      ValueError: a loop's number of runs is data, and `unknown_trips` is None.
    """
    module = parse(text)
    return _Walk(module, unknown_trips, taken, counts).of_computation(module.entry)


@dataclasses.dataclass(eq=False)
class _Walk:
    """Costs of a module's computations, each computed once."""

    module: Module
    unknown_trips: int | None
    taken: float
    counts: Callable[[Instruction], bool] | None

    def __post_init__(self) -> None:
        self.of_computation = functools.cache(self._of_computation)

    @functools.cached_property
    def whole(self) -> _Walk:
        """The same, where all instructions count."""
        return dataclasses.replace(self, counts=None) if self.counts else self

    def _of_computation(self, name: str) -> Cost:
        computation = self.module.computations[name]
        costs = [self._of(computation, x) for x in computation.instructions.values()]
        return Cost(
            sum(cost.flops for cost in costs),
            sum(cost.memory_bytes for cost in costs),
            tuple(collective for cost in costs for collective in cost.collectives),
        )

    def _of(self, computation: Computation, x: Instruction) -> Cost:
        opcode = x.opcode
        if opcode in FREE or ROOM in x.attributes:
            return Cost()
        if opcode == "while":
            condition, body = (x.called(key)[0] for key in ("condition", "body"))
            trips = self._trips(computation, x, condition)
            return (self.of_computation(body) + self.of_computation(condition)) * trips
        if opcode == "conditional":
            names = x.called("branch_computations", "true_computation", "false_computation")
            branches = [self.of_computation(name) for name in names]
            return self.taken * max(branches, key=lambda c: (c.flops, c.memory_bytes, c.link_bytes))
        if opcode in ("call", "async-start"):
            return self._all(x.called("to_apply", "calls"))
        if self.counts and not self.counts(x):
            return Cost()
        if opcode == "fusion":
            (name,) = x.called("calls")
            inside = self.whole.of_computation(name)
            return dataclasses.replace(inside, memory_bytes=self._fusion_bytes(computation, x))
        if opcode.endswith("-done") or opcode == "async-update":
            return Cost(memory_bytes=x.main_bytes if opcode in COPIED else 0)
        kind = opcode.removesuffix("-start")
        moved = self._moved_bytes(computation, x)
        if kind in LINK_BYTES:
            if _is_continued(computation, x):
                return Cost()
            return Cost(0.0, moved, (self._collective(computation, x, kind),))
        return Cost(instruction_flops(computation, x), moved)

    def _all(self, names: Iterable[str]) -> Cost:
        return functools.reduce(Cost.__add__, map(self.of_computation, names), Cost())

    def _trips(self, computation: Computation, loop: Instruction, condition: str) -> int:
        """How often a loop runs."""
        known = loop.attribute(r'"known_trip_count":\{"n":"(\d+)"')
        if known is not None:
            return int(known)
        found = _bound(self.module, condition, computation, loop)
        if found is not None:
            return found
        if self.unknown_trips is None:
            raise ValueError(
                f"unknown_trips must be a number, as the runs of the loop {loop.name} are data, "
                "got None"
            )
        return self.unknown_trips

    def _collective(self, computation: Computation, x: Instruction, kind: str) -> Collective:
        size = sum(computation.instructions[name].bytes for name in x.operands)
        if kind == "all-reduce" and _is_scattered(computation, x):
            kind = "reduce-scatter"
        operation = x.attribute(r'op_name="([^"]*)"') or ""
        return Collective(kind, _group_size(x, self.module.devices), size, operation)

    def _moved_bytes(self, computation: Computation, x: Instruction) -> int:
        """Bytes of main memory that an instruction outside fusions reads and writes."""
        kind, operands = x.opcode.removesuffix("-start"), x.operands
        sizes = [computation.instructions[name].main_bytes for name in operands]
        if f"{kind}-done" in COPIED and kind != x.opcode:  # its end counts what it writes
            if kind in SLICES and sizes[0]:  # ((operands), slice, context)
                sizes[0] = x.shapes[len(operands)].bytes
            return sum(sizes)
        if kind in LINK_BYTES:  # the result of a start is a tuple with its operands
            gathered = _group_size(x, self.module.devices) if kind == "all-gather" else 1
            return sum(sizes) * (1 + gathered)
        if kind in SLICES:
            return 2 * x.main_bytes + sum(sizes[1:])
        if kind == "dynamic-update-slice":  # in place
            return 2 * sizes[1] + sum(sizes[2:])
        if kind == "scatter":
            return 2 * sizes[-1] + sum(sizes[1:-1])
        return x.main_bytes + sum(sizes)

    def _fusion_bytes(self, computation: Computation, x: Instruction) -> int:
        inner = self.module.computations[x.called("calls")[0]]
        total = self._written(inner, inner.root) if x.main_bytes else 0
        for place in range(len(x.operands)):
            if computation.operand(x, place).main_bytes:
                total += self._read(inner, inner.parameters[place])
        return total

    def _read(self, computation: Computation, x: Instruction) -> int:
        """Bytes that a fused computation reads of a parameter, or of a view of it."""
        total = 0
        for user, place in computation.users.get(x.name, ()):
            if user.opcode in SLICES and place == 0:
                total += user.bytes
            elif user.opcode == "dynamic-update-slice" and place == 0:
                continue  # in place
            elif user.opcode == "tuple" or _hands_on(computation, user):
                continue
            elif user.opcode == "bitcast":
                total += self._read(computation, user)
            elif user.opcode == "fusion":
                inner = self.module.computations[user.called("calls")[0]]
                total += self._read(inner, inner.parameters[place])
            else:
                total += x.bytes
        return min(total, x.bytes)

    def _written(self, computation: Computation, x: Instruction) -> int:
        """Bytes that a fused computation writes of a result."""
        if x.opcode == "tuple":
            return sum(self._written(computation, computation.instructions[n]) for n in x.operands)
        if x.opcode == "parameter" or STARTS in x.attributes or _is_continued(computation, x):
            return 0
        if x.opcode == "bitcast":
            return self._written(computation, computation.operand(x, 0))
        if x.opcode == "dynamic-update-slice":
            return computation.operand(x, 1).bytes
        if x.opcode == "fusion":
            inner = self.module.computations[x.called("calls")[0]]
            return self._written(inner, inner.root)
        return x.main_bytes


def _is_continued(computation: Computation, x: Instruction) -> bool:
    """Whether a collective has been counted where it starts.

    Compilers for TPUs write an asynchronous one three times: in a fusion that starts it, in one
    that computes meanwhile, and in one that ends it.
    """
    users = computation.users.get(x.name, ())
    is_part = x.opcode in LINK_BYTES and "chain_id=" in x.attributes
    return is_part and not any(STARTS in user.attributes for user, _ in users)


def _hands_on(computation: Computation, x: Instruction) -> bool:
    """Whether an instruction only hands on the operands of an asynchronous collective."""
    return "AsyncCollective" in x.attributes or _is_continued(computation, x)


def _is_scattered(computation: Computation, x: Instruction) -> bool:
    """Whether only a slice of a sum is used: a reduce-scatter, as compilers for TPUs write it."""
    users = [user.opcode for user, _ in computation.users.get(x.name, ())]
    return users == ["dynamic-slice"] and computation.root.opcode in ("dynamic-slice", "bitcast")


def _group_size(x: Instruction, devices: int) -> int:
    """Devices of a group of a collective, `devices` in all.

    Raises:
      ValueError: the groups are written in another way than is known here.
    """
    # Axes of a mesh, and the order of its devices where it is not that of their numbers:
    # mesh['axis_0'=16,'axis_1'=4], device_ids=([4,16]T(1,0)) {'axis_0'}.
    mesh = r"replica_groups=mesh\[(.*?)\](?:, device_ids=\(.*?\))? \{"
    if axes := x.attribute(mesh):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes))
        within = x.attribute(mesh.replace("(.*?)", ".*?") + r"(.*?)\}") or ""
        # An axis, or a part of one: 'axis_0', 'axis_1':(2)4, of size 4 behind parts of size 2.
        parts = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", within)
        return math.prod(int(size or sizes[axis]) for axis, size in parts)
    if iota := x.attribute(r"replica_groups=\[([\d,]+)\]<="):
        return int(iota.split(",")[-1])
    if listed := x.attribute(r"replica_groups=\{\{([\d,]*)\}"):
        return len(listed.split(","))
    unknown = x.attribute(r"replica_groups=(?!\{\})(\S+)")
    if unknown is not None:
        raise ValueError(f"replica_groups of {x.name} must be of a known notation, got {unknown}")
    return devices


def _bound(module: Module, name: str, outside: Computation, loop: Instruction) -> int | None:
    """How often a loop runs at most, if its condition compares a counter with a constant."""
    bounds = []
    for left, right, direction in _comparisons(module, module.computations[name], ()):
        if direction == "GT":
            left, right = right, left
        if isinstance(left, Instruction) and isinstance(right, int):
            bounds.append(right - _start(left, outside, loop))
    return max(0, min(bounds)) if bounds else None


_Value = Instruction | int | None  # a part of the loop's state, a constant, or something else


def _comparisons(
    module: Module, computation: Computation, given: tuple[_Value, ...]
) -> Iterator[tuple[_Value, _Value, str]]:
    """Yields both sides of comparisons by < and >, also of those in fusions.

    `given` are the values of a fusion's parameters.
    """

    def value(name: str) -> _Value:
        x = computation.instructions[name]
        if x.opcode in ("copy", "bitcast", "convert"):
            return value(x.operands[0])
        if x.opcode == "parameter":
            return given[int(x.arguments)] if given else None
        if x.opcode == "get-tuple-element":
            return x
        return _constant(x)

    for x in computation.instructions.values():
        if x.opcode == "compare" and x.attribute(r"direction=(\w+)") in ("LT", "GT"):
            left, right = map(value, x.operands)
            yield left, right, x.attribute(r"direction=(\w+)") or ""
        elif x.opcode in ("fusion", "call"):
            (name,) = x.called("calls", "to_apply")
            yield from _comparisons(
                module, module.computations[name], tuple(map(value, x.operands))
            )


def _start(counter: Instruction, outside: Computation, loop: Instruction) -> int:
    """The first value of a loop's counter; 0 if unknown."""
    index, state = counter.attribute(r"index=(\d+)"), outside.operand(loop, 0)
    if index is None or state.opcode != "tuple":
        return 0
    x = outside.operand(state, int(index))
    while x.opcode in ("copy", "bitcast", "convert"):
        x = outside.operand(x, 0)
    return _constant(x) or 0


def _constant(x: Instruction) -> int | None:
    """The value of an integer constant; None if it is none."""
    is_number = x.opcode == "constant" and re.fullmatch(r"-?\d+", x.arguments)
    return int(x.arguments) if is_number else None
