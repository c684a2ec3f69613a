"""Runs the two loops: what is compiled, logged, saved and resumed."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from rmas_jax.assembly import Team
from rmas_jax.channels import latent_channel
from rmas_jax.checkpoints import CheckpointStore
from rmas_jax.config import InnerConfig, OuterConfig, PhaseConfig
from rmas_jax.links import apply_link
from rmas_jax.models import Decoder
from rmas_jax.models.tokenizer import shared_tokens
from rmas_jax.recursion import Rounds, run_rounds
from rmas_jax.topology import System, edge_name
from rmas_jax.training.batches import Dialogues, TrainingData
from rmas_jax.training.inner import next_token_pairs, regress_link
from rmas_jax.training.outer import outer_step, start_phase

BATCH_SIZE = 256  # of reading without gradients
Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]  # states [n, D], next embeddings [n, D], ids [n]


class DivergedError(RuntimeError):
    """The loss is not a number; the message names phase, step and the last good checkpoint."""


class Curves:
    """Training curves as JSON lines; a resumed run drops what it will write again."""

    def __init__(self, path: Path):
        self.path = path

    def truncate(self, series: str, step: int) -> None:
        """Drops rows of a series from `step` on."""
        if self.path.is_file():
            rows = [json.loads(line) for line in self.path.read_text().splitlines()]
            kept = [row for row in rows if row["series"] != series or row["step"] < step]
            self.path.write_text("".join(json.dumps(row) + "\n" for row in kept))

    def write(self, stage: str, series: str, step: int, **values: Any) -> None:
        """Adds a row."""
        row = {"stage": stage, "series": series, "step": step, **values}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def cached_pairs(
    model: Decoder, params: Any, dialogues: Dialogues, *, batch_size: int = BATCH_SIZE
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
        pairs.append(jax.device_get(read(params, dialogues.ids[rows], dialogues.valid[rows])))
    keep = dialogues.target[:, -width:]
    hidden, target = (np.concatenate(x)[: len(keep)][keep] for x in zip(*pairs, strict=True))
    return hidden, target, dialogues.ids[:, -width:][keep]


_send = jax.jit(apply_link, static_argnums=0)


@functools.partial(jax.jit, static_argnames=("system", "rounds"))
def _roll_out(
    system: System, agents: Any, links: Any, batch: TrainingData, *, rounds: int
) -> Rounds:
    """The rounds on the system's own latents, without gradients; one program per batch size."""
    channel = latent_channel(system, links)
    return run_rounds(system, agents, channel, batch.prompts, rounds=rounds, targets=batch.targets)


def roll_outs(
    team: Team, links: Any, data: TrainingData, *, rounds: int, batch_size: int = BATCH_SIZE
) -> Iterator[tuple[TrainingData, Rounds, np.ndarray]]:
    """Yields batches, what the rounds make of them (on the host), and which rows [B] count.

    The last batch wraps; what it repeats does not count.
    """
    batch_size = min(batch_size, len(data))
    for start in range(0, len(data), batch_size):
        rows = np.arange(start, start + batch_size)
        batch = data.rows(rows % len(data))
        out = _roll_out(team.system, team.agents, links, batch, rounds=rounds)
        yield batch, jax.device_get(out), rows < len(data)


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
        role: cached_pairs(system.models[role], team.agents[role], dialogues[role])
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
    return np.asarray(model.apply({"params": team.agents[role]}, vocabulary, method="embed")[0])[
        ids
    ]


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


def run_phase(
    team: Team,
    links: Any,
    data: TrainingData,
    validation: TrainingData,
    config: OuterConfig,
    phase: PhaseConfig,
    *,
    key: jax.Array,
    directory: Path,
    curves: Curves,
    progress: bool = True,
) -> Any:
    """Runs, or resumes, one phase of the outer loop; returns all links.

    Args:
      team: the system and its agents.
      links: where they start.
      data: training items.
      validation: held-out items.
      config: of the outer loop.
      phase: the phase.
      key: order of the batches.
      directory: of the checkpoints.
      curves: gets losses and gradient norms.
      progress: whether to show a bar.

    Raises:
      DivergedError: the loss or a gradient is not finite.
    """
    state = start_phase(phase, links)
    step_fn = jax.jit(outer_step, static_argnums=(0, 1), donate_argnums=4)
    with CheckpointStore(directory, keep=config.keep_checkpoints) as store:
        if found := store.restore_newest(state):
            _, state = found
        first = int(state.step)
        curves.truncate(phase.name, first)
        bar = tqdm(
            range(first, phase.steps),
            initial=first,
            total=phase.steps,
            desc=f"outer loop, {phase.name}",
            disable=not progress,
        )
        for step in bar:
            state, metrics = step_fn(team.system, phase, team.agents, data, state, key=key)
            done = step + 1
            if step % config.log_every == 0 or done == phase.steps:
                metrics = jax.device_get(metrics)
                if not (np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"])):
                    raise DivergedError(
                        f"phase {phase.name}, step {step}: loss {metrics['loss']}, gradient norm "
                        f"{metrics['grad_norm']}; the last good checkpoint is in {directory}"
                    )
                curves.write("outer", phase.name, step, **_flat(metrics))
                bar.set_postfix(loss=f"{metrics['loss']:.3f}")
            if done % config.validation_every == 0 or done == phase.steps:
                curves.write(
                    "outer",
                    f"{phase.name} (validation)",
                    step,
                    **_validate(team, state.links, validation, rounds=phase.rounds),
                )
            if done % config.checkpoint_every == 0 or done == phase.steps:
                store.save(done, state)
    return state.links


def _validate(team: Team, links: Any, data: TrainingData, *, rounds: int) -> dict[str, Any]:
    """Loss of the last round's answer, and the share of right texts by role and round."""
    answerer = team.system.topology.answerer
    loss, right = [], []
    for _, out, counts in roll_outs(team, links, data, rounds=rounds):
        loss.append(out.losses[answerer][-1, counts])
        right.append({role: values[:, counts] for role, values in out.right.items()})
    shares = jax.tree.map(lambda *parts: np.concatenate(parts, axis=1).mean(1), *right)
    return {"loss": float(np.concatenate(loss).mean()), **_flat({"right": shares})}


def _flat(tree: Any) -> dict[str, float | list[float]]:
    """Nested metrics -> {"a/b": number or list}."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        "/".join(str(key.key) for key in path): np.asarray(leaf).round(6).tolist()
        for path, leaf in leaves
    }
