"""All links of a system, from a release or a run's file, checked against the system.

The files of a run are safetensors with names such as inner/planner/proj1/kernel and
outer/planner->critic/residual_proj/bias. They store no variants: tensors determine them, except
that an inner link without norms has the same tensors with and without a residual.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from rmas_jax.host.errors import clipped, listed, shown
from rmas_jax.host.inputs import local_input
from rmas_jax.interop.link_files import read_arrays
from rmas_jax.interop.released import (
    EDGES,
    KEYS,
    Link,
    in_words,
    read_inner_link,
    read_outer_links,
    write_inner_link,
    write_outer_links,
)
from rmas_jax.links import INNER, OUTER, VARIANTS, LinkConfig, Links, link_shapes
from rmas_jax.models import CheckpointError
from rmas_jax.topology import edge_name

NAME = re.compile(rf"({INNER}|{OUTER})/([^/]+)/(\w+)/(\w+)")  # kind, role or edge, module, array
OUTER_FOLDER = "outer"  # of a release that we write, beside one folder per role

FoundLinks = Mapping[str, Mapping[str, Link]]  # "inner" and "outer" -> role or edge name -> link
LinkConfigs = Mapping[str, Mapping[str, LinkConfig]]  # "inner" and "outer" -> name -> configuration


def read_released_links(
    outer: str | Path, roles: Mapping[str, str | Path], *, task: str | None = None
) -> FoundLinks:
    """The links of a released system.

    Args:
      outer: directory, its URL, or hub id of its outer links.
      roles: role -> directory or hub id of its agent, which holds its inner link.
      task: "math" or "code", if the release has links for each.

    Raises:
      CheckpointError: lists all unreadable links.
    """
    links: dict[str, dict[str, Link]] = {INNER: {}, OUTER: {}}
    problems = []
    for role, source in roles.items():
        try:
            links[INNER][role] = read_inner_link(source, task=task)
        except CheckpointError as error:
            problems.append(str(error))
    try:
        links[OUTER] = read_outer_links(local_input(outer), task=task)
    except CheckpointError as error:
        problems.append(str(error))
    if problems:
        raise CheckpointError("links that cannot be read:\n  " + "\n  ".join(listed(problems)))
    return links


def read_links(path: str | Path, *, inner_variant: str | None = None) -> FoundLinks:
    """The links in a file of a run, with the variants that their tensors determine.

    Args:
      path: a `.safetensors` file of `save_links`.
      inner_variant: variant of the inner links, where the tensors fit several.

    Raises:
      CheckpointError: the file is damaged, holds arrays that are no links or not finite, or its
        variants are ambiguous.
    """
    params: dict[tuple[str, str], dict[str, dict[str, np.ndarray]]] = {}
    for name, array in read_arrays(path).items():
        if (parts := NAME.fullmatch(name)) is None:
            raise CheckpointError(
                f"{path}: names must be of a system's links, such as inner/planner/proj1/kernel, "
                f"got {shown(name)}"
            )
        kind, owner, module, part = parts.groups()
        params.setdefault((kind, owner), {}).setdefault(module, {})[part] = array
    links: dict[str, dict[str, Link]] = {INNER: {}, OUTER: {}}
    for (kind, owner), arrays in params.items():
        fitting = _fitting_configs(kind, arrays)
        if not fitting:
            raise CheckpointError(
                f"{path}: the tensors of {clipped(f'{kind}/{owner}', 100)} must be those of a link "
                f"variant ({', '.join(VARIANTS[kind])}), got other names or shapes"
            )
        if len(fitting) > 1 and inner_variant is None:
            raise CheckpointError(
                f"{path}: the variant of inner links must be given: the tensors of {kind}/{owner} "
                f"fit {' and '.join(config.variant for config in fitting)}"
            )
        config = next((c for c in fitting if c.variant == inner_variant), fitting[0])
        links[kind][owner] = config, jax.device_put(arrays)
    return links


def _fitting_configs(kind: str, arrays: Mapping[str, Mapping[str, np.ndarray]]) -> list[LinkConfig]:
    """Configurations whose parameters have these names and shapes."""
    shapes = jax.tree.map(np.shape, arrays)
    try:
        in_width, _ = shapes["proj1"]["kernel"]
        (out_width,) = shapes.get("proj2", shapes["proj1"])["bias"]
        configs = [LinkConfig(kind, variant, in_width, out_width) for variant in VARIANTS[kind]]
    except (KeyError, ValueError):  # of another shape, or an inner link that changes its width
        return []
    return [config for config in configs if link_shapes(config) == shapes]


def links_that_fit(links: FoundLinks, configs: LinkConfigs, *, source: str) -> Links:
    """The parameters of links that match the needed ones exactly.

    Args:
      links: the found links.
      configs: of the needed links.
      source: named in errors.

    Raises:
      CheckpointError: lists all links that are missing, unneeded, or of another variant or width.
    """
    problems = []
    for kind, needed in configs.items():
        found = {name: config for name, (config, _) in links[kind].items()}
        problems += [f"{kind} link {name} is missing" for name in needed if name not in found]
        problems += [
            f"{kind} links must be {', '.join(needed) or 'none'}, got {name} too"
            for name in found
            if name not in needed
        ]
        problems += [
            f"{kind} link {name} must be {in_words(config)}, got {in_words(found[name])}"
            for name, config in needed.items()
            if name in found and found[name] != config
        ]
    if problems:
        raise CheckpointError(
            f"{source}: links that do not fit:\n  " + "\n  ".join(listed(problems))
        )
    return Links(
        **{
            kind: {name: links[kind][name][1] for name in needed}
            for kind, needed in configs.items()
        }
    )


def released_configs(links: FoundLinks) -> LinkConfigs:
    """The link configurations of a whole released system.

    Inner links determine roles and widths; every edge of upstream between these roles needs an
    outer link of their widths.

    Raises:
      CheckpointError: upstream has no key for a link's edge.
    """
    inner = {role: config for role, (config, _) in links[INNER].items()}
    if unknown := sorted(set(links[OUTER]) - set(KEYS)):
        raise CheckpointError(f"edges must be among upstream's, {[*KEYS]}, got {unknown}")
    outer = {}
    for sender, receiver in EDGES.values():
        if sender in inner and receiver in inner:
            edge = edge_name((sender, receiver))
            variant = links[OUTER][edge][0].variant if edge in links[OUTER] else "ln_res"
            widths = inner[sender].out_width, inner[receiver].in_width
            outer[edge] = LinkConfig(OUTER, variant, *widths)
    return {INNER: inner, OUTER: outer}


def write_released_links(directory: str | Path, links: FoundLinks) -> None:
    """Writes the folders that `read_released_links` and upstream read: ROLE/ per role, and outer/.

    Raises:
      CheckpointError: the links are not those of a whole released system; nothing is written.
    """
    directory = Path(directory)
    links_that_fit(links, released_configs(links), source=str(directory))
    for role, link in links[INNER].items():
        write_inner_link(directory / role, link)
    write_outer_links(directory / OUTER_FOLDER, links[OUTER])
