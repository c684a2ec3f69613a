"""The settings that programs of a run depend on, for a file of executables."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax

from rmas_jax.config import RunConfig
from rmas_jax.config.paths import without_folders
from rmas_jax.runs.folder import WITHOUT_EFFECT, config_tree
from rmas_jax.runs.resources import with_mesh

# Settings on which no program depends, by section; the mesh is compared by its sizes.
FREE = {
    "": ("name", "output_dir", "seed"),
    "system": ("date",),
    "evaluation": ("seeds",),
    "runtime": WITHOUT_EFFECT,
}


def made_for(
    config: RunConfig, mesh: Mapping[str, int | None], device: jax.Device
) -> dict[str, Any]:
    """The settings of a run's programs, as values of JSON.

    Args:
      config: of the run.
      mesh: axis -> devices.
      device: one of them.
    """
    tree = without_folders(config_tree(config))
    for section, names in FREE.items():
        for name in names:
            del (tree[section] if section else tree)[name]
    # JAX's version is that of the compiler, except for TPUs.
    compiler = {"libtpu": _libtpu()} if device.platform == "tpu" else {}
    return {"devices": device.device_kind, **compiler, "mesh": dict(mesh), **tree}


def made_for_here(config: RunConfig) -> dict[str, Any]:
    """The same for the devices of this process, or of all that run together.

    Raises:
      ConfigError: their number is no multiple of the mesh's sizes.
    """
    config = with_mesh(config)
    return made_for(config, dataclasses.asdict(config.runtime.mesh), jax.devices()[0])


def _libtpu() -> str | None:
    try:
        return metadata.version("libtpu")
    except metadata.PackageNotFoundError:  # it came with the machine
        return None
