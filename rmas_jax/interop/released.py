"""The layouts of released RecursiveMAS links: role directories and outer-link directories.

    ROLE/   adapter_config.json {"adapter_type": ...}    the inner link's variant
            innerlink_config.json {"tasks": {TASK: {"adapter.pt": FILE}}}    its file, by task
            adapter.pt, or adapter(TASK).pt    the link's state dict, beside the agent's weights
    OUTER/  outerlink_config.json    "adapters", or "tasks": {TASK: {"adapters"}}: a list of
            {legacy_key, filename, adapter_type, in_dim, out_dim}
            FILE.pt    a state dict for each

Either may be a directory or a hub id; only the needed files are fetched. A TASK is "math" or
"code". Upstream stores linear weights as [out, in]; here they are [in, out], in float32. The
tensors must be exactly those of the configured variant and widths.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rmas_jax.host.atomic import write_atomic
from rmas_jax.host.errors import listed, shown
from rmas_jax.interop.torch_state import read_state, write_state
from rmas_jax.links import INNER, OUTER, LinkConfig, link_shapes
from rmas_jax.models import CheckpointError
from rmas_jax.models.directories import local_directory, read_json
from rmas_jax.models.stored import as_float32
from rmas_jax.topology import edge_name

VARIANTS = {  # upstream's name of a link variant -> ours
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
MAX_NAME = 255  # bytes of a file's name on any file system
ADAPTER, ADAPTER_CONFIG = "adapter.pt", "adapter_config.json"
INNER_CONFIG, OUTER_CONFIG = "innerlink_config.json", "outerlink_config.json"
ENTRY = {"legacy_key": str, "filename": str, "adapter_type": str, "in_dim": int, "out_dim": int}
STORED = {"kernel": "weight", "scale": "weight", "bias": "bias"}  # our name of an array -> torch's

Link = tuple[LinkConfig, Any]  # configuration and parameters


def in_words(config: LinkConfig) -> str:
    """Variant and widths as text: "ln_res 2048 -> 1536"."""
    return f"{config.variant} {config.in_width} -> {config.out_width}"


def link_from_state(config: LinkConfig, state: Mapping[str, np.ndarray], *, source: str) -> Any:
    """Parameters of a link, float32, from a state dict.

    Args:
      config: the link.
      state: torch's names -> arrays, linear weights [out, in].
      source: file named in errors.

    Raises:
      CheckpointError: lists all missing, unexpected or misshapen tensors, or else all whose values
        are not finite floating-point numbers.
    """
    wanted = {
        f"{module}.{STORED[name]}": (module, name, shape[::-1])  # a vector is its own reverse
        for module, arrays in link_shapes(config).items()
        for name, shape in arrays.items()
    }
    problems = [f"{name} is missing" for name in wanted if name not in state]
    problems += [f"{name} is unexpected" for name in state if name not in wanted]
    problems += [
        f"{name} must have shape {shape}, got {state[name].shape}"
        for name, (_, _, shape) in wanted.items()
        if name in state and state[name].shape != shape
    ]
    if problems:
        raise CheckpointError(
            f"{source}: must be an {config.kind} link {in_words(config)}, got other tensors: "
            f"{'; '.join(listed(problems))}"
        )
    numbers = as_float32(state, source=source)
    params: dict[str, dict[str, jax.Array]] = {}
    for stored, (module, name, _) in wanted.items():
        params.setdefault(module, {})[name] = jnp.asarray(numbers[stored].T)
    return params


def state_from_link(config: LinkConfig, params: Any) -> dict[str, np.ndarray]:
    """The inverse of `link_from_state`."""
    return {
        f"{module}.{STORED[name]}": np.asarray(params[module][name]).T
        for module, arrays in link_shapes(config).items()
        for name in arrays
    }


def read_inner_link(source: str | Path, *, task: str | None = None) -> Link:
    """The inner link of a role, with the width of its file.

    Args:
      source: directory or hub id of the role; may hold the agent's weights too.
      task: if the release has a link for each.

    Raises:
      CheckpointError: no link for this task, or one that does not match its configuration.
    """
    directory = local_directory(source, patterns=(INNER_CONFIG, ADAPTER_CONFIG))
    tasks = _if_there(directory / INNER_CONFIG).get("tasks", {})
    if not isinstance(tasks, dict) or not all(isinstance(files, dict) for files in tasks.values()):
        raise CheckpointError(
            f"{directory / INNER_CONFIG}: tasks must be files by task, got {shown(tasks)}"
        )
    names = [tasks[task].get(ADAPTER, ADAPTER)] if task in tasks else []
    names += [f"adapter({task}).pt"] if task else []
    names += [ADAPTER]
    adapter_type = _if_there(directory / ADAPTER_CONFIG).get("adapter_type", "ln_res_adapter")
    variant = _variant(INNER, adapter_type, directory / ADAPTER_CONFIG)
    paths = _files(source, names)
    if (path := next((path for path in paths if path.exists()), None)) is None:
        raise CheckpointError(
            f"{source}: must hold an inner link for task {task!r}, one of {names}, got none"
        )
    state = read_state(path)
    width = state["proj1.bias"].size if "proj1.bias" in state else 0
    config = LinkConfig(INNER, variant, width, width)
    return config, link_from_state(config, state, source=str(path))


def read_outer_links(source: str | Path, *, task: str | None = None) -> dict[str, Link]:
    """All outer links of a release: edge name -> configuration and parameters.

    Args:
      source: directory or hub id with `outerlink_config.json`, flat or by task.
      task: if the release has links for each.

    Raises:
      CheckpointError: an unknown file, key or type, or a link that does not match its
        configuration; one error lists all unusable files.
    """
    links, problems = {}, []
    for edge, (config, path) in _outer_files(source, task).items():
        try:
            links[edge] = config, link_from_state(config, read_state(path), source=str(path))
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError("\n  ".join(listed(problems)))
    return links


def _outer_files(source: str | Path, task: str | None) -> dict[str, tuple[LinkConfig, Path]]:
    """Links according to a release's configuration: edge name -> link configuration and file."""
    path = local_directory(source, patterns=(OUTER_CONFIG,)) / OUTER_CONFIG
    described = read_json(path)
    if (tasks := described.get("tasks")) is not None:
        if not isinstance(tasks, dict) or not isinstance(tasks.get(task), dict):
            known = shown([*tasks] if isinstance(tasks, dict) else tasks)
            raise CheckpointError(f"{path}: task must be one of {known}, got {task!r}")
        described = tasks[task]
    entries = described.get("adapters")
    if not isinstance(entries, list) or not entries:
        raise CheckpointError(f"{path}: adapters must be a list of links, got {shown(entries)}")
    configs: dict[str, LinkConfig] = {}
    for entry in entries:
        values: list[Any] = [
            entry.get(field) if isinstance(entry, dict) else None for field in ENTRY
        ]
        for (field, kind), value in zip(ENTRY.items(), values, strict=True):
            if type(value) is not kind:
                raise CheckpointError(
                    f"{path}: {field} of an adapter must be {kind.__name__}, got {shown(value)}"
                )
        key, _, adapter_type, in_width, out_width = values
        if key not in EDGES:
            raise CheckpointError(
                f"{path}: legacy_key must be one of {sorted(EDGES)}, got {shown(key)}"
            )
        if (edge := edge_name(EDGES[key])) in configs:
            raise CheckpointError(f"{path}: legacy_key must be distinct, got {key!r} twice")
        configs[edge] = LinkConfig(OUTER, _variant(OUTER, adapter_type, path), in_width, out_width)
    files = _files(source, [entry["filename"] for entry in entries])
    return dict(zip(configs, zip(configs.values(), files, strict=True), strict=True))


def write_inner_link(directory: str | Path, link: Link, *, task: str | None = None) -> None:
    """Writes the files that `read_inner_link` and upstream read."""
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
    """Writes the files that `read_outer_links` and upstream read, in the flat layout.

    Raises:
      CheckpointError: upstream has no key for an edge.
    """
    directory = Path(directory)
    if unknown := sorted(set(links) - set(KEYS)):
        raise CheckpointError(f"edges must be among upstream's, {[*KEYS]}, got {unknown}")
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


def _upstream_name(config: LinkConfig) -> str:
    return next(name for name, v in VARIANTS[config.kind].items() if v == config.variant)


def _variant(kind: str, name: Any, path: Path) -> str:
    if name not in list(VARIANTS[kind]):
        raise CheckpointError(
            f"{path}: adapter_type must be one of {[*VARIANTS[kind]]}, got {shown(name)}"
        )
    return VARIANTS[kind][name]


def _files(source: str | Path, names: list[Any]) -> list[Path]:
    """Local paths of files of a directory or hub id, which names cannot leave."""
    for name in names:
        is_name = isinstance(name, str) and Path(name).name == name and name not in ("", "..")
        if not is_name or len(name.encode(errors="replace")) > MAX_NAME:
            raise CheckpointError(
                f"{source}: file names must be at most {MAX_NAME} bytes without folders, got "
                f"{shown(name)}"
            )
    directory = local_directory(source, patterns=tuple(map(glob.escape, names)))
    return [directory / name for name in names]


def _if_there(path: Path) -> dict[str, Any]:
    """A JSON object; {} if the file is missing."""
    return read_json(path) if path.exists() or path.is_symlink() else {}


def _write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=2) + "\n")
