"""Requests of many clients at once, against one request after another, in the same engine.

    python -m experiments.benchmarks.serving --out runs/serving

The embedded team answers --requests questions of the relay, greedily, with latents; each text has
up to --tokens tokens. Contenders run in turn in every repeat, after one that warms up:

    at once            --clients senders, each with one request at a time
    one by one         one sender, in the same engine: a batch is filled up with copies
    one by one, small  one sender, in an engine of one row and batches of one

The report has requests a second, the median time from a request to its first text, and the ratios
in each repeat. All contenders of one engine must write the same texts, bit for bit, with the same
log probabilities; the report counts what is compiled after the start, which must be nothing.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from experiments.benchmarks import harness
from experiments.benchmarks.harness import Number
from rmas_jax.config import load_config
from rmas_jax.host.compilations import compilations
from rmas_jax.rounds.channels import LATENT
from rmas_jax.serving.engine import Engine
from rmas_jax.serving.requests import DoneEvent, Request, TextEvent
from rmas_jax.serving.settings import EngineSettings
from rmas_jax.team import load_team, start_links

AT_ONCE, ONE_BY_ONE, SMALL = "at once", "one by one", "one by one, small"
NUMBERS = {
    "requests": Number(128, "of a contender"),
    "clients": Number(64, "at once"),
    "rounds": Number(2, "of latents"),
    "tokens": Number(32, "of a text"),
    "rows": Number(32, "that are written at once"),
    "batch": Number(8, "requests that go through the rounds together"),
    "width": Number(64, "tokens of a question in a prompt"),
    "repeats": Number(3, "measured, after one that warms up"),
}
Answer = list[tuple[str, float]]  # tokens and log probabilities


class Run(NamedTuple):
    """What a contender did."""

    seconds: float
    first_text: float  # median seconds
    answers: dict[int, Answer]  # by question


def build_engine(options: argparse.Namespace, *, rows: int, batch: int) -> Engine:
    """A warm engine of the embedded team."""
    team = load_team(load_config("quickstart").system)
    links = start_links(team, start="aligned", key=jax.random.key(0))
    settings = EngineSettings(
        rows=rows,
        batch=batch,
        widths=(options.width,),
        max_tokens=options.tokens,
        rounds=options.rounds,
        channels=(LATENT,),
        queue=options.requests,
    )
    engine = Engine(team, links, settings)
    engine.warm()
    engine.start()
    return engine


def question(number: int) -> str:
    """Questions of like length."""
    return f"After {100 + number} gates, what has become of the phrase?"


def send(engine: Engine, numbers: Sequence[int], firsts: list[float], answers: dict) -> None:
    """A client: one request after another."""
    for number in numbers:
        started, first = time.perf_counter(), None
        answer: Answer = []
        for event in engine.submit(Request(question=question(number))).events():
            if isinstance(event, TextEvent | DoneEvent) and first is None:
                first = time.perf_counter() - started
            if isinstance(event, TextEvent):
                answer += event.tokens
        assert first is not None, "every request must be answered"
        firsts.append(first)
        answers[number] = answer


def run(engine: Engine, requests: int, clients: int) -> Run:
    """All requests, from so many clients."""
    firsts: list[float] = []
    answers: dict[int, Answer] = {}
    threads = [
        threading.Thread(target=send, args=(engine, range(i, requests, clients), firsts, answers))
        for i in range(clients)
    ]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    return Run(seconds, statistics.median(firsts), answers)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The report."""
    engine = build_engine(options, rows=options.rows, batch=options.batch)
    small = build_engine(options, rows=1, batch=1)
    known = compilations()
    contenders = {
        AT_ONCE: functools.partial(run, engine, options.requests, options.clients),
        ONE_BY_ONE: functools.partial(run, engine, options.requests, 1),
        SMALL: functools.partial(run, small, options.requests, 1),
    }
    runs = harness.results_in_turn(contenders, repeats=options.repeats)
    answers = [one.answers for name in (AT_ONCE, ONE_BY_ONE) for one in runs[name]]
    assert all(one == answers[0] for one in answers), "answers must not depend on neighbours"
    assert len(answers[0]) == options.requests, "every request must be answered"
    seconds = {name: [one.seconds for one in of] for name, of in runs.items()}
    done = engine.statistics()
    report = {
        "requests_per_second": {
            name: options.requests / harness.summary(of).median for name, of in seconds.items()
        },
        "first_text_s": {
            name: harness.summary([one.first_text for one in of])._asdict()
            for name, of in runs.items()
        },
        "times": {
            name: harness.speedup(of, seconds[AT_ONCE])._asdict() for name, of in seconds.items()
        },
        "mean_tokens": statistics.mean(map(len, answers[0].values())),
        "batch_fill": done.batched / (done.batches * options.batch),
        "rows_that_write": done.row_steps / (done.steps * options.rows),
        "seconds_by_phase": dict(done.seconds),
        "compilations_after_start": compilations() - known,
    }
    engine.close()
    small.close()
    return report


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    columns = (
        "contender",
        "requests a second",
        "first text, median s (range)",
        "at once is faster by (range)",
    )
    rows = (
        (
            name,
            f"{rate:.2f}",
            harness.Times(**report["first_text_s"][name]).shown(3),
            harness.Times(**report["times"][name]).shown(),
        )
        for name, rate in report["requests_per_second"].items()
    )
    return "\n".join(harness.markdown_table(columns, rows)) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints the table and writes it; returns the exit code."""
    options = harness.command_line("serving", __doc__, NUMBERS).parse_args(arguments)
    machine, found = harness.machine(), measure(options)
    report = {"settings": harness.settings(options), "machine": machine, **found}
    page = table(found)
    harness.write_report(options.out, "serving", report, page)
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
