"""The upstream outer loop in plain torch: one sequence at a time, whole prompts in every round.

Written from the published description, only for comparison. As upstream, agents are frozen,
checkpointed and differentiated through, a batch is a loop over its samples, and the loss is on the
last round's answer. For comparable losses, two details are those of rmas_jax: latents start at the
last token of the prompt (upstream: one later), and weights are float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional


class Sample(NamedTuple):
    """A role's token ids for one question."""

    prefix: Sequence[int]  # prompt before the slot
    suffix: Sequence[int]  # prompt after the slot
    texts: Sequence[Sequence[int]]  # target text per round


class Inner(nn.Module):
    """Inner link, variant ln_res."""

    def __init__(self, width: int):
        super().__init__()
        self.pre_ln, self.post_ln = nn.LayerNorm(width), nn.LayerNorm(width)
        self.proj1, self.proj2 = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, D] -> [T, D]."""
        return self.post_ln(x + self.proj2(functional.gelu(self.proj1(self.pre_ln(x)))))


class Outer(nn.Module):
    """Outer link, variant ln_res."""

    def __init__(self, in_width: int, out_width: int):
        super().__init__()
        self.ln_source, self.ln_target = nn.LayerNorm(in_width), nn.LayerNorm(out_width)
        self.proj1 = nn.Linear(in_width, 2 * out_width)
        self.proj2 = nn.Linear(2 * out_width, out_width)
        self.residual_proj = nn.Linear(in_width, out_width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, D] -> [T, D']."""
        mixed = self.proj2(functional.gelu(self.proj1(self.ln_source(x))))
        return self.ln_target(mixed + self.residual_proj(x))


def text_states(
    model: Any, sample: Sample, latents: torch.Tensor | None, index: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """States [W, D] that predict each token of the round's text, and the text [W]."""
    text = torch.tensor(sample.texts[index])
    embed = model.get_input_embeddings()
    parts = [embed(torch.tensor(sample.prefix))]
    parts += [] if latents is None else [latents.to(parts[0].dtype)]
    parts += [embed(torch.tensor(sample.suffix)), embed(text[:-1])]
    hidden = model.model(inputs_embeds=torch.cat(parts)[None], use_cache=False).last_hidden_state[0]
    return hidden[-len(text) :], text


def sample_loss(
    models: Mapping[str, Any],
    inner: Mapping[str, nn.Module],
    outer: Mapping[str, nn.Module],
    samples: Mapping[str, Sample],
    *,
    order: Sequence[str],
    rounds: int,
    latent_steps: int,
) -> torch.Tensor:
    """Cross-entropy of the last role's text in the last round of a closed chain."""
    latents = None
    for index in range(rounds):
        for place, role in enumerate(order):
            with torch.set_grad_enabled(latents is not None):  # no link precedes the first stage
                states, text = text_states(models[role], samples[role], latents, index)
            if index == rounds - 1 and place == len(order) - 1:
                return functional.cross_entropy(models[role].lm_head(states).float(), text)
            receiver = order[(place + 1) % len(order)]
            latents = outer[f"{role}->{receiver}"](inner[role](states[:latent_steps].float()))
    raise AssertionError("unreachable")


def train_step(optimizer: Any, losses: Sequence[Any], max_grad_norm: float = 1.0) -> float:
    """A step on the mean of losses, given as functions; one graph exists at a time."""
    optimizer.zero_grad()
    total = 0.0
    for make in losses:
        loss = make() / len(losses)
        loss.backward()
        total += float(loss.detach())
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    optimizer.step()
    return total
