"""Which persons and places cross an outer link: whether the nearest token is still the right one.

    python -m experiments.real_agents.crossing --out runs/split_evidence/crossing \\
        --links runs/split-evidence-0/links/aligned.safetensors

The embedding of a token goes through the link; right is where the token nearest to the outcome (by
the angle), of all of the receiver's, is the same one. It is what a link alone loses, of a thought
that is right: nothing is read, no agent runs. Counted are entities that are a single token in both
vocabularies, as a message has them (a place after "the", a person alone), of training and of
validation. Beside the links of files stand those that training starts from.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.real_agents.options import (
    configured,
    digests,
    links_of_seeds,
    measured,
    measurement_parser,
    settings_of,
    write_report,
)
from rmas_jax.agents.nearest_tokens import nearest_tokens
from rmas_jax.data.evidence import pool
from rmas_jax.evaluation.metrics import wilson_interval
from rmas_jax.host.command_line import Parser
from rmas_jax.links import Links, apply_link
from rmas_jax.models.plain_text import encode_plain
from rmas_jax.reporting.table import Table
from rmas_jax.team import Team, load_team, start_links
from rmas_jax.topology import edge_name

REPORT = "crossing.json"
CONFIG = "experiments/configs/real_agents/split_evidence.yaml"
ENTITIES = {"words": " {}", "persons": "{}"}  # kind -> as a message has one
SPLITS = ("train", "validation")
START = "start"


def rows(team: Team, links: Mapping[str, Links]) -> Iterator[dict[str, Any]]:
    """A row for each of some links by name, edge, kind of entity and split."""
    for edge in team.system.topology.edges:
        sender, receiver = (team.agents[role] for role in edge)
        name = edge_name(edge)
        for kind, split in itertools.product(ENTITIES, SPLITS):
            ids = shared_entities(team, edge, kind, split)
            if not len(ids):
                continue
            source = sender.embed(jnp.asarray(ids[:, 0]))
            target = receiver.embed(jnp.asarray(ids[:, 1]))
            for label, of in links.items():
                arrived = apply_link(team.system.outer[name], of.outer[name], source)
                nearest, _ = nearest_tokens(receiver, arrived, count=1)
                right = int((np.asarray(nearest)[:, 0] == ids[:, 1]).sum())
                yield {
                    "edge": name,
                    "kind": kind,
                    "split": split,
                    "links": label,
                    "entities": len(pool(kind, split)),
                    "n": len(ids),
                    "right": right / len(ids),
                    "interval": list(wilson_interval(right, len(ids))),
                    "cosine": float(optax.cosine_similarity(arrived, target).mean()),
                }


def shared_entities(team: Team, edge: tuple[str, str], kind: str, split: str) -> np.ndarray:
    """Ids [n, 2] of entities that are one token for both sender and receiver."""
    texts = [ENTITIES[kind].format(entity) for entity in pool(kind, split)]
    both = zip(
        *(encode_plain(team.members[role].tokenizer, texts) for role in edge),
        strict=True,
    )
    found = [(one[0], other[0]) for one, other in both if len(one) == len(other) == 1]
    return np.array(found, np.int64).reshape(-1, 2)


def table_of(found: Sequence[Mapping[str, Any]]) -> Table:
    """The rows as a table."""
    cells = []
    for row in found:
        low, high = (100 * x for x in row["interval"])
        cells.append(
            (
                row["edge"],
                row["kind"],
                row["split"],
                row["links"],
                f"{row['n']} of {row['entities']}",
                f"{100 * row['right']:.1f} [{low:.1f}, {high:.1f}]",
                f"{row['cosine']:.3f}",
            )
        )
    return Table(
        "Entities whose nearest token is right after the link, in %",
        ("edge", "entities", "split", "links", "one token in both", "right", "mean cosine"),
        tuple(cells),
        text_columns=4,
    )


def measure(args: argparse.Namespace) -> None:
    """Measures, prints the table and writes the rows."""
    config, _ = configured(args)
    settings = settings_of(args, config) | {"links": digests(args.links)}
    team = load_team(config.system)
    started = start_links(team, start=config.system.outer_start, key=jax.random.key(config.seed))
    links = {START: started}
    for number, of in enumerate(links_of_seeds(team, config, args.links)):
        links[f"file {number}"] = of
    found = [*rows(team, links)]
    write_report(args.out / REPORT, {"settings": settings, "rows": found})
    print(table_of(found).to_markdown())


def parser() -> Parser:
    """The command line."""
    out = measurement_parser(__doc__)
    out.set_defaults(config=CONFIG)
    out.add_argument("--links", nargs="+", required=True, metavar="FILE", help="of a run, per seed")
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and writes the report; returns the exit code of a run."""
    args = parser().parse_args(arguments)
    return measured(args, measure)


if __name__ == "__main__":
    sys.exit(main())
