"""What a step of the outer loop holds at its peak, as the compiler plans it; nothing is run."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems import BASE, CONFIGS, build_pattern

from rmas_jax.agents.agent import Agent
from rmas_jax.config import PhaseConfig
from rmas_jax.models import Decoder
from rmas_jax.rounds import supervision
from rmas_jax.rounds.supervision import Targets, token_losses
from rmas_jax.training.data.encoding import TrainingData
from rmas_jax.training.outer.step import outer_step, start_phase

MEBIBYTE = 2**20


def peak(jitted, *args) -> float:
    """MiB beside arguments and results."""
    return jitted.lower(*args).compile().memory_analysis().temp_size_in_bytes / MEBIBYTE


def test_logits_of_a_long_text_never_exist_at_once(monkeypatch):
    """Eight texts of 512 tokens, a vocabulary of 131,072: all logits would take 2 GiB."""
    model = Decoder(dataclasses.replace(CONFIGS["planner"], vocab_size=2**17))
    shape = (8, 512, model.config.width)
    embedding = jax.ShapeDtypeStruct((2**17, model.config.width), jnp.float32)
    args = (
        Agent(model, {"embedding": embedding}),
        jax.ShapeDtypeStruct(shape, jnp.float32),
        jax.ShapeDtypeStruct(shape[:2], jnp.int32),
    )

    def loss(agent, states, ids):
        return token_losses(agent, states, ids)[0].sum()

    assert 256 <= peak(jax.jit(jax.grad(loss, argnums=1)), *args) < 3 * 256
    monkeypatch.setattr(supervision, "LOGITS_AT_ONCE", 2**40)
    whole = functools.partial(loss)  # not the function that is compiled already
    assert peak(jax.jit(jax.grad(whole, argnums=1)), *args) >= 2048  # the control


def test_peak_of_a_step_with_and_without_what_saves_memory():
    """Distillation, agents of width 16 and 12, teacher-forced, 6 rounds, 16 texts of 64 tokens.

    Measured with jax 0.10.2 on CPU: 4.5 MiB; rounds recomputed: 3.6; in four parts: 1.2.
    """
    tiny = build_pattern("distillation")
    random = np.random.default_rng(0)
    ids = random.integers(0, BASE["vocab_size"], (16, 6, 64)).astype(np.int32)
    target = Targets(ids=ids, valid=np.ones(ids.shape, bool))
    batch = TrainingData(
        prompts=tiny.prompts(["where does it end"] * 16), targets=dict.fromkeys(tiny.agents, target)
    )
    phase = PhaseConfig(
        name="memory",
        latents="teacher_forced",
        rounds=6,
        steps=1,
        batch_size=16,
        learning_rate=1e-3,
        warmup_steps=0,
    )

    def of(**options):
        changed = dataclasses.replace(phase, **options)
        step = jax.jit(outer_step, static_argnums=(0, 1))
        state = start_phase(changed, tiny.links)
        return peak(step, tiny.system, changed, tiny.agents, batch, state)

    plain = of()
    assert plain == pytest.approx(4.5, rel=0.25)
    assert of(remat=True) < 0.9 * plain
    assert of(accumulation=4) < 0.35 * plain
