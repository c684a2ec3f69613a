"""Latent rounds and answers in plain torch with a cache, for comparison; batches of equal rows."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import nn

from experiments.benchmarks.team import EDGES, ROLES, Row, Shape
from experiments.benchmarks.upstream_training import Inner, Outer
from rmas_jax.topology import edge_name

# Older versions of transformers have another name.
FORWARD = inspect.signature(transformers.LlamaModel.forward).parameters
CACHE = "cache" if "cache" in FORWARD else "past_key_values"


class TorchTeam(NamedTuple):
    """A closed chain of agents."""

    models: Mapping[str, Any]  # by role
    links: Mapping[str, nn.Module]  # by role, and by the name of an edge; float32
    device: str


def load_torch_team(shape: Shape, folder: Path, device: str) -> TorchTeam:
    """The team that `team.make_team` saved."""
    models = {}
    for role in ROLES:
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder / role, dtype=getattr(torch, shape.dtype)
        )
        models[role] = model.to(device).eval().requires_grad_(False)
    width = {role: model.config.hidden_size for role, model in models.items()}
    links: dict[str, nn.Module] = {role: Inner(width[role]) for role in ROLES}
    links |= {edge_name(edge): Outer(*(width[role] for role in edge)) for edge in EDGES}
    for name, link in links.items():
        link.load_state_dict(torch.load(folder / f"{name}.pt", weights_only=True))
        link.to(device).requires_grad_(False)
    return TorchTeam(models, links, device)


@torch.inference_mode()
def read(model: Any, embeds: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """The last hidden state [B, D] of a prompt [B, T, D], and its cache."""
    out = model.model(inputs_embeds=embeds, use_cache=True)
    return out.last_hidden_state[:, -1], out.past_key_values


def rewind(cache: Any, length: int) -> None:
    """Cuts a cache to its first positions."""
    if more := cache.get_seq_length() - length:
        cache.crop(-more)


@torch.inference_mode()
def think(
    model: Any, link: nn.Module, hidden: torch.Tensor, cache: Any, steps: int
) -> torch.Tensor:
    """Thoughts [B, M, D], each fed back through the link; the cache grows."""
    thoughts = [hidden]
    for _ in range(steps - 1):
        fed = link(thoughts[-1].float()).to(hidden.dtype)[:, None]
        out = model.model(inputs_embeds=fed, **{CACHE: cache}, use_cache=True)
        thoughts.append(out.last_hidden_state[:, -1])
    return torch.stack(thoughts, dim=1)


@torch.inference_mode()
def think_again(model: Any, link: nn.Module, embeds: torch.Tensor, steps: int) -> torch.Tensor:
    """Thoughts [B, M, D] as upstream has them: a step reads everything, without a cache."""
    thoughts: list[torch.Tensor] = []
    for _ in range(steps):
        out = model.model(inputs_embeds=embeds, use_cache=False)
        thoughts.append(out.last_hidden_state[:, -1])
        fed = link(thoughts[-1].float()).to(embeds.dtype)[:, None]
        embeds = torch.cat([embeds, fed], dim=1)
    return torch.stack(thoughts, dim=1)


@torch.inference_mode()
def write(model: Any, hidden: torch.Tensor, cache: Any, tokens: int) -> torch.Tensor:
    """Greedy tokens [B, W]; the cache grows."""
    text = [model.lm_head(hidden).argmax(-1)]
    for _ in range(tokens - 1):
        out = model.model(input_ids=text[-1][:, None], **{CACHE: cache}, use_cache=True)
        text.append(model.lm_head(out.last_hidden_state[:, -1]).argmax(-1))
    return torch.stack(text, dim=1)


@torch.inference_mode()
def listen(
    team: TorchTeam, rows: Mapping[str, list[Row]], shape: Shape, *, cached: bool = True
) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """R rounds up to the answerer's input in the last one, whole prompts read in every round.

    Args:
      team, rows, shape: see `team`.
      cached: False: latent steps as upstream, see `think_again`.

    Returns:
      The vectors that the answerer received [B, M, D], its last state [B, D], and its cache.
    """
    ids = {
        role: [torch.tensor([row[part] for row in of], device=team.device) for part in (0, 1)]
        for role, of in rows.items()
    }
    sent = torch.zeros(0)
    for index in range(shape.rounds):
        for role in ROLES:
            model = team.models[role]
            before, after = (model.get_input_embeddings()(x) for x in ids[role])
            slot = [sent] if sent.ndim == 3 else []  # no slot in the first turn
            embeds, link = torch.cat([before, *slot, after], dim=1), team.links[role]
            if index == shape.rounds - 1 and role == ROLES[-1]:
                return sent, *read(model, embeds)
            if cached:
                thoughts = think(model, link, *read(model, embeds), shape.latent_steps)
            else:
                thoughts = think_again(model, link, embeds, shape.latent_steps)
            edge = next(edge for edge in EDGES if edge[0] == role)
            sent = team.links[edge_name(edge)](team.links[role](thoughts.float()))
            sent = sent.to(team.models[edge[1]].dtype)
    raise AssertionError("unreachable")
