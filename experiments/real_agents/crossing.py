"""Which link loses a word: whether the nearest token is still the right one.

    python -m experiments.real_agents.crossing --out runs/real_agents/crossing \\
        --links runs/real_agents/runs/hops-0/links/aligned.safetensors

Agents read their texts of validation questions, with the senders' texts in the slots. The state
before a token is a thought that is to mean it. An inner link is right if the token nearest to its
outcome (by the angle), of all tokens of the agent, is the one meant, an outer link if it is the
same one of all tokens of the receiver. Three things pass: a thought the inner link, a thought both,
and the token's own embedding the outer one alone. Nothing is rolled out, so that no error adds to
another. Tokens in role texts that the inner loop has read stand apart from the others, which it may
have read in lists (`inner.lists`). Only those count that sender and receiver share, and not the end
of a text. Intervals are over different tokens, as what becomes of one is alike in all texts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from experiments.real_agents.options import (
    add_numbers,
    configured,
    digests,
    links_of_seeds,
    measured,
    measurement_parser,
    rows_of_earlier,
    settings_of,
    write_report,
)
from rmas_jax.agents.nearest_tokens import nearest_tokens
from rmas_jax.config import ConfigError
from rmas_jax.data import Example
from rmas_jax.evaluation.metrics import repeated_interval
from rmas_jax.host.command_line import Parser
from rmas_jax.links import Links, apply_link
from rmas_jax.reporting.table import Table
from rmas_jax.runs.resolve import resolve
from rmas_jax.team import Team
from rmas_jax.topology import edge_name
from rmas_jax.training.data.encoding import Dialogues, encode_dialogues
from rmas_jax.training.inner.loop import counterpart_ids
from rmas_jax.training.states.token_states import TokenStates, text_states

REPORT = "crossing.json"
CONFIG = "experiments/configs/real_agents/split_evidence.yaml"
INNER, BOTH, OUTER = "the inner link", "both links", "the outer link alone"
SEEN, NEW = "in a text of training", "in none"


def rows(
    team: Team,
    links: Sequence[Links],
    trained: Mapping[str, Dialogues],
    validation: Mapping[str, Dialogues],
) -> Iterator[dict[str, Any]]:
    """Rows for each edge, way through its links, group of tokens and links."""
    for edge in team.system.topology.edges:
        sender = edge[0]
        end = team.members[sender].end_tokens[0]
        states = text_states(team, sender, validation[sender], progress=True)
        own = states.ids[states.learned]
        known = np.isin(own, trained[sender].text_ids)
        theirs = counterpart_ids(team, edge)[own]
        counted = (own != end) & (theirs >= 0)
        for number, of in enumerate(links):
            for way, where, ids, vectors in crossed(team, edge, of, states, theirs):
                for tokens, group in ((SEEN, known & counted), (NEW, ~known & counted)):
                    if group.any():
                        yield {
                            "edge": edge_name(edge),
                            "after": way,
                            "tokens": tokens,
                            "links": number,
                            **score(team, where, vectors[group], ids[group]),
                        }


def crossed(
    team: Team, edge: tuple[str, str], links: Links, states: TokenStates, theirs: np.ndarray
) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """Ways through an edge's links: name, role of the outcome, ids meant [n], vectors [n, D].

    `theirs` are the receiver's ids of the tokens meant; below 0, the vectors mean nothing.
    """
    sender, receiver = edge
    system, name = team.system, edge_name(edge)
    own = states.ids[states.learned]
    hidden = jnp.asarray(states.take(states.learned))
    thought = apply_link(system.inner[sender], links.inner[sender], hidden)
    sent = thought if system.sent_vectors == "outer_of_inner" else hidden
    yield INNER, sender, own, np.asarray(thought)
    for way, vectors in ((BOTH, sent), (OUTER, team.agents[sender].embed(jnp.asarray(own)))):
        arrived = apply_link(system.outer[name], links.outer[name], vectors)
        yield way, receiver, theirs, np.asarray(arrived)


def score(team: Team, role: str, vectors: np.ndarray, ids: np.ndarray) -> dict[str, Any]:
    """How many of vectors [n, D] in a role's input space have the right nearest token."""
    agent = team.agents[role]
    nearest, _ = nearest_tokens(agent, vectors, count=1)
    is_right = np.asarray(nearest)[:, 0] == ids
    _, token, counts = np.unique(ids, return_inverse=True, return_counts=True)
    interval = repeated_interval(np.bincount(token, weights=is_right), counts)
    meant = agent.embed(jnp.asarray(ids))
    cosine = optax.cosine_similarity(jnp.asarray(vectors), meant, epsilon=1e-8)
    return {
        "n": len(ids),
        "different": len(counts),
        "right": float(is_right.mean()),
        "interval": list(interval),
        "cosine": float(cosine.mean()),
    }


def table_of(found: Sequence[Mapping[str, Any]]) -> Table:
    """The rows as a table."""
    cells = []
    for row in found:
        low, high = (100 * x for x in row["interval"])
        cells.append(
            (
                row["edge"],
                row["after"],
                row["tokens"],
                str(row["links"]),
                str(row["n"]),
                str(row["different"]),
                f"{100 * row['right']:.1f} [{low:.1f}, {high:.1f}]",
                f"{row['cosine']:.3f}",
            )
        )
    return Table(
        "Tokens of validation texts whose nearest one is right, in %",
        ("edge", "after", "token", "links", "tokens", "different", "right", "mean cosine"),
        tuple(cells),
        text_columns=4,
    )


def measure(args: argparse.Namespace) -> None:
    """Measures, prints the table and writes the rows."""
    config, _ = configured(args)
    settings = settings_of(args, config, "items") | {"links": digests(args.links)}
    if (there := rows_of_earlier(args.out / REPORT, settings)) is not None:
        print(table_of(there).to_markdown())
        return
    resolved = resolve(config, validation_items=args.items)
    team = resolved.team
    if (there := len(resolved.validation)) < args.items:
        raise ConfigError(f"--items must be at most {there}, all of validation, got {args.items}")

    def dialogues(examples: Sequence[Example]) -> dict[str, Dialogues]:
        topology, rounds = team.system.topology, config.system.rounds
        return {
            role: encode_dialogues(examples, member, topology=topology, rounds=rounds)
            for role, member in team.members.items()
        }

    read = dialogues(list(resolved.train[: config.inner.items]))
    held_out = dialogues(resolved.validation)
    found = [*rows(team, links_of_seeds(team, config, args.links), read, held_out)]
    write_report(args.out / REPORT, {"settings": settings, "rows": found})
    print(table_of(found).to_markdown())


def parser() -> Parser:
    """The command line."""
    out = measurement_parser(__doc__)
    out.set_defaults(config=CONFIG)
    out.add_argument("--links", nargs="+", required=True, metavar="FILE", help="of a run, per seed")
    add_numbers(out, ("items", 64, "validation questions"))
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and writes the report; returns the exit code of a run."""
    args = parser().parse_args(arguments)
    return measured(args, measure)


if __name__ == "__main__":
    sys.exit(main())
