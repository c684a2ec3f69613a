"""What the commands of `experiments` share: exit codes, errors of users, loading a run's team."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
import os
from pathlib import Path

import jax
from jax.sharding import Mesh

from rmas_jax.assembly import Team, load_team
from rmas_jax.config import ConfigError, RunConfig
from rmas_jax.data import DataError
from rmas_jax.models import CheckpointError, UnsupportedModelError
from rmas_jax.prompts import PromptError
from rmas_jax.sharding import make_mesh
from rmas_jax.tools import (
    Bm25Search,
    PythonLimits,
    SandboxError,
    SearchError,
    TavilySearch,
    Toolbox,
    check_sandbox,
    read_corpus,
)
from rmas_jax.topology import TopologyError

BAD_INPUT, DIVERGED = 2, 3  # exit codes
PREEMPTED = 75  # as sysexits.h has it: try again
BAD_INPUTS = (
    ConfigError,
    DataError,
    CheckpointError,
    UnsupportedModelError,
    PromptError,
    TopologyError,
    SandboxError,
    SearchError,
    ImportError,  # an extra that is not installed
)
log = logging.getLogger(__name__)


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--config FILE` and `--set KEY=VALUE` (as `overrides`)."""
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML file of the run")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="changes a field, for example --set system.latent_steps=6; may be repeated",
    )


def use_compilation_cache() -> None:
    """Keeps compiled programs between runs, in the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    jax.config.update("jax_compilation_cache_dir", str(cache / "rmas_jax" / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def build_toolbox(*, python: bool, search: str | None, tavily: bool = False) -> Toolbox | None:
    """The tools that are offered to an answerer; None where there are none.

    Raises:
      ConfigError: a corpus that cannot be read.
      SandboxError, SearchError: Python cannot be run safely here, or the web not be searched.
    """
    if not (python or search or tavily):
        return None
    if python:
        check_sandbox()
    provider = TavilySearch() if tavily else None
    if search:
        try:
            provider = Bm25Search(read_corpus(search))
        except (OSError, ValueError) as error:
            raise ConfigError(f"search: {error}") from None
    return Toolbox(python=PythonLimits() if python else None, search=provider)


def load_run_team(config: RunConfig) -> Team:
    """The team of a run, kept on the devices as `runtime` says."""
    runtime = config.runtime
    return load_team(
        config.system, dtype=runtime.dtype, mesh=mesh_of(config), weights=runtime.weights
    )


def mesh_of(config: RunConfig) -> Mesh:
    """The mesh of a run: it takes the first devices where it needs fewer than there are."""
    sizes, devices = dataclasses.asdict(config.runtime.mesh), jax.devices()
    needed = math.prod(sizes.values())
    if needed < len(devices):
        log.warning("runtime.mesh uses %d of %d devices", needed, len(devices))
    try:
        return make_mesh(**sizes, devices=devices[:needed])
    except ValueError as error:
        raise ConfigError(f"runtime.mesh: {error}") from None
