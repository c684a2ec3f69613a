"""Resources of a run beside its files: devices, the team on them, tools, the compilation cache."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from pathlib import Path

import jax
from jax.sharding import Mesh

from rmas_jax.agents.agent import Agent
from rmas_jax.agents.member import Member
from rmas_jax.config import ConfigError, RunConfig
from rmas_jax.partition import Policies
from rmas_jax.sharding import make_mesh
from rmas_jax.team import Team, load_team
from rmas_jax.team_texts import TeamTexts
from rmas_jax.tools import (
    PythonLimits,
    Toolbox,
    check_sandbox,
    open_bm25,
    open_tavily,
    read_corpus,
)
from rmas_jax.tools.search import SearchProvider

log = logging.getLogger(__name__)

# Platform -> bytes of a layer from which unrolled layers are faster, see docs/benchmarks: a step
# need not copy them, but their products wait for each other less well. Not measured on a TPU.
UNROLLED = {"cpu": 2**24, "gpu": 0, "tpu": math.inf}


def use_compilation_cache() -> None:
    """Keeps compiled programs between runs, in the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    jax.config.update("jax_compilation_cache_dir", str(cache / "rmas_jax" / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)


def build_toolbox(*, python: bool, search: str | None, tavily: bool = False) -> Toolbox | None:
    """An answerer's tools; None without any.

    Raises:
      ConfigError: the corpus cannot be read.
      SandboxError, SearchError: no safe way to run Python here, or to search the web.
    """
    if not (python or search or tavily):
        return None
    if python:
        check_sandbox()
    provider: SearchProvider | None = open_tavily() if tavily else None
    if search:
        try:
            provider = open_bm25(read_corpus(search))
        except (OSError, ValueError) as error:
            raise ConfigError(f"search: {error}") from None
    return Toolbox(python=PythonLimits() if python else None, search=provider)


def load_run_team(
    config: RunConfig,
    texts: TeamTexts | None = None,
    *,
    mesh: Mesh | None = None,
    is_abstract: bool = False,
) -> Team:
    """The team of a run; `texts` and `is_abstract` as in `load_team`.

    `mesh` holds its devices; None: those that `runtime` names.
    """
    runtime = config.runtime
    return load_team(
        config.system,
        texts=texts,
        dtype=runtime.dtype,
        mesh=mesh or mesh_of(config),
        weights=runtime.weights,
        policies=policies_of(config),
        is_abstract=is_abstract,
    )


def answering_agent(agent: Agent, config: RunConfig) -> Agent:
    """The agent as it answers in an evaluation: with the layers that `runtime.layers` names."""
    layers = config.runtime.layers
    if layers == "auto" and agent.partition.is_one_device:
        mesh = agent.partition.mesh
        device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
        is_faster = agent.layer_bytes >= UNROLLED[device.platform]
        layers = "unrolled" if is_faster and _has_room(device, agent) else "scanned"
    return agent.unrolled() if layers == "unrolled" else agent


def _has_room(device: jax.Device, agent: Agent) -> bool:
    """Whether a copy of an agent's weights leaves as much room again, where the device tells."""
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:  # a CPU
        return True
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(agent.params))
    return bool(stats["bytes_limit"] - stats.get("bytes_in_use", 0) >= 2 * size)


def answering_team(team: Team, config: RunConfig) -> Team:
    """The team as it answers in an evaluation, see `answering_agent`."""

    def answering(member: Member) -> Member:
        return dataclasses.replace(member, agent=answering_agent(member.agent, config))

    members = {role: answering(member) for role, member in team.members.items()}
    loop_lm = team.loop_lm and answering(team.loop_lm)
    return dataclasses.replace(team, members=members, loop_lm=loop_lm)


def policies_of(config: RunConfig) -> Policies:
    """How weights meet activations in a run."""
    return Policies(**dataclasses.asdict(config.runtime.policies))


def with_mesh(config: RunConfig, *, devices: int | None = None) -> RunConfig:
    """The configuration with an open size of the mesh filled in: all devices that are left.

    Args:
      config: of the run.
      devices: number of all; None: those of all processes.

    Raises:
      ConfigError: the other sizes do not divide the devices, or a batch does not divide over them.
    """
    mesh = config.runtime.mesh
    if not mesh.open_axes:
        return config
    devices = jax.device_count() if devices is None else devices
    others = math.prod(size for size in dataclasses.asdict(mesh).values() if size)
    if devices % others:
        raise ConfigError(
            f"runtime.mesh: the product of sizes must divide the {devices} devices, got {others}"
        )
    mesh = dataclasses.replace(mesh, **{mesh.open_axes[0]: devices // others})
    runtime = dataclasses.replace(config.runtime, mesh=mesh)
    config = dataclasses.replace(config, runtime=runtime)
    for field, message in config.conflicts():
        raise ConfigError(f"{field} {message}")
    return config


def mesh_of(config: RunConfig) -> Mesh:
    """The mesh of a run, without open sizes: one process may use only the first devices.

    Raises:
      ConfigError: the sizes do not fit the number of devices.
    """
    sizes, devices = dataclasses.asdict(config.runtime.mesh), jax.devices()
    needed, processes = math.prod(sizes.values()), jax.process_count()
    if needed < len(devices) and processes == 1:
        log.warning("runtime.mesh uses %d of %d devices", needed, len(devices))
        devices = devices[:needed]
    try:
        return make_mesh(**sizes, devices=devices)
    except ValueError as error:
        of = f" of all {processes} processes" if processes > 1 else ""
        raise ConfigError(f"runtime.mesh: {error}{of}") from None
