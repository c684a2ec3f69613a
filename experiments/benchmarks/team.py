"""Random teams for benchmarks, the same for rmas_jax and torch: agents, links, token rows.

A team is a closed chain of agents. Its checkpoints and links are made in torch and saved, so that
both sides load the same weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.core import FrozenDict

from experiments.benchmarks.llamas import llama_sizes
from rmas_jax.agents.agent import Agent, load_agent
from rmas_jax.interop import link_from_state, read_state
from rmas_jax.links import INNER, OUTER, LinkConfig, Links
from rmas_jax.prompts import StagePrompt, left_pad
from rmas_jax.rounds.supervision import Targets
from rmas_jax.topology import System, edge_name, load_topology
from rmas_jax.training.data.encoding import TrainingData

PUBLISHED = Path(__file__).parents[1] / "configs" / "published"
ROLES = ("planner", "critic", "solver")
EDGES = tuple(zip(ROLES, (*ROLES[1:], ROLES[0]), strict=True))

Row = tuple[list[int], list[int], list[list[int]]]  # before and after the slot; a text per round


@dataclasses.dataclass(frozen=True)
class Shape:
    """A team's agents, and the tokens that they read."""

    # Role -> a folder of `experiments/configs/published`, or parameters and layers of a Llama.
    agents: Mapping[str, str | tuple[int, int]]
    dtype: str  # of the weights
    vocabulary: int = 16_000  # of the Llamas; ids are below it in any case
    # Role -> tokens before and after its slot.
    lengths: Mapping[str, tuple[int, int]] = dataclasses.field(
        default_factory=lambda: dict.fromkeys(ROLES, (64, 24))
    )
    text: int = 48  # tokens of the longest texts to learn
    ragged: bool = False  # whether rows are up to a quarter shorter, at random
    rounds: int = 3
    latent_steps: int = 32


SHAPES = {
    # The released Light system, with prompts and texts of MATH-500's order.
    "light": Shape(
        {"planner": "Qwen3-1.7B", "critic": "Llama-3.2-1B", "solver": "Qwen2.5-Math-1.5B"},
        "bfloat16",
        lengths=dict.fromkeys(ROLES, (160, 64)),
        text=288,
    ),
    "10M": Shape(dict.fromkeys(ROLES, (10_000_000, 6)), "float32"),
    "100M": Shape(dict.fromkeys(ROLES, (100_000_000, 12)), "float32"),
    "training": Shape(
        {"planner": (10_000_000, 6), "critic": (20_000_000, 8), "solver": (30_000_000, 8)},
        "float32",
        # The solver reads the question after its slot.
        lengths={"planner": (96, 32), "critic": (96, 32), "solver": (24, 104)},
        ragged=True,
    ),
    "tiny": Shape(
        dict.fromkeys(ROLES, (100_000, 2)),
        "float32",
        vocabulary=128,
        lengths=dict.fromkeys(ROLES, (6, 4)),
        text=8,
        latent_steps=4,
        rounds=2,
    ),
}


def torch_config(shape: Shape, role: str) -> Any:
    """The configuration of an agent for transformers."""
    import transformers

    of = shape.agents[role]
    if isinstance(of, str):
        return transformers.AutoConfig.from_pretrained(PUBLISHED / of)
    sizes: dict[str, Any] = llama_sizes(*of, shape.vocabulary)
    return transformers.LlamaConfig(**sizes, bos_token_id=None, eos_token_id=None)


def make_team(shape: Shape, folder: Path, *, device: str = "cpu") -> None:
    """Saves random agents as checkpoints, and random links as torch state dicts, by name."""
    import torch
    import transformers

    from experiments.benchmarks.upstream_training import Inner, Outer

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    widths = {}
    for role in ROLES:
        config = torch_config(shape, role)
        with torch.device(device):
            model = transformers.AutoModelForCausalLM.from_config(
                config, dtype=getattr(torch, shape.dtype)
            )
        model.save_pretrained(folder / role)
        widths[role] = config.hidden_size
    links: dict[str, torch.nn.Module] = {role: Inner(width) for role, width in widths.items()}
    links |= {edge_name(edge): Outer(*(widths[role] for role in edge)) for edge in EDGES}
    for name, link in links.items():
        torch.save(link.state_dict(), folder / f"{name}.pt")


def token_rows(shape: Shape, batch: int) -> dict[str, list[Row]]:
    """Role -> the tokens of each item.

    Texts before the last round are drafts: only the last one is supervised.
    """
    rng = np.random.default_rng(0)

    def tokens(length: int) -> list[int]:
        many = rng.integers(length * 3 // 4, length + 1) if shape.ragged else length
        return rng.integers(0, shape.vocabulary, many).tolist()

    return {
        role: [
            (tokens(before), tokens(after), [tokens(shape.text) for _ in range(shape.rounds)])
            for _ in range(batch)
        ]
        for role, (before, after) in shape.lengths.items()
    }


def load_jax_team(
    shape: Shape, folder: Path, mesh: Any = None
) -> tuple[System, dict[str, Agent], Links]:
    """The system, its agents by role, and its links."""
    agents = {role: load_agent(folder / role, shape.dtype, mesh) for role in ROLES}
    width = {role: agent.width for role, agent in agents.items()}
    inner = {role: LinkConfig(INNER, "ln_res", width[role], width[role]) for role in ROLES}
    outer = {
        edge_name(edge): LinkConfig(OUTER, "ln_res", *(width[role] for role in edge))
        for edge in EDGES
    }
    links = (
        {
            name: link_from_state(config, read_state(folder / f"{name}.pt"), source=name)
            for name, config in of.items()
        }
        for of in (inner, outer)
    )
    system = System(
        topology=load_topology("sequential"),
        inner=FrozenDict(inner),
        outer=FrozenDict(outer),
        latent_steps=shape.latent_steps,
    )
    return system, agents, jax.device_put(Links(*links))


def training_data(shape: Shape, batch: int) -> TrainingData:
    """The token rows as arrays."""
    rows = token_rows(shape, batch)
    senders = {receiver: sender for sender, receiver in EDGES}
    return TrainingData(
        prompts={role: stage_prompt(shape, of, role, senders[role]) for role, of in rows.items()},
        targets={role: text_targets(shape, of) for role, of in rows.items()},
    )


def stage_prompt(shape: Shape, rows: list[Row], role: str, sender: str) -> StagePrompt:
    """A role's rows as blocks; the first role has no slot in the first round."""
    prefix_ids, prefix_valid = left_pad([before for before, _, _ in rows])
    ids, valid = left_pad([after for _, after, _ in rows])
    slot = np.zeros((len(rows), shape.latent_steps), np.int32)
    has_slot = [np.full(slot.shape, has) for has in (role != ROLES[0], True)]  # by round kind
    return StagePrompt(
        prefix_ids=prefix_ids,
        prefix_valid=prefix_valid,
        body_ids=np.stack([np.concatenate([slot, ids], 1)] * 2, axis=1),
        body_valid=np.stack([np.concatenate([of, valid], 1) for of in has_slot], axis=1),
        slot_index=(*range(shape.latent_steps), *(-1,) * ids.shape[1]),
        senders=(sender,),
    )


def text_targets(shape: Shape, rows: list[Row]) -> Targets:
    """A role's texts, padded on the right."""
    texts = [of_item for _, _, of_item in rows]
    width = max(len(text) for item in texts for text in item)
    ids = np.zeros((len(texts), shape.rounds, width), np.int32)
    valid = np.zeros(ids.shape, bool)
    for i, item in enumerate(texts):
        for r, text in enumerate(item):
            ids[i, r, : len(text)], valid[i, r, : len(text)] = text, True
    return Targets(ids=ids, valid=valid)
