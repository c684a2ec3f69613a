"""What M vectors can tell the frozen solver at least, without a sender.

    python -m experiments.real_agents.free_vectors --out docs/real-agents/curve \\
        --steps 1 2 4 8 --set system.agents.solver=DIR

For every item, M vectors in the solver's slot are fitted by gradient descent to its questions: who
of the item's persons is asked about varies, and so do the codes of the places, which are drawn anew
several times. Accuracy is over further draws of the codes: vectors that held codes in place of who
is where would be wrong there. What they reach, the solver can read: what links lack of it is in the
sender and the links. It is no upper bound: more steps, or another start, may reach more. M that are
in the report already are not repeated.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from experiments.real_agents.options import (
    add_numbers,
    at_least,
    check_unknown,
    configured,
    measured,
    measurement_parser,
    rows_of_earlier,
    settings_of,
    with_steps,
    write_report,
)
from rmas_jax.agents.agent import Agent
from rmas_jax.agents.reading import read_prefix
from rmas_jax.config import EvidenceConfig
from rmas_jax.data import evidence
from rmas_jax.data.examples import Example
from rmas_jax.evaluation.metrics import repeated_interval
from rmas_jax.models import Cache
from rmas_jax.models.plain_text import encode_plain
from rmas_jax.prompts import FIRST
from rmas_jax.rounds.stages import prompt_input
from rmas_jax.rounds.supervision import Targets, TextScore, read_with_text, score_text
from rmas_jax.team import Team, load_team
from rmas_jax.training.data.encoding import TrainingData, encode_examples

REPORT = "free_vectors.json"
OPTIONS = ("items", "draws", "held_out", "optimizer_steps", "seed", "rate")


class Questions(NamedTuple):
    """All questions of some items, with several draws of the codes."""

    examples: list[Example]  # by item, draw and person
    shape: tuple[int, int, int]  # items, draws, persons


def questions(
    dials: EvidenceConfig, *, seed: int, items: int, draws: int = 1, split: str = "validation"
) -> Questions:
    """Questions about every person of items of a split's entities, for each draw of the codes.

    Raises:
      ConfigError: the planner knows the question, so that its message holds one answer alone.
    """
    check_unknown(dials)
    found = []
    for number in range(items):
        rng = np.random.default_rng([seed, number])
        item = evidence.make_item(dials, rng, split)
        persons, places, _ = item.layers
        for _ in range(draws):
            codes = rng.permutation(evidence.pool("numbers", split))[: len(places)].tolist()
            order = rng.permutation(len(places))
            phrases = [evidence.PHRASES[dials.crossing].format(place) for place in places]
            facts = " ".join(evidence.CODE.format(phrases[i], codes[i]) for i in order)
            for i in range(len(persons)):
                turned = (persons[i:] + persons[:i], places[i:] + places[:i], ())
                found.append(
                    Example(
                        id=f"{number}",
                        question=evidence.question_of(dials, item._replace(layers=turned)),
                        answer=codes[i],
                        texts={evidence.SOLVER: (codes[i],)},
                        fields={
                            "evidence_planner": item.evidence[evidence.PLANNER],
                            "evidence_solver": facts,
                            "message": evidence.texts_of(dials, item, 1)[evidence.PLANNER][0],
                        },
                    )
                )
    return Questions(found, (items, draws, dials.pairs))


class Draw(NamedTuple):
    """The questions of all items under one draw of the codes."""

    batch: TrainingData
    prefix: Cache  # the solver's, which no vector changes


def scores(
    agent: Agent, vectors: jax.Array, draw: Draw, present: jax.Array | None = None
) -> TextScore:
    """Scores [B] of the solver's answers with vectors [B, M, D] in its slot, or those present."""
    return score_text(agent, *answer_states(agent, vectors, draw, present))


def answer_states(
    agent: Agent, vectors: jax.Array, draw: Draw, present: jax.Array | None = None
) -> tuple[Targets, jax.Array]:
    """The solver's answers [B, W], and the states [B, W, D] that predict their tokens."""
    batch = draw.batch
    prompt, target = batch.prompts[evidence.SOLVER], batch.targets[evidence.SOLVER]
    answer = jax.tree.map(lambda x: x[:, 0], target)
    read = prompt_input(prompt, draw.prefix, vectors, kind=FIRST, present=present)
    states, _ = read_with_text(agent, read, answer, upto=answer.ids.shape[1])
    return answer, states


def message_vectors(team: Team, asked: Questions, count: int) -> jax.Array:
    """Embeddings [items, M, D] of the first tokens of each item's message, repeated to M."""
    member = team.members[evidence.SOLVER]
    per_item = asked.shape[1] * asked.shape[2]
    messages = [example.fields["message"] for example in asked.examples[::per_item]]
    ids = encode_plain(member.tokenizer, messages)
    return member.agent.embed(jnp.asarray([np.resize(row, count) for row in ids])).astype(
        jnp.float32
    )


def fitted_vectors(
    team: Team,
    asked: Questions,
    draws: Sequence[Draw],
    count: int,
    *,
    steps: int,
    rate: float,
    seed: int,
) -> jax.Array:
    """M vectors [items, M, D] for each item, fitted to its questions under some draws.

    Args:
      team: with M latent steps.
      asked: the questions.
      draws: of the codes, those to fit.
      count: M.
      steps: of Adam, each on one draw of the codes, about all persons.
      rate: the largest step, in units of the vectors' rms.
      seed: of the order of draws.
    """
    agent = team.agents[evidence.SOLVER].in_training()
    vectors = message_vectors(team, asked, count)
    rms = float(jnp.sqrt(jnp.mean(vectors**2)))
    optimizer = optax.adam(optax.cosine_decay_schedule(rate * rms, steps))

    @jax.jit
    def step(agent: Agent, vectors: jax.Array, state: Any, draw: Draw) -> Any:
        def loss_of(vectors: jax.Array) -> jax.Array:  # items do not share a vector
            return scores(agent, by_row(vectors, draw), draw).loss.sum()

        loss, gradient = jax.value_and_grad(loss_of)(vectors)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(vectors, updates), state, loss / len(draw.batch)

    state = optimizer.init(vectors)
    order = np.random.default_rng(seed).integers(len(draws), size=steps)
    bar = tqdm(order.tolist(), desc=f"M = {count}")
    for number in bar:
        vectors, state, loss = step(agent, vectors, state, draws[number])
        bar.set_postfix(loss=f"{float(loss):.3f}")
    return vectors


def exact(team: Team, vectors: jax.Array, draws: Iterable[Draw]) -> np.ndarray:
    """Whether answers with vectors [items, M, D] are exact, [items, draws x persons]."""
    agent = team.agents[evidence.SOLVER]
    judge = jax.jit(lambda agent, vectors, draw: scores(agent, by_row(vectors, draw), draw))
    found = [np.asarray(judge(agent, vectors, draw).exact_match) for draw in draws]
    return np.concatenate([of.reshape(len(vectors), -1) for of in found], axis=1)


def read_draws(team: Team, asked: Questions) -> list[Draw]:
    """The questions of all items, by draw of the codes; all of one shape."""
    encoded = encode_examples(team, asked.examples)
    widths = encoded.widths(np.arange(len(encoded)))
    rows = np.arange(len(encoded)).reshape(asked.shape)
    read, draws = jax.jit(read_prefix), []
    for number in range(asked.shape[1]):
        batch = encoded.batch(rows[:, number].ravel(), widths)
        prompt = batch.prompts[evidence.SOLVER]
        prefix = read(team.agents[evidence.SOLVER], prompt.prefix_ids, prompt.prefix_valid)
        draws.append(Draw(batch, prefix))
    return draws


def by_row(vectors: jax.Array, draw: Draw) -> jax.Array:
    """Vectors of items [items, M, D] for each row of a draw, whose rows go item by item."""
    return jnp.repeat(vectors, len(draw.batch) // len(vectors), axis=0)


def measure(args: argparse.Namespace) -> None:
    """Adds a row for each M that is missing, and writes the report after each."""
    config, dials = configured(args)
    settings = settings_of(args, config, *OPTIONS)
    rows = rows_of_earlier(args.out / REPORT, settings) or []
    there = {row["latent_steps"] for row in rows}
    asked = questions(dials, seed=args.seed, items=args.items, draws=args.draws)
    for count in dict.fromkeys(count for count in args.steps if count not in there):
        team = load_team(with_steps(config, count).system)
        draws = read_draws(team, asked)
        fitted, held = draws[: -args.held_out], draws[-args.held_out :]
        before = exact(team, message_vectors(team, asked, count), held)
        vectors = fitted_vectors(
            team,
            asked,
            fitted,
            count,
            steps=args.optimizer_steps,
            rate=args.rate,
            seed=args.seed,
        )
        after = exact(team, vectors, held)
        # Answers about an item share its vectors: the interval is over items.
        interval = repeated_interval(after.sum(1), np.full(*after.shape))
        rows.append(
            {
                "latent_steps": count,
                "n": args.items,
                "answers": after.size,
                "before": float(before.mean()),
                "accuracy": float(after.mean()),
                "interval": list(interval),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
        write_report(args.out / REPORT, {"settings": settings, "rows": rows})


def main(arguments: Sequence[str] | None = None) -> int:
    """Fits the vectors and writes the result; returns the exit code of a run."""
    parser = measurement_parser(__doc__)
    counts = [1, 2, 4, 8]
    parser.add_argument("--steps", type=at_least(1), nargs="+", default=counts, metavar="M")
    add_numbers(
        parser,
        ("items", 16, "sets of who is where"),
        ("draws", 8, "of the codes, for each item"),
        ("held-out", 2, "of these draws, for the accuracy"),
        ("optimizer-steps", 100, "of Adam"),
        ("seed", 0, "of items and draws"),
    )
    parser.add_argument("--rate", type=float, default=0.1, help="in units of the vectors' rms")
    args = parser.parse_args(arguments)
    if not 0 < args.held_out < args.draws:
        parser.error(
            f"--held-out must be at least 1 and below --draws ({args.draws}), got {args.held_out}"
        )
    return measured(args, measure)


if __name__ == "__main__":
    sys.exit(main())
