"""Ranks settings of a run on a slice by the throughput of its compiled programs.

Settings are the mesh, the batch sizes, the policies and remat: see `candidates`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax

from rmas_jax.config import RunConfig
from rmas_jax.config.sections import MeshConfig, PolicyConfig
from rmas_jax.partition import POLICIES
from rmas_jax.planning.chips import Slice
from rmas_jax.runs.plan import RunPlan, plan_run
from rmas_jax.runs.plan_inputs import Widths
from rmas_jax.sharding import MESH_AXES, make_mesh

SCALES = (1, 2, 4)  # of the configured batch sizes


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a run that a search varies."""

    mesh: tuple[int, int, int]  # sizes of the mesh axes
    scale: int  # of the configured batch sizes
    policies: PolicyConfig
    remat: tuple[bool, ...]  # of each phase

    def __str__(self) -> str:
        sizes = " x ".join(f"{a}={n}" for a, n in zip(MESH_AXES, self.mesh, strict=True))
        policies = dataclasses.asdict(self.policies)
        parts = [sizes, f"batches x {self.scale}"]
        parts += [f"{phase}: {policy}" for phase, policy in policies.items()]
        parts += [f"remat: {', '.join(map(str, self.remat)).lower()}"] if self.remat else []
        return "; ".join(parts)


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
    """Settings, and the plan of a run with them."""

    settings: Settings
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


def candidates(config: RunConfig, devices: int) -> Iterator[Settings]:
    """Yields settings whose rows divide over the mesh.

    First come all meshes with all else as configured, those that split single weights least before
    the others. Then one thing changes at a time: remat, the policy of a phase where the mesh splits
    weights, the batch sizes.
    """
    batches = [phase.batch_size // phase.accumulation for phase in config.outer.phases]
    rows = math.gcd(*batches) if batches else config.evaluation.batch_size
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    meshes = [
        (data, devices // (data * model), model)
        for model, data in itertools.product(divisors, reversed(divisors))
        if devices % (data * model) == 0
    ]
    own = config.runtime.policies
    remat = tuple(phase.remat for phase in config.outer.phases)
    other_remat = [tuple(not x for x in remat)] if remat else []
    other_policies = [
        dataclasses.replace(own, **{field.name: policy})
        for field in dataclasses.fields(own)
        for policy in POLICIES
        if policy != getattr(own, field.name)
    ]
    changes: list[tuple[int, PolicyConfig, tuple[bool, ...]]] = [
        (1, own, remat),
        *((1, own, other) for other in other_remat),
        *((1, other, remat) for other in other_policies),
        *((scale, own, remat) for scale in SCALES[1:]),
    ]
    for scale, policies, remat_ in changes:
        for mesh in meshes:
            divides = (rows * scale) % (mesh[0] * mesh[1]) == 0
            if divides and (policies == own or mesh[1] > 1):
                yield Settings(mesh, scale, policies, remat_)


def search(
    config: RunConfig,
    devices: Sequence[jax.Device],
    wanted: Slice,
    *,
    most: int,
    widths: Widths | None = None,
    cache: str | Path | None = None,
) -> list[Candidate]:
    """Plans at most so many candidates; the one with most items per second comes first."""
    found = []
    for settings in itertools.islice(candidates(config, wanted.devices), most):
        plan = plan_run(
            changed_config(config, settings),
            mesh=make_mesh(*settings.mesh, devices=devices),
            wanted=wanted,
            widths=widths,
            only_throughput=True,
            cache=cache,
        )
        found.append(Candidate(settings, plan))
    return sorted(found, key=lambda candidate: -candidate.items_per_second)


def changed_config(config: RunConfig, settings: Settings) -> RunConfig:
    """The configuration with these settings."""
    scale = settings.scale
    phases = tuple(
        dataclasses.replace(phase, batch_size=scale * phase.batch_size, remat=remat)
        for phase, remat in zip(config.outer.phases, settings.remat, strict=True)
    )
    return dataclasses.replace(
        config,
        outer=dataclasses.replace(config.outer, phases=phases),
        evaluation=dataclasses.replace(
            config.evaluation, batch_size=scale * config.evaluation.batch_size
        ),
        runtime=dataclasses.replace(
            config.runtime,
            mesh=MeshConfig(**dict(zip(MESH_AXES, settings.mesh, strict=True))),
            policies=settings.policies,
        ),
    )


def ranking(found: Sequence[Candidate]) -> Iterator[str]:
    """Yields a line for each candidate."""
    yield "settings by estimated throughput:"
    for place, candidate in enumerate(found, 1):
        rate = candidate.items_per_second
        said = f"{rate:.4g} items/s" if rate else "does not fit"
        yield f"  {place}. {said}: {candidate.settings}"
