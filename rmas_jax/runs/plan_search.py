"""Ranks meshes and batch sizes of a run on a slice, by the throughput of its compiled programs."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

import jax

from rmas_jax.config import RunConfig
from rmas_jax.config.sections import MeshConfig
from rmas_jax.planning.chips import Slice
from rmas_jax.runs.plan import RunPlan, plan_run
from rmas_jax.runs.plan_inputs import Widths
from rmas_jax.sharding import MESH_AXES, make_mesh

SCALES = (1, 2, 4)  # of the configured batch sizes


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
    """A mesh and batch sizes, and their plan."""

    sizes: tuple[int, int, int]  # of the mesh axes
    scale: int  # of the configured batch sizes
    plan: RunPlan

    @property
    def items_per_second(self) -> float:
        """Of training, or of answers where nothing is trained; 0 where a program does not fit."""
        plan = self.plan
        assert plan.wanted is not None  # a search is for a slice
        chip, dtype = plan.wanted.chip, plan.inputs.config.runtime.dtype
        if any(program.total_memory > chip.memory for program in plan.programs):
            return 0.0
        trained = [program for program in plan.programs if program.runs]
        counted = trained or [program for program in plan.programs if program.is_answer]
        each = sum(program.seconds(plan.wanted, dtype=dtype) / program.items for program in counted)
        return 1 / each if each else 0.0


def candidates(config: RunConfig, devices: int) -> Iterator[tuple[tuple[int, int, int], int]]:
    """Yields mesh sizes and scales of batch sizes whose rows divide over the mesh.

    Those that split single weights least come first.
    """
    batches = [phase.batch_size // phase.accumulation for phase in config.outer.phases]
    rows = math.gcd(*batches) if batches else config.evaluation.batch_size
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    meshes = [
        (data, devices // (data * model), model)
        for model, data in itertools.product(divisors, reversed(divisors))
        if devices % (data * model) == 0
    ]
    for scale in SCALES:
        for sizes in meshes:
            if (rows * scale) % (sizes[0] * sizes[1]) == 0:
                yield sizes, scale


def search(
    config: RunConfig,
    devices: Sequence[jax.Device],
    wanted: Slice,
    *,
    most: int,
    widths: Widths | None = None,
) -> list[Candidate]:
    """Plans at most so many candidates; the one with most items per second comes first."""
    found = []
    for sizes, scale in itertools.islice(candidates(config, wanted.devices), most):
        mesh = make_mesh(*sizes, devices=devices)
        changed = changed_config(config, sizes, scale)
        plan = plan_run(changed, mesh=mesh, wanted=wanted, widths=widths, only_throughput=True)
        found.append(Candidate(sizes, scale, plan))
    return sorted(found, key=lambda candidate: -candidate.items_per_second)


def changed_config(config: RunConfig, sizes: tuple[int, int, int], scale: int) -> RunConfig:
    """The configuration with a mesh and other batch sizes."""
    phases = tuple(
        dataclasses.replace(phase, batch_size=scale * phase.batch_size)
        for phase in config.outer.phases
    )
    mesh = MeshConfig(**dict(zip(MESH_AXES, sizes, strict=True)))
    return dataclasses.replace(
        config,
        outer=dataclasses.replace(config.outer, phases=phases),
        evaluation=dataclasses.replace(
            config.evaluation, batch_size=scale * config.evaluation.batch_size
        ),
        runtime=dataclasses.replace(config.runtime, mesh=mesh),
    )


def ranking(found: Sequence[Candidate]) -> Iterator[str]:
    """Yields a line for each candidate."""
    yield "meshes and batch sizes by estimated throughput:"
    for place, candidate in enumerate(found, 1):
        sizes = " x ".join(
            f"{axis}={size}" for axis, size in zip(MESH_AXES, candidate.sizes, strict=True)
        )
        rate = candidate.items_per_second
        said = f"{rate:.4g} items/s" if rate else "does not fit"
        yield f"  {place}. {sizes}, batches x {candidate.scale}: {said}"
