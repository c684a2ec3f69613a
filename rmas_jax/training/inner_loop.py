"""The inner loop as a whole: what is read, paired and trained, and in which order."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from rmas_jax.assembly import Team
from rmas_jax.config import InnerConfig
from rmas_jax.links import apply_link
from rmas_jax.models import Decoder
from rmas_jax.models.tokenizer import shared_tokens
from rmas_jax.sharding import put_batch, to_host
from rmas_jax.topology import edge_name
from rmas_jax.training.batches import Dialogues, TrainingData
from rmas_jax.training.curves import Curves
from rmas_jax.training.inner import next_token_pairs, regress_link
from rmas_jax.training.rollouts import BATCH_SIZE, roll_outs

Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]  # states [n, D], next embeddings [n, D], ids [n]
_send = jax.jit(apply_link, static_argnums=0)


def cached_pairs(
    model: Decoder,
    params: Any,
    dialogues: Dialogues,
    *,
    mesh: Mesh | None = None,
    batch_size: int = BATCH_SIZE,
) -> Pairs:
    """Runs a frozen agent once over its role texts.

    Returns:
      Per token of the texts: the state [n, D] before it, its embedding [n, D] and its id [n].
    """
    width = int(dialogues.target.sum(1).max())
    read = jax.jit(functools.partial(next_token_pairs, model, width=width))
    pairs = []
    batch_size = min(batch_size, len(dialogues.ids))
    for start in range(0, len(dialogues.ids), batch_size):
        rows = np.arange(start, start + batch_size) % len(dialogues.ids)  # the last batch wraps
        ids, valid = put_batch((dialogues.ids[rows], dialogues.valid[rows]), mesh)
        pairs.append(to_host(read(params, ids, valid)))
    keep = dialogues.target[:, -width:]
    hidden, target = (np.concatenate(x)[: len(keep)][keep] for x in zip(*pairs, strict=True))
    return hidden, target, dialogues.ids[:, -width:][keep]


def rollout_pairs(
    team: Team, links: Any, data: TrainingData, *, rounds: int, batch_size: int = BATCH_SIZE
) -> dict[str, Pairs]:
    """Runs the system in latents and pairs every thought with the token it stands for.

    Thoughts drift over rounds; pairs of drifted thoughts teach the links to lead back (dataset
    aggregation, Ross et al. 2011). Only stages at which the agent would still write the right text
    count: what is lost cannot be paired. No gradient passes through the rollout.
    """
    found: dict[str, list[Pairs]] = {role: [] for role in data.targets}
    for batch, out, counts in roll_outs(team, links, data, rounds=rounds, batch_size=batch_size):
        for role, hidden in out.thoughts.items():  # [R, B, M, D]
            ids, valid = (
                np.moveaxis(x[:, :rounds, : hidden.shape[2]], 1, 0)
                for x in (batch.targets[role].ids, batch.targets[role].valid)
            )
            keep = valid & out.right[role][..., None] & counts[None, :, None]
            hidden = hidden[:, :, : keep.shape[2]][keep]
            found[role].append((hidden, _embeddings(team, role, ids[keep]), ids[keep]))
    return {
        role: tuple(np.concatenate(column) for column in zip(*parts, strict=True))
        for role, parts in found.items()
    }


def run_inner_loop(
    team: Team,
    links: Any,
    dialogues: Mapping[str, Dialogues],
    data: TrainingData,
    config: InnerConfig,
    *,
    rounds: int,
    key: jax.Array,
    curves: Curves,
    align_outer: bool = True,
    log_every: int = 10,
    progress: bool = True,
) -> Any:
    """Trains every agent's inner link on its role texts, and aligns the outer links.

    Args:
      team: the system and its agents.
      links: where they start.
      dialogues: by role; what the first pass reads.
      data: the same items as prompts with slots, for later passes.
      config: of the regressions.
      rounds: R of the later passes' rollouts.
      key: order of the batches.
      curves: gets the losses.
      align_outer: whether outer links learn to send a token's vector to where the receiver
        expects that token, for tokens that both have. Otherwise they stay as they start.
      log_every: steps between rows of the curves.
      progress: whether to show a bar.

    Returns:
      All links.
    """
    system, topology = team.system, team.system.topology
    train = jax.jit(regress_link, static_argnums=(0, 4))
    links = {part: dict(params) for part, params in links.items()}
    pairs = {
        role: cached_pairs(system.models[role], team.agents[role], dialogues[role], mesh=team.mesh)
        for role in topology.order
    }
    # An outer link reads what the inner one makes of a thought, so inner links go first.
    jobs = {
        "inner": {role: role for role in topology.order},
        "outer": {edge_name(edge): edge for edge in topology.edges if align_outer},
    }
    for name in (*topology.order, *map(edge_name, topology.edges)):
        curves.truncate(name, 0)
    bar = tqdm(
        total=config.passes * sum(map(len, jobs.values())),
        desc="inner loop",
        unit="link",
        disable=not progress,
    )
    # All passes have arrays of one size, so every link's training compiles once.
    thoughts = len(data) * rounds * system.latent_steps
    capacity = {role: len(p[0]) + (config.passes - 1) * thoughts for role, p in pairs.items()}
    number = itertools.count()
    for i in range(config.passes):
        if i:
            rolled = rollout_pairs(team, links, data, rounds=rounds)
            pairs |= {  # a thought of a role without texts stands for no token
                role: tuple(map(np.concatenate, zip(pairs[role], new, strict=True)))
                for role, new in rolled.items()
            }
        for part, of_part in jobs.items():
            trained = {}
            for name, job in of_part.items():  # not waited for: they train side by side
                if part == "inner":  # towards the agent's own next embeddings
                    link, (hidden, target, _) = system.inner[name], pairs[name]
                    count = len(hidden)
                    hidden, target = (_padded(x, capacity[name]) for x in (hidden, target))
                else:
                    link, sender = system.outer[name], job[0]
                    hidden, target, count = _translations(
                        team, links, job, pairs[sender], capacity[sender]
                    )
                trained[name] = train(
                    link,
                    links[part][name],
                    hidden,
                    target,
                    config,
                    key=jax.random.fold_in(key, next(number)),
                    count=count,
                )
            for name, (params, logged) in trained.items():
                links[part][name] = params
                logged = jax.device_get(logged)
                for step in range(0, config.steps, log_every):
                    values = {curve: float(v[step]) for curve, v in logged.items()}
                    curves.write("inner", name, i * config.steps + step, **values)
                bar.update()
    bar.close()
    return links


def _embeddings(team: Team, role: str, ids: np.ndarray) -> np.ndarray:
    """Input embeddings [n, D] of token ids [n]."""
    model = team.system.models[role]
    vocabulary = np.arange(model.config.vocab_size)[None]
    return to_host(model.apply({"params": team.agents[role]}, vocabulary, method="embed")[0])[ids]


def _padded(rows: np.ndarray, count: int) -> np.ndarray:
    """Rows [n, D] with zeros behind them, [count, D]."""
    return np.concatenate([rows, np.zeros((count - len(rows), rows.shape[1]), rows.dtype)])


def _translations(
    team: Team, links: Any, edge: tuple[str, str], pairs: Pairs, capacity: int
) -> tuple[jax.Array, np.ndarray, int]:
    """What an outer link reads, the receiver's embedding of the token that it stands for, both
    padded to `capacity` rows, and how many of them count.
    """
    sender, receiver = edge
    hidden, _, ids = pairs
    mine, theirs = shared_tokens(team.tokenizers[sender], team.tokenizers[receiver])
    counterpart = np.full(team.system.models[sender].config.vocab_size, -1)
    counterpart[mine] = theirs
    known = counterpart[ids] >= 0
    target = _padded(_embeddings(team, receiver, counterpart[ids[known]]), capacity)
    hidden = _padded(hidden[known], capacity)
    if team.system.sent_vectors == "outer_of_inner":
        hidden = _send(team.system.inner[sender], links["inner"][sender], hidden)
    return hidden, target, int(known.sum())
