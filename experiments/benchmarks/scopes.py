"""Where a program's FLOPs, bytes and seconds are, by the scopes that the package names.

think/read    latent steps: the decoder's layers
think/link    latent steps: the inner link
read          prompts
speak/unembed tokens: their logits
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from experiments.benchmarks.harness import Kernel
from rmas_jax.planning.bounds import Bound
from rmas_jax.planning.chips import Chip
from rmas_jax.planning.hlo import program_cost
from rmas_jax.planning.hlo_text import Instruction, parse

SCOPES = {"embed", "read", "unembed", "think", "speak", "link", "read_packed"}
OTHER = "(none)"
LOOPS = {"while", "call", "conditional"}  # their instructions are kernels themselves


class Scope(NamedTuple):
    """What one scope does, and how long."""

    name: str
    flops: float
    bytes: float
    seconds: float  # of its kernels, on all lines of the profile together


def scope_of(instruction: Instruction) -> str:
    """The scopes that an instruction was traced in, the outermost first."""
    name = instruction.attribute(r'op_name="([^"]*)"') or ""
    return "/".join(part for part in re.split(r"[/()]", name) if part in SCOPES) or OTHER


def by_scope(text: str, kernels: Iterable[Kernel], *, trips: int) -> list[Scope]:
    """The scopes of a program, those with most seconds, then bytes, first.

    Args:
      text: of the compiled program.
      kernels: of its profile; none where there is none.
      trips: runs of a loop whose number is data, such as that of rounds or tokens.
    """
    computations = parse(text).computations
    instructions = {x.name: x for of in computations.values() for x in of.instructions.values()}
    scopes = {name: scope_of(x) for name, x in instructions.items()}
    for name, x in instructions.items():  # the compiler's own fusions have no name
        for inside in x.called("calls") if scopes[name] == OTHER else ():
            found = map(scope_of, computations[inside].instructions.values())
            scopes[name] = next((of for of in found if of != OTHER), OTHER)
    seconds: dict[str, float] = defaultdict(float)
    for kernel in kernels:
        found = instructions.get(kernel.name)
        if found and found.opcode not in LOOPS:
            seconds[scopes[kernel.name]] += kernel.seconds
    out = []
    for scope in set(scopes.values()):
        cost = program_cost(
            text, unknown_trips=trips, counts=functools.partial(_is_in, scopes, scope)
        )
        out.append(Scope(scope, cost.flops, cost.memory_bytes, seconds[scope]))
    return sorted(out, key=lambda scope: (-scope.seconds, -scope.bytes))


def _is_in(scopes: dict[str, str], scope: str, instruction: Instruction) -> bool:
    return scopes[instruction.name] == scope


def table(scopes: Iterable[Scope], bound: Bound, chip: Chip, dtype: str) -> list[str]:
    """The lines of a report: each scope at the rates of the device, and the program's floor."""
    lines = [f"{'scope':24s} {'GFLOP':>10s} {'GB':>9s} {'at best ms':>11s} {'kernels ms':>11s}"]
    for of in scopes:
        least = max(of.flops / chip.peak(dtype), of.bytes / chip.bandwidth)
        lines.append(
            f"{of.name:24s} {of.flops / 1e9:10.3f} {of.bytes / 1e9:9.3f} {1e3 * least:11.3f} "
            f"{1e3 * of.seconds:11.3f}"
        )
    floor = bound.seconds(chip, 1, dtype=dtype)
    return [*lines, f"floor of the program: {1e3 * floor:.3f} ms, {bound.flops / 1e9:.3f} GFLOP"]
