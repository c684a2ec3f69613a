"""Releases as torch writes them: link modules and layouts, from the description of upstream's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from torch import nn

from rmas_jax.links import apply_link

EDGES = {  # topology -> upstream's key of an outer link -> sender and receiver
    "sequential": {
        "outer_12": "planner->critic",
        "outer_23": "critic->solver",
        "outer_31": "solver->planner",
    },
    "mixture": {
        "outer_1s": "math->summarizer",
        "outer_2s": "code->summarizer",
        "outer_3s": "science->summarizer",
        "outer_s1": "summarizer->math",
        "outer_s2": "summarizer->code",
        "outer_s3": "summarizer->science",
    },
    "distillation": {"outer_el": "expert->learner", "outer_le": "learner->expert"},
    "deliberation": {"outer_rt": "reflector->toolcaller", "outer_tr": "toolcaller->reflector"},
}
TASKS = {  # a link for each task, or one for all
    "sequential": ("math", "code"),
    "distillation": ("math", "code"),
    "mixture": (None,),
    "deliberation": (None,),
}


class Adapter(nn.Module):
    """Upstream's inner link in its released form."""

    def __init__(self, width: int):
        super().__init__()
        self.proj1, self.proj2 = nn.Linear(width, width), nn.Linear(width, width)
        self.pre_ln, self.post_ln = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x):
        return self.post_ln(x + self.proj2(nn.functional.gelu(self.proj1(self.pre_ln(x)))))


class CrossModelAdapter(nn.Module):
    """Upstream's outer link in its released form."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.proj1, self.proj2 = nn.Linear(width, 2 * out), nn.Linear(2 * out, out)
        self.residual_proj = nn.Linear(width, out)
        self.ln_source, self.ln_target = nn.LayerNorm(width), nn.LayerNorm(out)

    def forward(self, x):
        branch = self.proj2(nn.functional.gelu(self.proj1(self.ln_source(x))))
        return self.ln_target(branch + self.residual_proj(x))


def perturbed(module: nn.Module, seed: int = 0) -> nn.Module:
    """Norm weights and biases that are not all alike."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return module.requires_grad_(False)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def save(module: nn.Module, path: Path, dtype: torch.dtype) -> None:
    """Saves a module's weights in a dtype, and leaves it in float32 with what was saved."""
    torch.save(module.to(dtype).state_dict(), path)
    module.float()


def write_role(
    directory: Path, modules: Mapping[str | None, nn.Module], dtype: torch.dtype = torch.bfloat16
) -> None:
    """Writes the inner links of a role, by task, beside whatever lies there."""
    directory.mkdir(parents=True, exist_ok=True)
    files = {task: f"adapter({task}).pt" if task else "adapter.pt" for task in modules}
    for task, module in modules.items():
        save(module, directory / files[task], dtype)
    write_json(directory / "adapter_config.json", {"adapter_type": "ln_res_adapter"})
    tasks = {task or "all": {"adapter.pt": file} for task, file in files.items()}
    write_json(directory / "innerlink_config.json", {"tasks": tasks})


def write_outer(
    directory: Path,
    keys: Mapping[str, str],
    modules: Mapping[str | None, Mapping[str, nn.Module]],
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Writes outer links: task -> edge -> module; flat where the only task is None."""
    directory.mkdir(parents=True, exist_ok=True)
    described = {}
    for task, by_edge in modules.items():
        entries = []
        for key, edge in keys.items():
            module = by_edge[edge]
            ends = "-".join(role.capitalize() for role in edge.split("->"))
            name = f"{ends}-Outerlink({task}).pt" if task else f"{key}.pt"
            save(module, directory / name, dtype)
            entry = {"legacy_key": key, "filename": name, "adapter_type": "outer_ln_res_adapter"}
            out_dim, in_dim = module.residual_proj.weight.shape
            entries.append(entry | {"in_dim": in_dim, "out_dim": out_dim})
        described[task] = {"task": task, "adapters": entries}
    whole = described.get(None, {"tasks": described})
    write_json(directory / "outerlink_config.json", {"format_version": 1} | whole)


def write_release(
    folder: Path, topology: str, width: Mapping[str, int], dtype: torch.dtype = torch.bfloat16
) -> dict[str | None, dict[str, dict[str, nn.Module]]]:
    """Writes FOLDER/ROLE and FOLDER/outer with random links.

    Returns:
      Task -> "inner" or "outer" -> role or edge -> the module that was saved.
    """
    keys, modules = EDGES[topology], {}
    for i, task in enumerate(TASKS[topology]):
        edges = {edge: edge.split("->") for edge in keys.values()}
        modules[task] = {
            "inner": {role: perturbed(Adapter(d), 100 * i + d) for role, d in width.items()},
            "outer": {
                edge: perturbed(CrossModelAdapter(width[a], width[b]), 100 * i + j)
                for j, (edge, (a, b)) in enumerate(edges.items())
            },
        }
    for role in width:
        write_role(folder / role, {task: m["inner"][role] for task, m in modules.items()}, dtype)
    write_outer(folder / "outer", keys, {task: m["outer"] for task, m in modules.items()}, dtype)
    return modules


_apply_link = jax.jit(apply_link, static_argnums=0)


def assert_same_link(link: Sequence[Any], module: nn.Module) -> None:
    config, params = link
    x = np.random.default_rng(0).normal(size=(3, config.in_width)).astype(np.float32)
    with torch.no_grad():
        expected = module(torch.tensor(x)).numpy()
    np.testing.assert_allclose(_apply_link(config, params, x), expected, rtol=1e-5, atol=1e-5)
    shuffled = jax.tree.map(lambda p: np.asarray(p)[::-1], params)
    assert np.abs(_apply_link(config, shuffled, x) - expected).max() > 0.1
