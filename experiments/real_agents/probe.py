"""What of a message lies in its sender's thoughts: a linear probe for each entity.

    python -m experiments.real_agents.probe --out docs/real-agents/curve \\
        --links SEED_0/links/aligned.safetensors SEED_1/links/aligned.safetensors \\
        --set system.agents.planner=DIR --set system.agents.solver=DIR

--links has links of each seed, as for `curve`. A ridge regression maps the planner's
thoughts of training items, all M together and the first one alone, to the embedding of each entity
of its message; on items of other entities, the item's own entity must then be the nearest of those
of its kind. What a probe does not find, links that map thought by thought do not find either:
where it fails, the message is not in what the frozen sender sends; where it succeeds while the team
fails, it is lost on the way, or in the receiver (`free_vectors`).
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from experiments.real_agents.options import (
    add_numbers,
    check_batch,
    check_unknown,
    configured,
    digests,
    links_of_seeds,
    measured,
    measurement_parser,
    rows_of_earlier,
    settings_of,
    with_steps,
    write_report,
)
from rmas_jax.agents.agent import Agent
from rmas_jax.config import EvidenceConfig
from rmas_jax.data import evidence
from rmas_jax.evaluation.metrics import wilson_interval
from rmas_jax.links import Links
from rmas_jax.models.plain_text import encode_plain
from rmas_jax.prompts import FIRST, StagePrompt, exact_width, take
from rmas_jax.rounds.channels import LatentChannel
from rmas_jax.rounds.stages import arrivals, begin, no_feedback, think_turn
from rmas_jax.team import Team, load_team
from rmas_jax.topology import System

REPORT = "probe.json"
RIDGES = tuple(10.0**k for k in range(-3, 4))  # times the mean square of a feature; by validation


class Probed(NamedTuple):
    """Items of a split, and what their sender thinks."""

    thoughts: np.ndarray  # [n, M, D]
    entities: (
        np.ndarray
    )  # [n, pairs, 2, E] embeddings of persons and places, in the message's order


def probed(
    team: Team,
    links: Links,
    dials: EvidenceConfig,
    split: str,
    *,
    items: int,
    batch: int,
    seed: int,
) -> Probed:
    """Thoughts of the planner in the first round, with these links.

    Args:
      team: the system.
      links: of the planner.
      dials: of data of a planner that does not know the question.
      split: whose entities are drawn.
      items: n.
      batch: items that are read at once, a divisor of n.
      seed: of the items.
    """
    made = [
        evidence.make_item(dials, np.random.default_rng([seed, number]), split)
        for number in range(items)
    ]
    fields = [{f"evidence_{role}": item.evidence[role] for role in evidence.ROLES} for item in made]
    questions = [
        of | {"question": evidence.question_of(dials, item)}
        for of, item in zip(fields, made, strict=True)
    ]
    prompts = team.encode(questions, block_width=exact_width)
    found = []
    for start in tqdm(range(0, items, batch), desc=split):
        rows = np.arange(start, start + batch)
        own = thoughts_of(team.system, team.agents, links, take(prompts, rows))
        found.append(np.asarray(own))
    member = team.members[evidence.PLANNER]
    vector = functools.partial(entity_vector, member.agent, member.tokenizer)
    return Probed(
        np.concatenate(found),
        np.stack([[[vector(name) for name in pair] for pair in item.pairs] for item in made]),
    )


@functools.partial(jax.jit, static_argnums=0)
def thoughts_of(
    system: System, agents: Mapping[str, Agent], links: Links, prompts: Mapping[str, StagePrompt]
) -> jax.Array:
    """The planner's thoughts [B, M, D] in the first round, in float32."""
    stages = begin(system, agents, LatentChannel(system, links), prompts)
    inbox = no_feedback(system, agents, prompts)
    arrived = arrivals(stages, inbox, evidence.PLANNER, index=0)
    return think_turn(stages, evidence.PLANNER, arrived, kind=FIRST).thoughts.astype(jnp.float32)


def entity_vector(agent: Agent, tokenizer: Any, name: str) -> np.ndarray:
    """The mean embedding [E] of the tokens of an entity inside a text."""
    [ids] = encode_plain(tokenizer, [f" {name}"])
    return np.asarray(agent.embed(jnp.asarray([ids]))[0].mean(0), np.float32)


def predictions(
    train: np.ndarray, targets: np.ndarray, others: Sequence[np.ndarray], ridge: float
) -> list[np.ndarray]:
    """Ridge regression of targets [n, ...] on standardised features [n, F], for other features.

    Predictions are differences to the mean target.
    """
    mean, scale = train.mean(0), train.std(0) + 1e-6
    x, flat = (train - mean) / scale, (targets - targets.mean(0)).reshape(len(targets), -1)
    gram = x.T @ x + ridge * len(x) * np.eye(x.shape[1], dtype=x.dtype)
    weights = np.linalg.solve(gram, x.T @ flat)
    return [((other - mean) / scale @ weights).reshape(-1, *targets.shape[1:]) for other in others]


def nearest_is_own(predicted: np.ndarray, entities: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Whether a predicted entity is nearest to the item's own one, of those of its kind.

    Args:
      predicted: [n, pairs, 2, E], differences to the mean.
      entities: [n, pairs, 2, E].
      mean: [pairs, 2, E], that of training.

    Returns:
      [n, pairs, 2] bool; nearest by cosine.
    """
    candidates = entities[:, None] - mean[None, :, None]  # as predicted for one place of a message
    norms = np.linalg.norm(candidates, axis=-1) + 1e-9
    cosines = np.einsum("npke,npcke->npck", predicted, candidates) / norms
    pairs = np.arange(entities.shape[1])
    return np.argmax(cosines, axis=2) == pairs[None, :, None]


def found_shares(
    train: Probed, validation: Probed, test: Probed, features: Sequence[int]
) -> np.ndarray:
    """The share of test items [pairs, 2] in which an entity is found in thoughts of these numbers.

    The ridge of each entity is the best on validation.
    """
    x, *others = (
        of.thoughts[:, features].reshape(len(of.thoughts), -1) for of in (train, validation, test)
    )
    mean = train.entities.mean(0)
    by_ridge = []
    for ridge in RIDGES:
        predicted = predictions(x, train.entities, others, ridge)
        by_ridge.append(
            [
                nearest_is_own(own, of.entities, mean).mean(0)
                for own, of in zip(predicted, (validation, test), strict=True)
            ]
        )
    on_validation, on_test = np.moveaxis(np.array(by_ridge), 1, 0)
    best = np.argmax(on_validation, axis=0)
    return np.take_along_axis(on_test, best[None], axis=0)[0]


def measure(args: argparse.Namespace) -> None:
    """Writes what the thoughts with the links of each seed hold, unless the report is there."""
    config, dials = configured(args)
    check_unknown(dials)
    settings = settings_of(args, config, "count", "items", "held_out", "seed")
    settings["links"] = digests(args.links)
    if rows_of_earlier(args.out / REPORT, settings) is not None:
        return
    team = load_team(with_steps(config, args.count).system)
    of_splits = {"train": args.items, "validation": args.held_out, "test": args.held_out}
    rows = []
    for seed, links in enumerate(links_of_seeds(team, config, args.links)):
        train, validation, test = (
            probed(team, links, dials, split, items=items, batch=args.batch, seed=args.seed)
            for split, items in of_splits.items()
        )
        for which, features in (("all", range(args.count)), ("first", range(1))):
            shares = found_shares(train, validation, test, list(features))
            for pair, kind in np.ndindex(*shares.shape):
                share, n = float(shares[pair, kind]), args.held_out
                rows.append(
                    {
                        "seed": seed,
                        "latent_steps": args.count,
                        "thoughts": which,
                        "pair": pair,
                        "entity": ("person", "place")[kind],
                        "n": n,
                        "chance": 1 / shares.shape[0],
                        "share": share,
                        "interval": list(wilson_interval(round(share * n), n)),
                    }
                )
                print(json.dumps(rows[-1]), flush=True)
    write_report(args.out / REPORT, {"settings": settings, "rows": rows})


def main(arguments: Sequence[str] | None = None) -> int:
    """Probes the thoughts and writes the result; returns the exit code of a run."""
    parser = measurement_parser(__doc__)
    parser.add_argument("--links", nargs="+", required=True, metavar="FILE", help="of each seed")
    add_numbers(
        parser,
        ("count", 4, "M"),
        ("items", 2048, "of training"),
        ("held-out", 256, "of each other split"),
        ("batch", 32, "items read at once, a divisor of both numbers"),
        ("seed", 0, "of the items"),
    )
    args = parser.parse_args(arguments)
    check_batch(parser, args, "items", "held-out")
    return measured(args, measure)


if __name__ == "__main__":
    sys.exit(main())
