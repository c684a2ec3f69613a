"""Training steps of both sides of `training.py`: the same random agents, links and token rows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.core import FrozenDict

from experiments.benchmarks.decoding import llama_sizes
from rmas_jax.agents.agent import load_agent
from rmas_jax.config import PhaseConfig
from rmas_jax.interop import link_from_state, read_state
from rmas_jax.links import INNER, OUTER, LinkConfig, Links
from rmas_jax.prompts import StagePrompt, left_pad
from rmas_jax.rounds.supervision import Targets
from rmas_jax.topology import System, edge_name, load_topology
from rmas_jax.training.data.encoding import TrainingData
from rmas_jax.training.outer.step import outer_step, start_phase

SIZES = {"planner": (10_000_000, 6), "critic": (20_000_000, 8), "solver": (30_000_000, 8)}
VOCABULARY = 16_000
# Tokens before and after the slot; the solver reads the question after its slot.
LENGTHS = {"planner": (96, 32), "critic": (96, 32), "solver": (24, 104)}
ROUNDS, LATENT_STEPS = 3, 32
LEARNING_RATE = 1e-4


def token_rows(batch: int, text: int) -> dict[str, list[tuple[Any, Any, Any]]]:
    """Role -> per item: tokens before and after its slot, and a text (of `text` tokens) per round.

    Texts before the last round are drafts: only the last one is supervised.
    """
    rng = np.random.default_rng(0)

    def tokens(length: int) -> list[int]:
        ragged = rng.integers(length * 3 // 4, length + 1)
        return rng.integers(0, VOCABULARY, ragged).tolist()

    return {
        role: [
            (tokens(before), tokens(after), [tokens(text) for _ in range(ROUNDS)])
            for _ in range(batch)
        ]
        for role, (before, after) in LENGTHS.items()
    }


def make_agents(folder: Path) -> None:
    """Random Llamas of three sizes as checkpoints, and random links as torch state dicts."""
    import torch
    import transformers

    from experiments.benchmarks.upstream_training import Inner, Outer

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    widths = {}
    for role, (parameters, layers) in SIZES.items():
        sizes: dict[str, Any] = llama_sizes(parameters, layers, VOCABULARY)
        config = transformers.LlamaConfig(**sizes, bos_token_id=None, eos_token_id=None)
        transformers.LlamaForCausalLM(config).save_pretrained(folder / role)
        widths[role] = sizes["hidden_size"]
    order = tuple(SIZES)
    for role in order:
        torch.save(Inner(widths[role]).state_dict(), folder / f"{role}.pt")
    for edge in zip(order, (*order[1:], order[0]), strict=True):
        link = Outer(*(widths[role] for role in edge))
        torch.save(link.state_dict(), folder / f"{edge_name(edge)}.pt")


def torch_steps(folder: Path, batch: int, text: int) -> Callable[[], float]:
    """A function that makes one step and returns its loss."""
    import torch
    import transformers

    from experiments.benchmarks import upstream_training as upstream

    transformers.logging.disable_progress_bar()
    models = {}
    for role in SIZES:
        model = transformers.LlamaForCausalLM.from_pretrained(folder / role, dtype=torch.float32)
        models[role] = model.requires_grad_(False).train()  # as upstream, for checkpointing
        model.activation_checkpointing_enable({"use_reentrant": False})
    width = {role: model.config.hidden_size for role, model in models.items()}
    order = tuple(SIZES)
    edges = list(zip(order, (*order[1:], order[0]), strict=True))
    inner = {role: upstream.Inner(width[role]).requires_grad_(False) for role in order}
    outer = {edge_name(edge): upstream.Outer(*(width[r] for r in edge)) for edge in edges}
    for name, link in (inner | outer).items():
        link.load_state_dict(torch.load(folder / f"{name}.pt", weights_only=True))
    optimizer = torch.optim.AdamW(
        [p for link in outer.values() for p in link.parameters()],
        lr=LEARNING_RATE,
        betas=(0.9, 0.999),
        weight_decay=0.0,
    )
    rows = token_rows(batch, text)
    losses = [
        functools.partial(
            upstream.sample_loss,
            models,
            inner,
            outer,
            {role: upstream.Sample(*rows[role][i]) for role in order},
            order=order,
            rounds=ROUNDS,
            latent_steps=LATENT_STEPS,
        )
        for i in range(batch)
    ]
    return lambda: upstream.train_step(optimizer, losses)


def stage_prompt(rows: list[Any], sender: str, *, slot_first: bool) -> StagePrompt:
    """A role's rows as blocks; `slot_first`: whether the first round also has the slot."""
    batch = len(rows)
    prefix_ids, prefix_valid = left_pad([before for before, _, _ in rows])
    ids, valid = left_pad([after for _, after, _ in rows])
    slot = np.zeros((batch, LATENT_STEPS), np.int32)
    has_slot = [np.full(slot.shape, has) for has in (slot_first, True)]  # by round kind
    return StagePrompt(
        prefix_ids=prefix_ids,
        prefix_valid=prefix_valid,
        body_ids=np.stack([np.concatenate([slot, ids], 1)] * 2, axis=1),
        body_valid=np.stack([np.concatenate([of, valid], 1) for of in has_slot], axis=1),
        slot_index=(*range(LATENT_STEPS), *(-1,) * ids.shape[1]),
        senders=(sender,),
    )


def text_targets(rows: list[Any]) -> Targets:
    """A role's texts, padded on the right."""
    texts = [of_item for _, _, of_item in rows]
    width = max(len(text) for item in texts for text in item)
    ids = np.zeros((len(texts), ROUNDS, width), np.int32)
    valid = np.zeros(ids.shape, bool)
    for i, item in enumerate(texts):
        for r, text in enumerate(item):
            ids[i, r, : len(text)], valid[i, r, : len(text)] = text, True
    return Targets(ids=ids, valid=valid)


def jax_steps(folder: Path, batch: int, text: int, **options: Any) -> Callable[[], float]:
    """As `torch_steps`; `options` are fields of the phase."""
    topology = load_topology("sequential")
    agents = {role: load_agent(folder / role) for role in topology.order}
    width = {role: agent.width for role, agent in agents.items()}
    inner = {role: LinkConfig(INNER, "ln_res", width[role], width[role]) for role in width}
    outer = {
        edge_name(edge): LinkConfig(OUTER, "ln_res", *(width[role] for role in edge))
        for edge in topology.edges
    }
    links = Links(
        *(
            {
                name: link_from_state(config, read_state(folder / f"{name}.pt"), source=name)
                for name, config in configs.items()
            }
            for configs in (inner, outer)
        )
    )
    system = System(
        topology=topology,
        inner=FrozenDict(inner),
        outer=FrozenDict(outer),
        latent_steps=LATENT_STEPS,
    )
    phase = PhaseConfig(
        name="benchmark",
        latents="teacher_forced",
        rounds=ROUNDS,
        steps=1000,
        batch_size=batch,
        learning_rate=LEARNING_RATE,
        warmup_steps=0,
        schedule="constant",
        **options,
    )
    rows = token_rows(batch, text)
    senders = {receiver: sender for sender, receiver in topology.edges}
    data = TrainingData(
        prompts={
            role: stage_prompt(of, senders[role], slot_first=role != topology.order[0])
            for role, of in rows.items()
        },
        targets={role: text_targets(of) for role, of in rows.items()},
    )
    step = jax.jit(outer_step, static_argnums=(0, 1), donate_argnums=4)
    state = start_phase(phase, links)

    def take() -> float:
        nonlocal state
        state, metrics = step(system, phase, agents, data, state)
        return float(metrics["loss"])

    return take
