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

import dataclasses
import functools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.benchmarks import harness
from experiments.benchmarks.harness import Number
from experiments.benchmarks.llamas import random_llama
from experiments.benchmarks.watching import pool_steps
from rmas_jax.agents.agent import Agent
from rmas_jax.config import load_config
from rmas_jax.evaluation import refill
from rmas_jax.evaluation.answerer import Answerer
from rmas_jax.evaluation.answering import Answering
from rmas_jax.evaluation.batches import batches
from rmas_jax.evaluation.methods import METHODS, SINGLE_AGENTS
from rmas_jax.evaluation.rollouts import Work, Written, write_batches
from rmas_jax.models.generation import SamplingConfig
from rmas_jax.prompts import declared_width
from rmas_jax.team import load_team

BATCHES, POOL = "batches", "pool"
WRITERS = {BATCHES: write_batches, POOL: refill.write_refilled}
ROLE = "solver"
NUMBERS = {
    "parameters": Number(2_000_000, "approximate number"),
    "layers": Number(2, "of the decoder"),
    "items": Number(128, "questions"),
    "batch": Number(32, "rows"),
    "mean": Number(48, "tokens of an answer"),
    "longest": Number(256, "tokens of an answer"),
    "repeats": Number(2, "measured, after one that compiles"),
}


def build_answerer(parameters: int, layers: int, how: str, mean: int, longest: int) -> Answerer:
    """A random solver of this size, whose answers have lengths of a distribution."""
    team = load_team(load_config("quickstart").system)
    member = team.members[ROLE]
    vocabulary = member.agent.config.vocab_size
    agent = random_llama(parameters, layers, vocabulary)
    params = jax.tree.map(lambda p: p * 0.02 if p.ndim > 1 else p, agent.params)
    # All tokens are nearly as likely, so the share of end tokens is the probability of an end.
    ends = tuple(range(0, vocabulary, mean)) if how == "skewed" else ()
    member = dataclasses.replace(member, agent=Agent(agent.decoder, params), end_tokens=ends)
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

    def run(self, name: str) -> list[Written]:
        """A contender's answers, in the order of their batches."""

        def listen(rows: np.ndarray) -> Any:
            return self.answerer.listen(self.prompts[int(rows[0])])

        written = WRITERS[name](self.answerer, listen, self.works, seed=0)
        return sorted(written, key=lambda one: int(one.batch.rows[0]))


def compare(contest: Contest, how: str, repeats: int) -> dict[str, Any]:
    """One row of the report."""
    plain = contest.run(BATCHES)
    assert _texts(plain) == _texts(contest.run(POOL)), "both must write the same texts"
    calls = {name: functools.partial(contest.run, name) for name in WRITERS}
    seconds = harness.in_turn(calls, repeats=repeats, warm_up=0)
    with pool_steps() as counted:
        contest.run(POOL)
    lengths = [one.answers.rollouts[0].tokens[: one.batch.kept] for one in plain]
    steps = {BATCHES: sum(int(batch.max()) - 1 for batch in lengths), POOL: sum(counted)}
    tokens = np.concatenate(lengths)
    return {
        "lengths": how,
        "mean": float(tokens.mean()),
        "longest": int(tokens.max()),
        "steps": steps,
        "seconds": {name: harness.summary(of).median for name, of in seconds.items()},
        "times_steps": steps[BATCHES] / steps[POOL],
        "times_seconds": harness.speedup(seconds[BATCHES], seconds[POOL]),
    }


def _texts(written: Sequence[Written]) -> list[list[str]]:
    return [one.answers.rollouts[0].texts[: one.batch.kept] for one in written]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The report as Markdown."""
    columns = ("lengths", "mean, longest", "steps: batches, pool", "times", "s: batches, pool",
               "times (range)")  # fmt: skip
    lines = (
        (
            row["lengths"],
            f"{row['mean']:.0f}, {row['longest']}",
            ", ".join(f"{count:,}" for count in row["steps"].values()),
            f"{row['times_steps']:.2f}",
            ", ".join(f"{count:.1f}" for count in row["seconds"].values()),
            harness.Times(*row["times_seconds"]).shown(),
        )
        for row in rows
    )
    return "\n".join(harness.markdown_table(columns, lines)) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints the table and writes it; returns the exit code."""
    options = harness.command_line("refill", __doc__, NUMBERS).parse_args(arguments)
    machine, rows = harness.machine(), []
    for how in ("skewed", "uniform"):
        answerer = build_answerer(
            options.parameters, options.layers, how, options.mean, options.longest
        )
        rows.append(compare(Contest(answerer, options.items, options.batch), how, options.repeats))
        report = {"settings": harness.settings(options), "machine": machine, "rows": rows}
        page = table(rows)
        harness.write_report(options.out, "refill", report, page)
        print(page, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
