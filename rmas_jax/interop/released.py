"""The layouts in which RecursiveMAS releases its links: role directories and outer-link ones.

    ROLE/   adapter_config.json {"adapter_type": ...}    how the inner link is built
            innerlink_config.json {"tasks": {TASK: {"adapter.pt": FILE}}}    which file, by task
            adapter.pt, or adapter(TASK).pt    the link's state dict, beside the agent's weights
    OUTER/  outerlink_config.json    "adapters", or "tasks": {TASK: {"adapters"}}: a list of
            {legacy_key, filename, adapter_type, in_dim, out_dim}
            FILE.pt    a state dict for each

Upstream keeps linear weights as [out, in]; here they are [in, out], in float32. Every tensor must
be there, of the width that the configuration says, and no other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rmas_jax.interop.torch_state import read_state, write_state
from rmas_jax.links import INNER, OUTER, LinkConfig, link_shapes
from rmas_jax.models import CheckpointError
from rmas_jax.models.hf import read_json
from rmas_jax.topology import edge_name

VARIANTS = {  # upstream's name of a link's form -> ours
    INNER: {
        "linear_adapter": "linear",
        "linear_res_adapter": "linear_res",
        "adapter": "mlp",
        "res_adapter": "mlp_res",
        "ln_res_adapter": "ln_res",
    },
    OUTER: {
        "outer_linear_adapter": "linear",
        "outer_linear_res_adapter": "linear_res",
        "outer_adapter": "mlp",
        "outer_res_adapter": "mlp_res",
        "outer_ln_adapter": "ln",
        "outer_ln_res_adapter": "ln_res",
    },
}
EDGES = {  # upstream's key of an outer link -> (sender, receiver)
    "outer_12": ("planner", "critic"),
    "outer_23": ("critic", "solver"),
    "outer_31": ("solver", "planner"),
    "outer_1s": ("math", "summarizer"),
    "outer_2s": ("code", "summarizer"),
    "outer_3s": ("science", "summarizer"),
    "outer_s1": ("summarizer", "math"),
    "outer_s2": ("summarizer", "code"),
    "outer_s3": ("summarizer", "science"),
    "outer_el": ("expert", "learner"),
    "outer_le": ("learner", "expert"),
    "outer_rt": ("reflector", "toolcaller"),
    "outer_tr": ("toolcaller", "reflector"),
}
KEYS = {edge_name(edge): key for key, edge in EDGES.items()}
ADAPTER, ADAPTER_CONFIG = "adapter.pt", "adapter_config.json"
INNER_CONFIG, OUTER_CONFIG = "innerlink_config.json", "outerlink_config.json"
STORED = {"kernel": "weight", "scale": "weight", "bias": "bias"}  # our name of an array -> torch's

Link = tuple[LinkConfig, Any]  # form and parameters


def link_from_state(config: LinkConfig, state: Mapping[str, np.ndarray], *, source: str) -> Any:
    """Parameters of a link, float32, from a state dict.

    Args:
      config: the link.
      state: torch's names -> arrays, linear weights [out, in].
      source: file named in errors.

    Raises:
      CheckpointError: lists every tensor that is missing, unexpected or of another shape.
    """
    wanted = {
        f"{module}.{STORED[name]}": (module, name, shape[::-1])  # a vector is its own reverse
        for module, arrays in link_shapes(config).items()
        for name, shape in arrays.items()
    }
    problems = [f"{name} is missing" for name in wanted if name not in state]
    problems += [f"{name} is unexpected" for name in state if name not in wanted]
    problems += [
        f"{name} has shape {state[name].shape}, expected {shape}"
        for name, (_, _, shape) in wanted.items()
        if name in state and state[name].shape != shape
    ]
    if problems:
        raise CheckpointError(f"{source}: not {_described(config)}: {'; '.join(problems)}")
    params: dict[str, dict[str, jax.Array]] = {}
    for stored, (module, name, _) in wanted.items():
        params.setdefault(module, {})[name] = jnp.asarray(state[stored].astype(np.float32).T)
    return params


def state_from_link(config: LinkConfig, params: Any) -> dict[str, np.ndarray]:
    """The inverse of `link_from_state`."""
    return {
        f"{module}.{STORED[name]}": np.asarray(params[module][name]).T
        for module, arrays in link_shapes(config).items()
        for name in arrays
    }


def read_inner_link(directory: str | Path, width: int, *, task: str | None = None) -> Link:
    """The inner link in a role's directory.

    Args:
      directory: of the role; the agent's weights may lie there too.
      width: D of the agent.
      task: "math" or "code" where the release has a link for each.

    Raises:
      CheckpointError: no link for this task, or one that does not fit.
    """
    directory = Path(directory)
    tasks = _if_there(directory / INNER_CONFIG).get("tasks", {})
    names = [tasks[task].get(ADAPTER, ADAPTER)] if task in tasks else []
    names += [f"adapter({task}).pt"] if task else []
    names += [ADAPTER]
    found = next((name for name in names if _inside(directory, name).is_file()), None)
    if found is None:
        raise CheckpointError(f"{directory}: no inner link for task {task!r}; looked for {names}")
    adapter_type = _if_there(directory / ADAPTER_CONFIG).get("adapter_type", "ln_res_adapter")
    variant = _variant(INNER, adapter_type, directory / ADAPTER_CONFIG)
    config = LinkConfig(INNER, variant, width, width)
    path = _inside(directory, found)
    return config, link_from_state(config, read_state(path), source=str(path))


def read_outer_links(directory: str | Path, *, task: str | None = None) -> dict[str, Link]:
    """All outer links of a system: edge name -> form and parameters.

    Args:
      directory: holds `outerlink_config.json`, in its flat form or by task.
      task: which task's links, where the configuration has several.

    Raises:
      CheckpointError: a file, key or type that is not known, or a link that does not fit.
    """
    directory = Path(directory)
    path = directory / OUTER_CONFIG
    described = read_json(path)
    if "tasks" in described:
        if task not in described["tasks"]:
            raise CheckpointError(f"{path}: task {task!r}; it has {sorted(described['tasks'])}")
        described = described["tasks"][task]
    entries = described.get("adapters")
    if not isinstance(entries, list) or not entries:
        raise CheckpointError(f"{path}: lists no adapters")
    fields = ("legacy_key", "filename", "adapter_type", "in_dim", "out_dim")
    links = {}
    for entry in entries:
        if missing := [field for field in fields if field not in entry]:
            raise CheckpointError(f"{path}: an adapter lacks {missing}")
        key, name, adapter_type, in_width, out_width = (entry[field] for field in fields)
        if key not in EDGES:
            raise CheckpointError(f"{path}: legacy_key {key!r}; allowed are {sorted(EDGES)}")
        config = LinkConfig(OUTER, _variant(OUTER, adapter_type, path), in_width, out_width)
        file = _inside(directory, name)
        links[edge_name(EDGES[key])] = (
            config,
            link_from_state(config, read_state(file), source=str(file)),
        )
    return links


def write_inner_link(directory: str | Path, link: Link, *, task: str | None = None) -> None:
    """Writes what `read_inner_link` and upstream read."""
    directory, (config, params) = Path(directory), link
    directory.mkdir(parents=True, exist_ok=True)
    name = f"adapter({task}).pt" if task else ADAPTER
    write_state(directory / name, state_from_link(config, params))
    _write_json(directory / ADAPTER_CONFIG, {"adapter_type": _upstream_name(config)})
    if task:
        described = _if_there(directory / INNER_CONFIG)
        described.setdefault("tasks", {})[task] = {ADAPTER: name}
        _write_json(directory / INNER_CONFIG, described)


def write_outer_links(directory: str | Path, links: Mapping[str, Link]) -> None:
    """Writes what `read_outer_links` and upstream read, in the flat form.

    Raises:
      CheckpointError: an edge that upstream has no key for.
    """
    directory = Path(directory)
    if unknown := sorted(set(links) - set(KEYS)):
        raise CheckpointError(f"{directory}: upstream has no key for {unknown}; it has {[*KEYS]}")
    directory.mkdir(parents=True, exist_ok=True)
    entries = []
    for edge, (config, params) in links.items():
        name = f"{KEYS[edge]}.pt"
        write_state(directory / name, state_from_link(config, params))
        entries.append(
            {
                "legacy_key": KEYS[edge],
                "filename": name,
                "adapter_type": _upstream_name(config),
                "in_dim": config.in_width,
                "out_dim": config.out_width,
            }
        )
    _write_json(directory / OUTER_CONFIG, {"format_version": 1, "adapters": entries})


def _described(config: LinkConfig) -> str:
    return f"an {config.kind} link {config.variant} {config.in_width} -> {config.out_width}"


def _upstream_name(config: LinkConfig) -> str:
    return next(name for name, v in VARIANTS[config.kind].items() if v == config.variant)


def _variant(kind: str, name: str, path: Path) -> str:
    if name not in VARIANTS[kind]:
        raise CheckpointError(f"{path}: adapter_type {name!r}; allowed are {[*VARIANTS[kind]]}")
    return VARIANTS[kind][name]


def _inside(directory: Path, name: str) -> Path:
    """A file of the directory; a configuration must not point elsewhere."""
    if Path(name).name != name:
        raise CheckpointError(f"{directory}: file name {name!r} leads out of the directory")
    return directory / name


def _if_there(path: Path) -> dict[str, Any]:
    """A JSON object; {} where there is no such file."""
    return read_json(path) if path.is_file() else {}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
