"""A whole evaluation of several methods, with and without memory for what they compute alike.

    python -m experiments.benchmarks.sharing --out runs/sharing

Contenders run in turn in the same process, after one evaluation of each that compiles:

    shared   prefixes of prompts, rounds and messages are computed once (`runtime.shared_gib`)
    alone    every method computes all of its own (0)

--agents embedded are the agents of the package, which write as long as they do; --agents 10M are
random Llamas of 10M parameters with the same tokenizers, whose texts are as long as they may be.
Questions have lengths like those of MATH-500: log-normal in tokens, with a median of 55, at most
320, made of the words that the tokenizers know. Both contenders must give the same answers, which
is checked. The report has seconds, the ratio of each repeat, and how often each part is computed.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.benchmarks import harness
from experiments.benchmarks.harness import Number
from experiments.benchmarks.llamas import random_llama
from experiments.benchmarks.watching import PARTS, watched
from rmas_jax.config import load_config
from rmas_jax.data import Example
from rmas_jax.evaluation.answering import Answering
from rmas_jax.evaluation.driver import LoadedBenchmark, evaluate
from rmas_jax.evaluation.graders import Grader
from rmas_jax.evaluation.graders.verdict import Verdict, compared
from rmas_jax.evaluation.methods import LATENT, NO_LATENTS, SHUFFLED, TEXT
from rmas_jax.host.reading import GIBIBYTE
from rmas_jax.links import Links
from rmas_jax.team import Team, build_system, load_team, start_links

AGENTS = ("embedded", "10M")
METHODS = (LATENT, SHUFFLED, NO_LATENTS, TEXT)
PHRASE = "After two gates, red, green and blue in turn, what has become of the phrase Amor Roma?"
MEDIAN, SIGMA, LONGEST = 55, 0.65, 320  # tokens of a question, log-normal
NUMBERS = {
    "items": Number(64, "questions"),
    "batch": Number(32, "questions of a batch"),
    "latent-steps": Number(32, "of a turn"),
    "tokens": Number(64, "of an answer"),
    "repeats": Number(3, "measured, after one that compiles"),
}


def build_team(agents: str, latent_steps: int) -> tuple[Team, Links]:
    """The embedded team, or random agents of 10M parameters in their places; random links."""
    config = load_config("quickstart", [f"system.latent_steps={latent_steps}"]).system
    team = load_team(config)
    if agents == "10M":
        members = {
            role: dataclasses.replace(
                member, agent=random_llama(10_000_000, 6, member.agent.config.vocab_size, seed=i)
            )
            for i, (role, member) in enumerate(team.members.items())
        }
        width = {role: member.agent.width for role, member in members.items()}
        team = Team(build_system(config, team.system.topology, width), members)
    return team, start_links(team, start="torch_default", key=jax.random.key(0))


def questions(team: Team, count: int) -> list[Example]:
    """Questions of ragged lengths; no two are the same."""
    words = PHRASE.split()
    tokenizer = next(iter(team.members.values())).tokenizer
    of_word = len(tokenizer(PHRASE)["input_ids"]) / len(words)
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.lognormal(np.log(MEDIAN), SIGMA, count), LONGEST)
    items = []
    for i, length in enumerate(lengths):
        many = max(3, round(float(length) / of_word))
        question = f"{i} {' '.join((words * (many // len(words) + 2))[i % 5 :][:many])}"
        items.append(Example(str(i), question, words[i % len(words)]))
    return items


def same_length(text: str, example: Example) -> Verdict:
    """Any verdict that costs nothing."""
    return compared(text or None, len(text) % 2 == len(example.answer) % 2)


class Contest:
    """One evaluation, with a budget or without."""

    def __init__(self, options: argparse.Namespace):
        self.team, self.links = build_team(options.agents, options.latent_steps)
        self.options = options
        self.benchmark = LoadedBenchmark(
            "math500",
            "1",
            Grader("lengths", "parity of lengths", same_length),
            {"test": questions(self.team, options.items)},
            {role: member.template for role, member in self.team.members.items()},
            Answering(options.tokens, refills=options.refills),
        )

    def run(self, rounds: Sequence[int], budget: int) -> list[Any]:
        """Evaluates all methods at these rounds; returns the record of every item."""
        with tempfile.TemporaryDirectory() as folder:
            evaluate(
                self.team,
                self.links,
                self.links,
                [self.benchmark],
                folder,
                methods=self.options.methods,
                rounds=rounds,
                batch_size=self.options.batch,
                seeds=(0,),
                shared_bytes=budget,
                progress=False,
            )
            return [*(Path(folder) / "items.jsonl").read_text().splitlines()]

    def compare(self, rounds: Sequence[int]) -> dict[str, Any]:
        """One row of the report."""
        budgets = {"shared": int(self.options.gib * GIBIBYTE), "alone": 0}
        contenders: dict[str, Callable[[], Any]] = {
            name: functools.partial(self.run, rounds, budget) for name, budget in budgets.items()
        }
        answers = {name: run() for name, run in contenders.items()}  # these compile
        assert answers["shared"] == answers["alone"], "both must give the same answers"
        parts = {}
        for name, run in contenders.items():
            with watched() as seen:
                run()
            parts[name] = seen.parts()
        seconds = harness.in_turn(contenders, repeats=self.options.repeats, warm_up=0)
        return {
            "agents": self.options.agents,
            "rounds": list(rounds),
            "parts": parts,
            "seconds": {name: harness.summary(of)._asdict() for name, of in seconds.items()},
            "times": harness.speedup(seconds["alone"], seconds["shared"])._asdict(),
        }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The report as Markdown."""
    lines = []
    for row in rows:
        parts = [
            f"{row['parts']['shared'][name]} of {row['parts']['alone'][name]}" for name in PARTS
        ]
        seconds = [f"{row['seconds'][name]['median']:.1f}" for name in ("shared", "alone")]
        times = harness.Times(**row["times"]).shown()
        rounds = ", ".join(map(str, row["rounds"]))
        lines.append([row["agents"], rounds, *parts, *seconds, times])
    columns = ["agents", "rounds", *PARTS, "s, shared", "s, alone", "times (range)"]
    return "\n".join(harness.markdown_table(columns, lines)) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints the table and writes it; returns the exit code."""
    parser = harness.command_line("sharing", __doc__, NUMBERS)
    add = parser.add_argument
    add("--agents", choices=AGENTS, default="10M", help="(10M)")
    add("--methods", nargs="+", default=METHODS, metavar="METHOD", help=f"({' '.join(METHODS)})")
    add("--rounds", nargs="+", default=["3", "2,3", "1,2,3,4"], metavar="R,R",
        help="of each evaluation (3 2,3 1,2,3,4)")  # fmt: skip
    add("--refills", action="store_true", help="answers in a pool of rows")
    add("--gib", type=float, default=1.0, help="of what is shared (1)")
    options = parser.parse_args(arguments)
    machine, contest, rows = harness.machine(), Contest(options), []
    for rounds in options.rounds:
        rows.append(contest.compare([int(count) for count in rounds.split(",")]))
        report = {"settings": harness.settings(options), "machine": machine, "rows": rows}
        page = table(rows)
        harness.write_report(options.out, f"sharing_{options.agents}", report, page)
        print(page, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
