"""Plans of programs as lines of text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rmas_jax.planning.chips import Slice, chips, price_list, roofline
from rmas_jax.planning.programs import ProgramPlan

GIBIBYTE = 2**30
MEBIBYTE = 2**20
GROW_WITH_BATCH = ("inputs", "outputs", "caches", "temporaries")


def plan_table(
    programs: Sequence[ProgramPlan], wanted: Slice | None, *, dtype: str, shards: int
) -> Iterator[str]:
    """Yields the memory of every program on each device and, on a known slice, its least times.

    Args:
      programs: in their order.
      wanted: the slice; None: unknown.
      dtype: of products.
      shards: parts into which a batch is split, each on other devices.
    """
    yield "memory per device, by the compiler, in programs for their longest batches:"
    for plan in programs:
        parts = ", ".join(f"{name} {_size(size)}" for name, size in plan.memory.items())
        yield f"  {plan.name}, {plan.items:,} items at once: {_size(plan.total_memory)}: {parts}"
    if wanted is None:
        return
    yield from _fits(programs, wanted, shards)
    yield f"least times on {wanted}, estimated from the compiled programs:"
    header = (
        "program", "TFLOP", "HBM GB", "links GB", "collectives",
        "compute ms", "HBM ms", "links ms", "total ms", "bound by", "x bound", "items/s",
    )  # fmt: skip
    yield from _aligned([header, *(_times(plan, wanted, dtype) for plan in programs)])
    yield from _costs(programs, wanted, dtype)


def _times(plan: ProgramPlan, wanted: Slice, dtype: str) -> tuple[str, ...]:
    if plan.cost is None:
        return (plan.name, *["-"] * 11)
    cost, line = plan.cost, roofline(plan.cost, wanted.chip, dtype=dtype)
    by_kind = " ".join(f"{count:,} {kind}" for kind, (count, _) in cost.by_kind.items())
    distance = plan.distance(wanted, dtype=dtype)
    return (
        plan.name,
        f"{cost.flops / 1e12:.4g}",
        f"{cost.memory_bytes / 1e9:.4g}",
        f"{cost.link_bytes / 1e9:.4g}",
        by_kind or "none",
        f"{line.compute_s * 1e3:.4g}",
        f"{line.memory_s * 1e3:.4g}",
        f"{(line.link_s + line.latency_s) * 1e3:.4g}",
        f"{line.seconds * 1e3:.4g}",
        line.bound,
        "-" if distance is None else f"{distance:.2f}",
        f"{plan.items / line.seconds:.4g}" if line.seconds else "-",
    )


def _fits(programs: Sequence[ProgramPlan], wanted: Slice, shards: int) -> Iterator[str]:
    capacity = wanted.chip.memory
    for plan in programs:
        if plan.total_memory > capacity:
            yield (
                f"{plan.name} does not fit: {_size(plan.total_memory)} of "
                f"{_size(int(capacity))}. {remedy(plan, wanted, shards)}"
            )


def remedy(plan: ProgramPlan, wanted: Slice, shards: int) -> str:
    """What would make a program fit whose batch is split into so many parts."""
    capacity, memory = wanted.chip.memory, plan.memory
    by_batch = sum(memory.get(name, 0) for name in GROW_WITH_BATCH)
    fixed = plan.total_memory - by_batch
    largest = max(memory, key=lambda name: memory[name])
    larger = [name for name, chip in chips().items() if chip.memory >= plan.total_memory]
    other = f", or devices with more memory ({', '.join(larger)})" if larger else ""
    if fixed >= capacity:
        times = 1 + int(fixed // capacity)
        largest = max(memory.keys() - set(GROW_WITH_BATCH), key=lambda name: memory[name])
        return (
            f"{largest} take most, whatever the batch: runtime.mesh must split them over fsdp or "
            f"model, at least {times} times as far{other}"
        )
    rows = max(1, plan.items // shards)
    times = by_batch / (capacity - fixed)
    parts = next((n for n in range(1, rows + 1) if rows % n == 0 and n >= times), None)
    if parts is None:
        split = math.ceil(times / rows)
        return (
            f"{largest} take most, of one item a device: runtime.mesh.model={split} or more, fewer "
            f"latent steps or rounds, shorter texts{other} would fit"
        )
    return (
        f"{largest} take most: {rows // parts:,} items a device at once (accumulation={parts} where"
        f" it trains, a smaller evaluation.batch_size where it answers), {parts} times as many "
        f"devices{other} would fit"
    )


def _costs(programs: Sequence[ProgramPlan], wanted: Slice, dtype: str) -> Iterator[str]:
    """Yields hours and dollars of the training, and of a thousand answers."""
    price, known = wanted.chip.price, [plan for plan in programs if plan.cost is not None]
    seconds = {plan.name: plan.seconds(wanted, dtype=dtype) for plan in known}
    trained = sum(plan.runs * seconds[plan.name] for plan in known if plan.runs)
    answers = [plan for plan in known if plan.is_answer]
    per_thousand = sum(1000 / plan.items * seconds[plan.name] for plan in answers)
    for what, needed in (("training", trained), ("1,000 answers", per_thousand)):
        if needed:
            hours = needed / 3600
            dollars = "price unknown"
            if price is not None:
                dollars = f"${hours * wanted.chips * price:,.2f}"
            yield f"{what}: at least {hours:.3g} hours of {wanted.chips} chips, {dollars}"
    if price is not None:
        listed = price_list()
        yield f"at ${price:.2f} a chip-hour, of {listed['date']}: {listed['source']}"


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        first, *rest = (cell.ljust(size) for cell, size in zip(row, sizes, strict=True))
        yield "  " + "  ".join((first, *rest)).rstrip()


def _size(size: int) -> str:
    if size < GIBIBYTE // 10:
        return f"{size / MEBIBYTE:.1f} MiB"
    return f"{size / GIBIBYTE:.2f} GiB"
