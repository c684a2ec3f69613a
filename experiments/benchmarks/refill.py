"""Answers in a pool that is refilled, against batches that wait for their longest answer.

    python -m experiments.benchmarks.refill --out runs/refill

A random Llama of about --parameters weights answers --items short questions, --batch rows at a
time, by drawing tokens. Two distributions of the answers' lengths, up to --longest tokens:

    skewed     every token is an end token with probability 1 / --mean: geometric lengths
    uniform    no end tokens: all answers have --mean tokens

Contenders run in turn in every repeat, after one that compiles; both write the same texts, which
is checked. The report has decode steps of the model (each of the whole batch), seconds, and the
ratio of plain batches to the pool, as the median of the repeats with the range.

Prediction, before the first run of this size (32 rows, 128 items, a mean of 48, at most 256
tokens): a batch of 32 geometric lengths waits for about 48 x H(32) = 195 steps, cut to about 185,
so that 4 batches take 740. A pool with a sixteenth of its rows free takes 128 x 48 / 30 = 205
steps, and about 140 in the end, when nothing waits: 345. Steps: 2.1 times fewer; seconds: 1.8, as
every fill copies the caches of the prompts. Uniform lengths: 1.0 and 0.9.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.decoding import llama_sizes
from rmas_jax.agents.agent import Agent
from rmas_jax.config import load_config
from rmas_jax.evaluation import refill
from rmas_jax.evaluation.answerer import Answerer
from rmas_jax.evaluation.answering import Answering
from rmas_jax.evaluation.batches import batches
from rmas_jax.evaluation.methods import METHODS, SINGLE_AGENTS
from rmas_jax.evaluation.rollouts import Work, Written, write_batches
from rmas_jax.host.atomic import write_atomic
from rmas_jax.models import Decoder, config_from_hf
from rmas_jax.models.generation import SamplingConfig
from rmas_jax.prompts import declared_width
from rmas_jax.team import load_team

WRITERS = {"batches": write_batches, "pool": refill.write_refilled}
ROLE = "solver"


def build_answerer(parameters: int, layers: int, how: str, mean: int, longest: int) -> Answerer:
    """A random solver of this size, whose answers have lengths of a distribution."""
    team = load_team(load_config("quickstart").system)
    member = team.members[ROLE]
    vocabulary = member.agent.config.vocab_size
    sizes = {"model_type": "llama", **llama_sizes(parameters, layers, vocabulary)}
    decoder = Decoder(config_from_hf(sizes))
    params = decoder.init(
        jax.random.key(0), jnp.zeros((1, 1, decoder.config.width)), jnp.ones((1, 1), bool)
    )
    params = jax.tree.map(lambda p: p * 0.02 if p.ndim > 1 else p, params["params"])
    # All tokens are nearly as likely, so the share of end tokens is the probability of an end.
    ends = tuple(range(0, vocabulary, mean)) if how == "skewed" else ()
    member = dataclasses.replace(member, agent=Agent(decoder, params), end_tokens=ends)
    team = dataclasses.replace(team, members={**team.members, ROLE: member})
    answering = Answering(longest if ends else mean, SamplingConfig(temperature=1.0))
    return Answerer(team, None, METHODS[SINGLE_AGENTS], 1, answering, ROLE)


def questions(count: int) -> list[str]:
    """Questions of like length."""
    return [f"After {i} gates, what has become of the phrase?" for i in range(100, 100 + count)]


class Contest:
    """Both contenders on the same questions."""

    def __init__(self, answerer: Answerer, items: int, batch: int):
        self.answerer = answerer
        asked = questions(items)
        self.works = [Work(found, (0,)) for found in batches(np.arange(items), batch)]
        self.prompts = {
            int(work.batch.rows[0]): answerer.team.encode(
                [asked[row] for row in work.batch.rows],
                slot_width=answerer.slot_width,
                block_width=declared_width,
            )
            for work in self.works
        }

    def run(self, name: str) -> tuple[float, list[Written]]:
        """Seconds of a contender, and its answers in the order of their batches."""

        def listen(rows: np.ndarray) -> Any:
            return self.answerer.listen(self.prompts[int(rows[0])])

        started = time.perf_counter()
        written = list(WRITERS[name](self.answerer, listen, self.works, seed=0))
        seconds = time.perf_counter() - started
        return seconds, sorted(written, key=lambda one: int(one.batch.rows[0]))


def lengths_of(written: Sequence[Written]) -> list[np.ndarray]:
    """The tokens of each batch's answers."""
    return [one.answers.rollouts[0].tokens[: one.batch.kept] for one in written]


def pool_steps(contest: Contest) -> int:
    """The decode steps of the pool, counted by its programs."""
    seen, run = [], refill._Rows._run

    def counted(own: Any, pool: Any, ended: int) -> Any:
        before = int(pool.begun.text.step)
        pool = run(own, pool, ended)
        seen.append(int(pool.begun.text.step) - before)
        return pool

    with mock.patch.object(refill._Rows, "_run", counted):
        contest.run("pool")
    return sum(seen)


def compare(contest: Contest, how: str, repeats: int) -> dict[str, Any]:
    """One row of the report."""
    _, plain = contest.run("batches")
    _, pooled = contest.run("pool")
    texts = [
        [one.answers.rollouts[0].texts[: one.batch.kept] for one in x] for x in (plain, pooled)
    ]
    assert texts[0] == texts[1], "both must write the same texts"
    seconds: dict[str, list[float]] = {name: [] for name in WRITERS}
    for _ in range(repeats):
        for name in WRITERS:
            seconds[name].append(contest.run(name)[0])
    lengths = lengths_of(plain)
    steps = {"batches": sum(int(batch.max()) - 1 for batch in lengths), "pool": pool_steps(contest)}
    ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
    tokens = np.concatenate(lengths)
    return {
        "lengths": how,
        "mean": float(tokens.mean()),
        "longest": int(tokens.max()),
        "steps": steps,
        "seconds": {name: statistics.median(all_) for name, all_ in seconds.items()},
        "times_steps": steps["batches"] / steps["pool"],
        "times_seconds": [statistics.median(ratios), min(ratios), max(ratios)],
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The report as Markdown."""
    lines = [
        "| lengths | mean, longest | steps: batches, pool | times | s: batches, pool "
        "| times (range) |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        middle, low, high = row["times_seconds"]
        steps = ", ".join(f"{count:,}" for count in row["steps"].values())
        seconds = ", ".join(f"{count:.1f}" for count in row["seconds"].values())
        lines.append(
            f"| {row['lengths']} | {row['mean']:.0f}, {row['longest']} | {steps} "
            f"| {row['times_steps']:.2f} | {seconds} | {middle:.2f} ({low:.2f} to {high:.2f}) |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs both distributions and writes the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    for name, default in (
        ("parameters", 2_000_000),
        ("layers", 2),
        ("items", 128),
        ("batch", 32),
        ("mean", 48),
        ("longest", 256),
        ("repeats", 2),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args(arguments)
    rows = []
    load = os.getloadavg()[0]
    for how in ("skewed", "uniform"):
        answerer = build_answerer(
            options.parameters, options.layers, how, options.mean, options.longest
        )
        contest = Contest(answerer, options.items, options.batch)
        rows.append(compare(contest, how, options.repeats))
        print(table(rows), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    report = {"settings": settings, "load": load, "jax": jax.__version__, "rows": rows}
    write_atomic(options.out / "refill.json", json.dumps(report, indent=1) + "\n")
    write_atomic(options.out / "refill.md", table(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
