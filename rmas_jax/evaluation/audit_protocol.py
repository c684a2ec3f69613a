"""What an audit measures, declared and hashed before anything is measured."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rmas_jax.config import AuditConfig, ConfigError
from rmas_jax.data.examples import Example
from rmas_jax.evaluation.driver import LoadedBenchmark
from rmas_jax.host.atomic import write_atomic
from rmas_jax.host.processes import broadcast_from_first
from rmas_jax.rounds.messages import other_items
from rmas_jax.run_files import AuditFiles
from rmas_jax.topology import Topology, edge_name

TRUE, NONE, OTHER = "true", "none", "other"


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
        if scope == "cell" and message != OTHER:
            continue
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
    seed: int,
    links_digest: str,
) -> dict[str, Any]:
    """All that is fixed before anything is measured."""
    return {
        **dataclasses.asdict(config),
        "rounds": rounds,
        "seed": seed,
        "links": links_digest,
        "benchmarks": {
            b.name: {"versions": b.versions, "items": {s: len(i) for s, i in b.splits.items()}}
            for b in benchmarks
        },
        "conditions": {str(c): c._asdict() for c in conditions(config, topology, rounds=rounds)},
        "decision": (
            "Content is used on a split if the interval of the content-attributable gain, over all "
            f"edges and rounds, lies above {config.margin}. Edges, rounds and cells are families: "
            "their p-values are corrected by Holm's method."
        ),
    }


def declare(files: AuditFiles, declared: Mapping[str, Any]) -> str:
    """Writes the protocol, before anything is measured; returns its SHA-256.

    Raises:
      ConfigError: the folder holds another protocol.
    """
    text = json.dumps(declared, indent=1, sort_keys=True) + "\n"

    def write() -> None:
        files.root.mkdir(parents=True, exist_ok=True)
        if not files.protocol.exists():
            write_atomic(files.protocol, text)
        elif files.protocol.read_text(encoding="utf-8") != text:
            raise ConfigError(
                f"evaluation.audit: {files.protocol} declares another audit (configuration, links "
                "or questions), and was declared before its measurements; choose another name for "
                "the run (--set name=...)"
            )

    broadcast_from_first(write)
    return hashlib.sha256(text.encode()).hexdigest()


def senders_of(items: Sequence[Example], *, seed: int, draw: int) -> np.ndarray:
    """For each item, the other one whose messages arrive in a draw: [N]."""
    questions, answers = [item.question for item in items], [item.answer for item in items]
    return other_items(questions, answers, seed=(seed, draw))


def check_audit(
    config: AuditConfig, benchmarks: Sequence[LoadedBenchmark], *, latent_steps: int, seed: int
) -> None:
    """Checks that an audit can be run; before any training.

    Raises:
      ConfigError: several processes, no latents, or an item without another one of other question
        and gold answer.
    """
    if jax.process_count() > 1:
        raise ConfigError("evaluation.audit must be null in several processes")
    if not latent_steps:
        raise ConfigError("evaluation.audit must be null where system.latent_steps is 0")
    for benchmark in benchmarks if OTHER in config.messages else ():
        for split, items in benchmark.splits.items():
            try:
                senders_of(items, seed=seed, draw=0)
            except ValueError as error:
                raise ConfigError(
                    f"evaluation.audit: {benchmark.name} {split}: {error}; leave other out of "
                    "evaluation.audit.messages, or take more items"
                ) from None
