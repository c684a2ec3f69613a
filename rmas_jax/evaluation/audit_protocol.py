"""What an audit measures, declared and hashed before anything is trained or measured.

declare (a run's start) --> training --> evaluation --> bind_links --> measurements, report
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rmas_jax.config import AuditConfig, ConfigError
from rmas_jax.data.examples import Example
from rmas_jax.evaluation.comparisons import MIN_SEEDS
from rmas_jax.evaluation.driver import LoadedBenchmark
from rmas_jax.host.atomic import write_atomic
from rmas_jax.host.processes import broadcast_from_first
from rmas_jax.rounds.messages import other_items
from rmas_jax.run_files import AuditFiles
from rmas_jax.topology import Topology, edge_name

TRUE, NONE, OTHER, NOISE = "true", "none", "other", "noise"


class Condition(NamedTuple):
    """What arrives, and where."""

    message: str  # TRUE or of `config.audit.MESSAGES`
    edge: str | None = None  # name of the only edge; None: all
    round: int | None = None  # the only round, from 1; None: all
    draw: int = 0  # of other items

    def __str__(self) -> str:
        """The name in results: `other.1 planner->critic round 2`."""
        parts = [f"{self.message}.{self.draw}" if self.message == OTHER else self.message]
        parts += [self.edge] if self.edge else []
        parts += [f"round {self.round}"] if self.round else []
        return " ".join(parts)

    def replaces(self, edge: str, index: int) -> bool:
        """Whether another message than the true one arrives on an edge in a round, from 0."""
        is_here = self.edge in (None, edge) and self.round in (None, index + 1)
        return self.message != TRUE and is_here


def conditions(config: AuditConfig, topology: Topology, *, rounds: int) -> list[Condition]:
    """The conditions of an audit; cells into which nothing arrives are left out."""
    edges = [edge_name(edge) for edge in topology.edges]
    feedback = {edge_name(edge) for edge in topology.feedback_edges}
    numbers = range(1, rounds + 1)
    cells = [(e, r) for e in edges for r in numbers if r > 1 or e not in feedback]
    places: dict[str, list[tuple[str | None, int | None]]] = {
        "all": [(None, None)],
        "edge": [(edge, None) for edge in edges if rounds > 1 or edge not in feedback],
        "round": [(None, number) for number in numbers],
        "cell": list(cells),
    }
    found = [Condition(TRUE)]
    for scope, message in itertools.product(config.scopes, config.messages):
        for place in places[scope]:
            draws = config.draws if message == OTHER else 1
            found += [Condition(message, *place, draw) for draw in range(draws)]
    return found


def protocol(
    config: AuditConfig,
    benchmarks: Sequence[LoadedBenchmark],
    topology: Topology,
    *,
    rounds: int,
    seeds: Sequence[int],
    links_from: str = "",
) -> dict[str, Any]:
    """All that is fixed before anything is trained or measured.

    Args:
      config: of the audit.
      benchmarks: the questions.
      topology: of the team.
      rounds: R.
      seeds: of other items, noise and drawn answers; greedy answers are alike for all, so that
        their benchmarks have the first one alone.
      links_from: a digest of all that the links follow from.
    """
    return {
        **dataclasses.asdict(config),
        "rounds": rounds,
        "links_from": links_from,
        "seeds": {b.name: list(b.seeds(seeds)) for b in benchmarks},
        "benchmarks": {
            b.name: {"versions": b.versions, "items": {s: len(i) for s, i in b.splits.items()}}
            for b in benchmarks
        },
        "conditions": {str(c): c._asdict() for c in conditions(config, topology, rounds=rounds)},
        "decision": (
            "Content is used on a split if the interval of the content-attributable gain, over all "
            f"edges and rounds, lies above {config.margin}. It is an interval over questions, and "
            f"from {MIN_SEEDS} seeds on over questions and seeds. Edges, rounds and cells are "
            "families: their p-values are corrected by Holm's method."
        ),
    }


def protocol_text(declared: Mapping[str, Any]) -> str:
    """The file of a protocol, whose SHA-256 reports name."""
    return json.dumps(declared, indent=1, sort_keys=True) + "\n"


def declare(files: AuditFiles, declared: Mapping[str, Any]) -> str:
    """Writes the protocol, if there is none; returns its SHA-256.

    Raises:
      ConfigError: the folder holds another protocol.
    """
    text = protocol_text(declared)
    _write_once(files.protocol, text, "declares another audit (configuration, questions or seeds)")
    return hashlib.sha256(text.encode()).hexdigest()


def bind_links(files: AuditFiles, digest: str) -> None:
    """Notes the links that are measured, if none are.

    Raises:
      ConfigError: conditions were measured with others.
    """
    _write_once(files.links, f"{digest}\n", "names other links than the present ones")


def _write_once(path: Path, text: str, fault: str) -> None:
    def write() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_atomic(path, text)
        elif path.read_text(encoding="utf-8") != text:
            raise ConfigError(
                f"evaluation.audit: {path} {fault}; choose another name for the run "
                "(--set name=...)"
            )

    broadcast_from_first(write)


def senders_of(items: Sequence[Example], *, seed: int, draw: int) -> np.ndarray:
    """For each item, the other one whose messages arrive in a draw: [N]."""
    questions, answers = [item.question for item in items], [item.answer for item in items]
    return other_items(questions, answers, seed=(seed, draw))


def check_audit(
    messages: Collection[str], benchmarks: Sequence[LoadedBenchmark], *, latent_steps: int
) -> None:
    """Checks that an audit can be run; before any training.

    Raises:
      ConfigError: several processes; no latents; an item without another one of other question and
        gold answer; noise, and a single item.
    """
    if jax.process_count() > 1:
        raise ConfigError("evaluation.audit must be null in several processes")
    if not latent_steps:
        raise ConfigError("evaluation.audit must be null where system.latent_steps is 0")
    for benchmark in benchmarks:
        for split, items in benchmark.splits.items():
            try:
                if OTHER in messages:
                    senders_of(items, seed=0, draw=0)
                if NOISE in messages and len(items) < 2:
                    raise ValueError(f"items must be at least 2 for the moments of {NOISE}, got 1")
            except ValueError as error:
                raise ConfigError(
                    f"evaluation.audit: {benchmark.name} {split}: {error}; choose splits with "
                    f"other questions and answers, or leave {OTHER} and {NOISE} out of "
                    "evaluation.audit.messages"
                ) from None
