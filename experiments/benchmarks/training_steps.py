"""Training steps of both sides: upstream's procedure in torch, and rmas_jax."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from experiments.benchmarks.team import (
    EDGES,
    ROLES,
    Shape,
    load_jax_team,
    token_rows,
    training_data,
)
from rmas_jax.config import PhaseConfig
from rmas_jax.topology import edge_name
from rmas_jax.training.outer.step import outer_step, start_phase

LEARNING_RATE = 1e-4


def torch_steps(
    shape: Shape, folder: Path, batch: int, *, device: str = "cpu"
) -> Callable[[], float]:
    """A function that makes one step and returns its loss."""
    import torch
    import transformers

    from experiments.benchmarks import upstream_training as upstream

    transformers.logging.disable_progress_bar()
    models = {}
    for role in ROLES:
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder / role, dtype=getattr(torch, shape.dtype)
        )
        model.to(device).requires_grad_(False).train()  # as upstream, for checkpointing
        # Before transformers 5.23 it had another name.
        newer = hasattr(model, "activation_checkpointing_enable")
        enable = "activation_checkpointing_enable" if newer else "gradient_checkpointing_enable"
        getattr(model, enable)({"use_reentrant": False})
        models[role] = model
    width = {role: model.config.hidden_size for role, model in models.items()}
    inner = {role: upstream.Inner(width[role]).requires_grad_(False) for role in ROLES}
    outer = {edge_name(edge): upstream.Outer(*(width[r] for r in edge)) for edge in EDGES}
    for name, link in (inner | outer).items():
        link.load_state_dict(torch.load(folder / f"{name}.pt", weights_only=True))
        link.to(device)
    optimizer = torch.optim.AdamW(
        [p for link in outer.values() for p in link.parameters()],
        lr=LEARNING_RATE,
        betas=(0.9, 0.999),
        weight_decay=0.0,
    )
    rows = token_rows(shape, batch)
    losses = [
        functools.partial(
            upstream.sample_loss,
            models,
            inner,
            outer,
            {role: upstream.Sample(*rows[role][i]) for role in ROLES},
            order=ROLES,
            rounds=shape.rounds,
            latent_steps=shape.latent_steps,
        )
        for i in range(batch)
    ]

    def take() -> float:
        with torch.device(device):
            return upstream.train_step(optimizer, losses)

    return take


def phase_of(shape: Shape, batch: int, **options: Any) -> PhaseConfig:
    """The phase of `jax_steps`; `options` are further fields."""
    return PhaseConfig(
        name="benchmark",
        rounds=shape.rounds,
        steps=1000,
        batch_size=batch,
        learning_rate=LEARNING_RATE,
        warmup_steps=0,
        schedule="constant",
        **{"latents": "teacher_forced"} | options,
    )


def jax_steps(shape: Shape, folder: Path, batch: int, **options: Any) -> Callable[[], float]:
    """As `torch_steps`; `options` are fields of the phase."""
    system, agents, links = load_jax_team(shape, folder)
    phase = phase_of(shape, batch, **options)
    data = training_data(shape, batch)
    step = jax.jit(outer_step, static_argnums=(0, 1), donate_argnums=4)
    state = start_phase(phase, links)

    def take() -> float:
        nonlocal state
        state, metrics = step(system, phase, agents, data, state)
        return float(metrics["loss"])

    return take
