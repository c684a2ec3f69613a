"""Reads what a compiler dumps of a program before it makes machine code: HLO and its buffers.

allocation 1: size 1048576, page 0, parameter 0, ...         an argument
allocation 2: size 393216, page 0, parameter 1, ... maybe-live-out:    one that becomes a result
allocation 72: size 512, page 0, maybe-live-out:             a result
allocation 88: size 2507264, page 0, preallocated-temp:      temporaries
allocation 89: size 27394048, color 1, page 0, ...           not in the main memory
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from rmas_jax.planning.hlo_text import Module, Shape, parse, shapes_of

ASSIGNMENT = b"BufferAssignment:"
PROGRAM = re.compile(rb"HloModule [^\n]*\bis_scheduled=true\b")
HEAD = 4096  # bytes of a file that say what it is
ALLOCATION = re.compile(r"^allocation \d+: size (\d+),(?! color)(.*)$", re.MULTILINE)
RESULTS = re.compile(r"entry_computation_layout=\{\(.*?\)->(.*?)\}(?:, \w+=|$)")
# Machine code is not made. This allowance covers each of 75 programs that were compiled for v5e,
# and makes the memory of a training step 1 to 3 % larger than it is.
CODE_BYTES = 2 * 2**20
CODE_BYTES_EACH = 40 * 2**10  # of an instruction that runs by itself
RESERVED = 16 * 2**10  # bytes beside the temporaries of every program, or up to 512 less
WITHOUT_CODE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}


class Dump(NamedTuple):
    """What a compiler said of a program."""

    text: str  # HLO
    sizes: Mapping[str, int]  # bytes on each device, by `compiling.SIZES`
    results: tuple[Shape, ...]  # on each device


def read_dump(folder: Path) -> Dump | None:
    """The last program in a folder of dumps; None while it is not whole.

    Files are found by their content: the assignment of buffers, and the scheduled program that
    is written after it.
    """
    files = sorted(folder.glob("*.txt"), key=lambda path: path.stat().st_mtime_ns)
    heads = [_head(path) for path in files]
    assigned = [place for place, head in enumerate(heads) if head.startswith(ASSIGNMENT)]
    if not assigned:
        return None
    for place in range(assigned[-1] + 1, len(files)):
        if PROGRAM.match(heads[place]):
            text = files[place].read_text()
            if _is_whole(text):
                return dump_of(text, files[assigned[-1]].read_text())
    return None


def dump_of(text: str, assignment: str) -> Dump:
    """The dump of a program with this HLO and this assignment of its buffers."""
    header = text[: text.index("\n")]
    found = RESULTS.search(header)
    if found is None:
        raise ValueError(f"text must name its entry_computation_layout, got {header[:200]!r}")
    sizes = _sizes(assignment) | {"generated_code": code_bytes(parse(text))}
    return Dump(text, sizes, shapes_of(found[1]))


def code_bytes(module: Module) -> int:
    """At most the bytes of a program's machine code; see `CODE_BYTES`."""
    return CODE_BYTES + CODE_BYTES_EACH * sum(1 for _ in _running(module))


def _running(module: Module) -> Iterator[str]:
    """Yields the names of instructions that run by themselves, not as a part of a fusion."""
    fused = {
        name
        for computation in module.computations.values()
        for x in computation.instructions.values()
        if x.opcode == "fusion"
        for name in x.called("calls")
    }
    for computation in module.computations.values():
        if computation.name not in fused:
            for x in computation.instructions.values():
                if x.opcode not in WITHOUT_CODE:
                    yield x.name


def _sizes(assignment: str) -> dict[str, int]:
    """Bytes of the main memory by kind."""
    sizes = dict.fromkeys(("argument", "output", "alias", "temp"), 0)
    for found in ALLOCATION.finditer(assignment):
        size, kind = int(found[1]), found[2]
        is_argument, is_result = " parameter " in kind, "maybe-live-out" in kind
        sizes["argument"] += size * is_argument
        sizes["output"] += size * is_result
        sizes["alias"] += size * (is_argument and is_result)
        sizes["temp"] += size * ("preallocated-temp" in kind)
    return sizes | {"temp": sizes["temp"] + RESERVED}


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD)


def _is_whole(text: str) -> bool:
    """Whether the entry computation, the last one, is closed."""
    entry = text.rfind("\nENTRY ")
    return entry >= 0 and "\n}" in text[entry:]
