"""A causal audit of a channel: accuracy with other messages at the receiver's boundary.

Messages are recorded once; then each condition answers every question again while other messages
arrive, on all edges, on one edge, in one round, or in one round on one edge. Terms are those of
Zhang and Emu (arXiv 2607.26773), with zeros and moment-matched noise as in Cheng et al. (arXiv
2608.04893): with accuracies A,

    total effect = A(true) - A(none) = effect of a message + content-attributable gain
    effect of a message       = A(other) - A(none)
    content-attributable gain = A(true) - A(other)
    own-message gap           = A(true) - A(own)

The protocol (conditions, questions, sizes, seeds, decision rule) is declared before anything is
measured (`audit_protocol`), and what it declares is measured.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from rmas_jax.agents.agent import Agent
from rmas_jax.data.examples import Example
from rmas_jax.evaluation.answerer import Answerer
from rmas_jax.evaluation.answering import Listened, Prompts
from rmas_jax.evaluation.audit_protocol import (
    NONE,
    OTHER,
    TRUE,
    Condition,
    bind_links,
    check_audit,
    declare,
    senders_of,
)
from rmas_jax.evaluation.batches import Batch
from rmas_jax.evaluation.driver import LoadedBenchmark, check_items, encode_batches, measure
from rmas_jax.evaluation.methods import LATENT, METHODS
from rmas_jax.evaluation.prompt_hashes import prompt_hashes
from rmas_jax.evaluation.record import open_record
from rmas_jax.evaluation.rows import Measurement, ResultRow
from rmas_jax.host.nonfinite import earliest_fault
from rmas_jax.links import Links
from rmas_jax.rounds import recursion
from rmas_jax.rounds.budget import (
    GIVEN,
    NOTHING,
    OWN,
    SENT,
    latent_flops,
    steps_before_answer,
)
from rmas_jax.rounds.channels import Channel
from rmas_jax.rounds.interventions import Intervention
from rmas_jax.rounds.messages import (
    arrived_messages,
    noise_messages,
    other_messages,
    own_messages,
    zero_messages,
)
from rmas_jax.rounds.stages import begin
from rmas_jax.rounds.trace import trace_rounds
from rmas_jax.run_files import AuditFiles
from rmas_jax.sharding import put_batch, put_whole, to_host
from rmas_jax.team import Team
from rmas_jax.topology import System, edge_name

# Who makes a message. Another item's costs what the true one does.
ORIGINS = {
    TRUE: SENT,
    OTHER: SENT,
    "own": OWN,
    "zeros": GIVEN,
    "noise": GIVEN,
    NONE: NOTHING,
}


@functools.partial(jax.jit, static_argnames="system")
def _listen(
    system: System,
    agents: Mapping[str, Agent],
    channel: Channel,
    prompts: Prompts,
    intervention: Intervention,
    *,
    rounds: jax.Array,
) -> recursion.Outcome:
    """One program for all conditions: the messages are data."""
    return recursion.listen(
        system, agents, channel, prompts, rounds=rounds, intervention=intervention
    )


@functools.partial(jax.jit, static_argnames=("system", "rounds"))
def _own(
    system: System,
    agents: Mapping[str, Agent],
    channel: Channel,
    prompts: Prompts,
    *,
    rounds: int,
) -> dict[str, jax.Array]:
    stages = begin(system, agents, channel, prompts)
    return own_messages(stages, rounds=rounds)


def audit(
    team: Team,
    links: Links,
    benchmarks: Sequence[LoadedBenchmark],
    directory: str | Path,
    declared: Mapping[str, Any],
    *,
    batch_size: int,
    links_digest: str = "",
    progress: bool = True,
) -> list[ResultRow]:
    """Measures all declared conditions and seeds on all splits; skips those in `directory`.

    Args:
      team: the system, its agents and tokenizers; latent steps M of at least 1.
      links: parameters of the links.
      benchmarks: the questions.
      directory: of the audit's files.
      declared: the protocol, from `audit_protocol.protocol`.
      batch_size: B; items that do not count fill up the last batch.
      links_digest: identifies the links.
      progress: whether to show a bar.

    Raises:
      ConfigError: the folder holds another protocol, or measurements of other links; see also
        `check_audit`.
      PreemptedError: after SIGTERM; finished items stay.
      NonFiniteError: an agent's numbers are NaN or infinite.
    """
    system = team.system
    check_audit(declared["messages"], benchmarks, latent_steps=system.latent_steps)
    links = put_whole(links, team.mesh)
    for benchmark in benchmarks:
        check_items(benchmark, methods=(), batch_size=batch_size)
    files = AuditFiles(Path(directory))
    declare(files, declared)
    bind_links(files, links_digest)
    record = open_record(files.root)
    rounds = declared["rounds"]
    chosen = [Condition(**condition) for condition in declared["conditions"].values()]
    pending = {
        (benchmark, split): missing
        for benchmark in benchmarks
        for split in benchmark.splits
        if (
            missing := {
                key: condition
                for seed in declared["seeds"][benchmark.name]
                for condition in chosen
                for key in [Measurement(str(condition), rounds, benchmark.name, split, seed)]
                if not record.has(key)
            }
        )
    }
    total = sum(
        (len(missing) * benchmark.answering.rollouts + 1)
        * len(benchmark.batches(split, batch_size))
        for (benchmark, split), missing in pending.items()
    )
    with tqdm(total=total, disable=not progress, unit="batch") as bar:
        for (benchmark, split), missing in pending.items():
            answerer = Answerer(team, links, METHODS[LATENT], rounds, benchmark.answering)
            found = benchmark.batches(split, batch_size)
            prompts = encode_batches(
                team, benchmark, split, found, benchmark.prompts, slot_width=system.latent_steps
            )
            bar.set_description(f"messages of {benchmark.name} {split}")
            recording = record_messages(answerer, prompts, benchmark.splits[split], found)
            bar.update(len(found))
            for key, condition in missing.items():
                messages = recording.messages(condition, seed=key.seed)
                bar.set_description(str(key))
                listen = functools.partial(_listened, answerer, prompts, messages, condition)
                measure(record, key, benchmark, answerer, listen, batch_size=batch_size, bar=bar)
    return record.rows


@dataclasses.dataclass(frozen=True, eq=False)
class Recording:
    """The messages of all items of a split, on the host; edge name -> [R, N, M, D']."""

    true: Mapping[str, np.ndarray]
    own: Mapping[str, np.ndarray]
    items: Sequence[Example]

    def messages(self, condition: Condition, *, seed: int) -> Mapping[str, np.ndarray]:
        """The messages that arrive in a condition; without one, or where it is true: any."""
        match condition.message:
            case "zeros":
                return zero_messages(self.true)
            case "noise":
                return noise_messages(self.true, seed=seed)
            case "own":
                return self.own
            case "other":
                return other_messages(
                    self.true, senders_of(self.items, seed=seed, draw=condition.draw)
                )
        return self.true


def _channel(answerer: Answerer) -> Channel:
    if (channel := answerer.channel) is None:
        raise ValueError(f"the method {answerer.method.name} must pass vectors over its edges")
    return channel


def record_messages(
    answerer: Answerer,
    prompts: Mapping[int, Prompts],
    items: Sequence[Example],
    found: Sequence[Batch],
) -> Recording:
    """Runs all items once; keeps every message of every edge and round, and receivers' own ones.

    Args:
      answerer: the team, and its channel.
      prompts: of the batches, by the place of the first item.
      items: of the split.
      found: its batches.
    """
    team, system, channel = answerer.team, answerer.system, _channel(answerer)
    rounds = answerer.rounds
    crossed, thought = [], []
    for rows, kept in found:
        batch = put_batch(prompts[int(rows[0])], team.mesh)
        trace = trace_rounds(system, team.agents, channel, batch, rounds=rounds)
        arrived = arrived_messages(system.topology, trace.stages, rounds=rounds)
        crossed.append({name: vectors[:, :kept] for name, vectors in arrived.items()})
        own = to_host(_own(system, team.agents, channel, batch, rounds=rounds))
        thought.append({name: np.asarray(vectors)[:, :kept] for name, vectors in own.items()})
    # Batches are in running order, messages in that of the split.
    places = np.argsort(np.concatenate([rows[:kept] for rows, kept in found]))

    def whole(parts: Sequence[Mapping[str, np.ndarray]], name: str) -> np.ndarray:
        return np.concatenate([part[name] for part in parts], axis=1)[:, places]

    names = [edge_name(edge) for edge in system.topology.edges]
    found_own = {name: whole(thought, name) for name in names}
    true = {
        # Of a single round there is no feedback, and nobody reads it.
        name: whole(crossed, name) if name in crossed[0] else np.zeros_like(found_own[name])
        for name in names
    }
    return Recording(true, found_own, items)


def _listened(
    answerer: Answerer,
    prompts: Mapping[int, Prompts],
    messages: Mapping[str, np.ndarray],
    condition: Condition,
    rows: np.ndarray,
) -> Listened:
    """The answerer's input for rows of a split, with their messages of a condition."""
    team, rounds = answerer.team, answerer.rounds
    system = team.system
    names = [edge_name(edge) for edge in system.topology.edges]
    here = {
        name: jnp.array([condition.replaces(name, index) for index in range(rounds)])
        for name in names
    }
    nowhere = {name: jnp.zeros(rounds, bool) for name in names}
    is_absent = condition.message == NONE
    intervention = Intervention(
        {name: jnp.asarray(messages[name][:, rows]) for name in names},
        nowhere if is_absent else here,
        here if is_absent else nowhere,
    )
    batch = prompts[int(rows[0])]
    outcome = _listen(
        system,
        team.agents,
        _channel(answerer),
        put_batch(batch, team.mesh),
        intervention,
        rounds=rounds,
    )
    if fault := earliest_fault(system.topology.order, to_host(outcome.fault)):
        raise fault.error()

    def origin(edge: str, index: int) -> str:
        return ORIGINS[condition.message] if condition.replaces(edge, index) else SENT

    flops = latent_flops(system, team.agents, batch, rounds=rounds, origin=origin)
    steps = steps_before_answer(system.topology, rounds, system.latent_steps, origin)
    hashes = prompt_hashes(batch[answerer.answers_as], outcome.prompt)
    return Listened(outcome.prompt, 0, steps, flops, prompt_hashes=hashes)
