"""A whole evaluation of the size of MATH-500, from questions to records, against its floor.

    python -m experiments.benchmarks.evaluation --out runs/evaluation

Random Llamas of 10M parameters answer 500 questions with latents, R = 3, M = 32: encoding, batches,
rounds, answers, grading and records, as `rmas evaluate` runs them. Questions have the lengths of
sharing.py; random agents never end, so that every answer has as many tokens as it may have.

The floor adds up `rmas_jax.planning.bounds` over all batches as they were run, padding included, at
the rates of this device; the practical floor reads weights at the rate of the fastest products of
these shapes and rows (products.py). An evaluation before the measured ones compiles; the report
counts what is compiled after it, which must be nothing.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from experiments.benchmarks import harness, products
from experiments.benchmarks.harness import Number
from experiments.benchmarks.sharing import AGENTS, Contest
from experiments.benchmarks.watching import watched
from rmas_jax.evaluation.methods import LATENT
from rmas_jax.host.compilations import compilations
from rmas_jax.planning import bounds
from rmas_jax.prompts import StagePrompt

DTYPE = "float32"
NUMBERS = {
    "items": Number(500, "questions"),
    "batch": Number(32, "questions of a batch"),
    "rounds": Number(3, "of latents"),
    "latent-steps": Number(32, "of a turn"),
    "tokens": Number(64, "of an answer"),
    "repeats": Number(2, "measured, after one that compiles"),
}


def floor(
    contest: Contest, prompts: Sequence[Mapping[str, StagePrompt]], rounds: int
) -> bounds.Bound:
    """All parts of all batches, one after another."""
    return bounds.Bound(tuple(itertools.chain(*(_parts(contest, of, rounds) for of in prompts))))


def _parts(
    contest: Contest, prompts: Mapping[str, StagePrompt], rounds: int
) -> Iterator[bounds.Part]:
    system, agents = contest.team.system, contest.team.agents
    answerer = system.topology.answerer
    rows, prefix, body = bounds.widths(prompts[answerer])
    yield from bounds.bound_of_rounds(system, agents, prompts, rounds=rounds).parts
    yield bounds.reading(agents[answerer], rows, body, prefix)
    tokens = contest.options.tokens
    yield from bounds.bound_of_answer(agents[answerer], rows, prefix + body, tokens=tokens).parts


def filled(prompts: Sequence[Mapping[str, StagePrompt]]) -> float:
    """The part of all read positions that is no padding."""
    found = [
        (valid.sum(), valid.size)
        for of in prompts
        for prompt in of.values()
        for valid in (prompt.prefix_valid, prompt.body_valid)
    ]
    real, all_ = map(sum, zip(*found, strict=True))
    return float(real / all_)


def timed(contest: Contest, rounds: int, repeats: int) -> tuple[harness.Times, list[Any], int]:
    """Seconds of an evaluation, the prompts of its batches by role, and what was compiled."""
    run: dict[str, Callable[[], Any]] = {"run": lambda: contest.run([rounds], 0)}
    run["run"]()  # compiles; a batch whose program is new runs twice
    before = compilations()
    with watched() as seen:
        seconds = harness.in_turn(run, repeats=repeats, warm_up=0)["run"]
    compiled = compilations() - before
    of_one = seen.prompts[: len(seen.prompts) // repeats]
    return harness.summary(seconds), jax.device_get(of_one), compiled


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The report."""
    chip, contest = harness.measured_chip(DTYPE), Contest(options)
    times, ran, compiled = timed(contest, options.rounds, options.repeats)
    of = products.measure(contest.team.agents.values(), options.batch, torch_device=None)
    rate, bound = products.weight_rate(of, DTYPE), floor(contest, ran, options.rounds)
    floors = {
        "floor": bound.seconds(chip, 1, dtype=DTYPE),
        "practical": bound.seconds(chip, 1, dtype=DTYPE, weight_rate=rate),
    }
    return {
        "seconds": times._asdict(),
        "floors": floors,
        "times": {name: times.median / seconds for name, seconds in floors.items()},
        "model_flops": bound.flops,
        "batches": len(ran),
        "filled": filled(ran),
        "compilations_after_warm_up": compiled,
        "chip": {"flops": chip.peak(DTYPE), "bandwidth": chip.bandwidth, "weight_rate": rate},
    }


def table(options: argparse.Namespace, row: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    seconds = harness.Times(**row["seconds"]).shown(1)
    cells = [
        str(options.items),
        seconds,
        f"{options.items / row['seconds']['median']:.2f}",
        f"{row['floors']['floor']:.1f}",
        f"{row['times']['floor']:.2f}",
        f"{row['times']['practical']:.2f}",
        f"{row['filled']:.0%}",
        str(row["compilations_after_warm_up"]),
    ]
    columns = [
        "questions",
        "s (range)",
        "questions a second",
        "floor, s",
        "times the floor",
        "times the practical floor",
        "positions that are no padding",
        "compilations after the first evaluation",
    ]
    return "\n".join(harness.markdown_table(columns, [cells])) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints the table and writes it; returns the exit code."""
    parser = harness.command_line("evaluation", __doc__, NUMBERS)
    parser.add_argument("--agents", choices=AGENTS, default="10M", help="(10M)")
    parser.set_defaults(methods=(LATENT,), refills=False)
    options = parser.parse_args(arguments)
    machine, row = harness.machine(), measure(options)
    report = {"settings": harness.settings(options), "machine": machine, **row}
    page = table(options, row)
    harness.write_report(options.out, f"evaluation_{options.agents}", report, page)
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
