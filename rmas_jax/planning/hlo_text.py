"""Parses the text of compiled HLO: computations of instructions, with shapes and attributes."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

# Bits of an element. Tokens and opaque values have none.
BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}
SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[([\d,<=]*)\](\{[^}]*\})?")
HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\) -> .*\{$")
NAME = re.compile(r"%([\w.-]+)")


class Shape(NamedTuple):
    """One array."""

    dtype: str
    sizes: tuple[int, ...]
    is_on_chip: bool  # in a memory space other than the main memory, such as a TPU's VMEM

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.sizes)

    @property
    def bytes(self) -> int:
        """Bytes without padding."""
        return self.elements * bits(self.dtype) // 8


@functools.cache
def bits(dtype: str) -> int:
    """Bits of an element: of f32, bf16, s8, f8e4m3fn, ..."""
    if dtype in BITS:
        return BITS[dtype]
    if (found := re.match(r"(?:bf|f|s|u)(\d+)", dtype)) is None:
        raise ValueError(f"dtype must be one of HLO's, got {dtype!r}")
    return int(found[1])


def shapes_of(text: str) -> tuple[Shape, ...]:
    """All arrays in the text of a shape, such as those of a tuple."""
    return tuple(
        Shape(
            match[1],
            tuple(int(size.strip("<=")) for size in match[2].split(",") if size),
            re.search(r"S\([1-9]\d*\)", match[3] or "") is not None,
        )
        for match in SHAPE.finditer(text)
    )


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    shape_text: str
    arguments: str  # between the parentheses
    attributes: str  # after them
    is_root: bool

    @functools.cached_property
    def shapes(self) -> tuple[Shape, ...]:
        """Arrays of the result."""
        return shapes_of(self.shape_text)

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        """Names of instructions of the same computation."""
        return tuple(NAME.findall(self.arguments))

    @property
    def bytes(self) -> int:
        """Bytes of the result."""
        return sum(shape.bytes for shape in self.shapes)

    @property
    def main_bytes(self) -> int:
        """Bytes of the result in the main memory."""
        return sum(shape.bytes for shape in self.shapes if not shape.is_on_chip)

    def attribute(self, pattern: str) -> str | None:
        """The first group of a pattern in the attributes."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else None

    def called(self, *keys: str) -> tuple[str, ...]:
        """Names of computations in attributes such as `body=%name` or `calls={%a, %b}`."""
        names: list[str] = []
        for key in keys:
            if found := re.search(rf"\b{key}=(\{{[^}}]*\}}|%[\w.-]+)", self.attributes):
                names += NAME.findall(found[1])
        return tuple(names)


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name, in their order."""

    name: str
    instructions: Mapping[str, Instruction]

    @functools.cached_property
    def root(self) -> Instruction:
        """The result."""
        return next(x for x in self.instructions.values() if x.is_root)

    @functools.cached_property
    def parameters(self) -> Mapping[int, Instruction]:
        """Parameters by number."""
        return {int(x.arguments): x for x in self.instructions.values() if x.opcode == "parameter"}

    @functools.cached_property
    def users(self) -> Mapping[str, tuple[tuple[Instruction, int], ...]]:
        """Name -> instructions that read it, and the place among their operands."""
        found: dict[str, list[tuple[Instruction, int]]] = {}
        for instruction in self.instructions.values():
            for place, operand in enumerate(instruction.operands):
                found.setdefault(operand, []).append((instruction, place))
        return {name: tuple(users) for name, users in found.items()}

    def operand(self, instruction: Instruction, place: int) -> Instruction:
        """An operand of an instruction."""
        return self.instructions[instruction.operands[place]]


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program."""

    computations: Mapping[str, Computation]
    entry: str
    devices: int  # that it runs on


def parse(text: str) -> Module:
    """Parses the text of `compiled.as_text()`.

    Raises:
      ValueError: it has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry = name = None
    instructions: dict[str, Instruction] = {}
    for line in text.splitlines():
        if name is None:
            if header := HEADER.match(line):
                name, instructions = header[2], {}
                entry = name if header[1] else entry
        elif line.startswith("}"):
            computations[name] = Computation(name, instructions)
            name = None
        elif instruction := _instruction(line):
            instructions[instruction.name] = instruction
    if entry is None:
        raise ValueError(f"text must be compiled HLO with an ENTRY computation, got {text[:80]!r}")
    counts = re.findall(r"\bnum_(?:partitions|replicas)=(\d+)", text[: text.find("\n")])
    return Module(computations, entry, math.prod(map(int, counts)))


def _instruction(line: str) -> Instruction | None:
    left, equals, right = line.partition(" = ")
    if not equals:
        return None
    end = _closing(right, 0) if right.startswith("(") else right.index(" ")
    shape, rest = right[:end], right[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    stop = _closing(rest, len(opcode))
    label = left.strip()
    return Instruction(
        name=label.removeprefix("ROOT ").lstrip("%"),
        opcode=opcode,
        shape_text=shape,
        arguments=rest[len(opcode) + 1 : stop - 1],
        attributes=rest[stop:],
        is_root=label.startswith("ROOT "),
    )


def _closing(text: str, start: int) -> int:
    """The place behind the parenthesis that closes the one at `start`."""
    depth = 0
    for found in _parentheses(text, start):
        depth += 1 if text[found] == "(" else -1
        if depth == 0:
            return found + 1
    raise ValueError(f"parentheses must be closed, got {text[:80]!r}")


def _parentheses(text: str, start: int) -> Iterator[int]:
    return (match.start() for match in re.compile(r"[()]").finditer(text, start))
