"""The page of the study of parallel latents: tables of its results, and predictions for chips."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from experiments.benchmarks.harness import markdown_table
from experiments.benchmarks.team import PUBLISHED, SHAPES
from rmas_jax.agents.agent import Agent
from rmas_jax.models import abstract_agent, config_from_hf
from rmas_jax.planning.bounds import Bound, Part, single_steps, sweep
from rmas_jax.planning.chips import chips

CHIPS = ("H100", "v5e", "v5p")
BATCHES = (1, 8, 32)
WINDOWS = (4, 8, 16, 32)
CONTEXT = 256  # positions before the thoughts
DTYPE = "bfloat16"
Row = Mapping[str, Any]


def light_agents() -> dict[str, Agent]:
    """The agents of the released Light system, as shapes."""
    sources = {role: str(of) for role, of in SHAPES["light"].agents.items()}
    configs = {
        role: config_from_hf(json.loads((PUBLISHED / source / "config.json").read_text()))
        for role, source in sources.items()
    }
    return {role: Agent(*abstract_agent(c, dtype=DTYPE)) for role, c in configs.items()}


def sweeps_of_a_step(agents: Mapping[str, Agent], rows: int, window: int, chip: str) -> float:
    """Least time of a sweep of all agents, in single steps of them."""

    def seconds(parts: Iterator[Part]) -> float:
        return Bound(tuple(parts)).seconds(chips()[chip], 1, dtype=DTYPE)

    once = seconds(single_steps(agent, rows, 1, CONTEXT) for agent in agents.values())
    return seconds(sweep(agent, rows, window, CONTEXT) for agent in agents.values()) / once


def page(results: Mapping[str, Any]) -> str:
    """The page as Markdown, of all parts that are there."""
    lines = [
        "# Parallel latents",
        "",
        "[Parallel thinking](../concepts/parallel-thinking.md) makes the thoughts of a stage by "
        "sweeps over windows. Here: how many sweeps it takes, what it changes, and what it would "
        "gain. "
        "`python -m experiments.studies.parallel_latents` makes this page; the data are in "
        "`results.json`.",
        "",
        *_team(results.get("team", ())),
        *_agents(results.get("agents", ())),
        *_pretrained(results.get("pretrained", ())),
        *_prediction(results.get("team", ())),
        *_gradients(results.get("gradients", ())),
        *_training(results.get("training", ())),
    ]
    return "\n".join(lines) + "\n"


def _grouped(rows: Sequence[Row], *names: str) -> Iterator[tuple[tuple[Any, ...], list[Row]]]:
    def key(row: Row) -> tuple[Any, ...]:
        return tuple(row[name] for name in names)

    for value in dict.fromkeys(map(key, rows)):
        yield value, [row for row in rows if key(row) == value]


def _team(rows: Sequence[Row]) -> Iterator[str]:
    if not rows:
        return
    first = rows[0]
    yield from (
        "## The embedded team",
        "",
        f"Trained links ({', '.join(dict.fromkeys(row['run'] for row in rows))}), trained with M = "
        f"4; three rounds; the first {first['questions']} questions of its test split, greedy. "
        "Sweeps are means over items and turns; a turn of sequential thinking has M - 1 steps. "
        "Error: mean relative difference of what reaches the answerer in the last round. Changed: "
        "answers of which any token differs from sequential thinking.",
        "",
    )
    cells = []
    for row in rows:
        sweeps, many = row["sweeps_per_turn"], row["questions"]
        cells.append(
            [
                str(row["latent_steps"]),
                str(row["window"]),
                row["start"],
                f"{row['tolerance']:g}",
                f"{sweeps:.2f} of {row['latent_steps'] - 1}",
                f"{sweeps * row['window']:.1f}",
                f"{row['error']:.1e}",
                f"{row['changed']} ({row['changed'] / many:.1%})",
                f"{row['correct'] / many:.1%} ({row['sequential_correct'] / many:.1%})",
            ]
        )
    names = ("M", "window", "start", "tolerance", "sweeps", "positions read", "error", "changed",
             "right (sequential)")  # fmt: skip
    yield from markdown_table(names, cells)
    yield ""
    for (many,), of in _grouped(rows, "latent_steps"):
        kept = [row for row in of if row["changed"] <= 0.01 * row["questions"]]
        best = min(kept, key=lambda row: row["sweeps_per_turn"])
        yield (
            f"M = {many}: {best['sweeps_per_turn']:.2f} sweeps in place of {many - 1} steps leave "
            f"{1 - best['changed'] / best['questions']:.1%} of the answers as they are (window "
            f"{best['window']}, start {best['start']}, tolerance {best['tolerance']:g}): where a "
            f"sweep takes as long as a step, {(many - 1) / best['sweeps_per_turn']:.2f} times as "
            "fast."
        )
        yield ""


def _agents(rows: Sequence[Row]) -> Iterator[str]:
    if not rows:
        return
    yield from (
        "## Random agents",
        "",
        "One agent with random weights and a random link (`experiments/benchmarks/team.py`), after "
        f"88 random tokens, M = {rows[0]['latent_steps']}, float32, on a CPU. Sequential thinking "
        f"has {rows[0]['latent_steps'] - 1} steps. Speed: median of ratios of calls in turn, with "
        "their range; below 1 is slower. Other work shared the machine. The tolerance bounds the "
        "change of a sweep, not the error, which is larger where thoughts settle slowly.",
        "",
    )
    yield from _by_window(rows)


def _pretrained(rows: Sequence[Row]) -> Iterator[str]:
    if not rows:
        return
    yield from (
        "## A pretrained agent",
        "",
        f"{rows[0]['agent']}, with a linear link fitted by ridge regression from its last hidden "
        "states to the embeddings of the tokens that follow "
        f"(`experiments/studies/pretrained_thinker.py`), after "
        f"{rows[0]['prompt_tokens']} tokens of word problems; else as above.",
        "",
    )
    yield from _by_window(rows)


def _by_window(rows: Sequence[Row]) -> Iterator[str]:
    cells = [
        [
            row["agent"],
            str(row["batch"]),
            str(row["window"]),
            f"{row['tolerance']:g}",
            f"{row['sweeps']:.1f}",
            f"{row['sweeps'] * row['window']:.0f}",
            f"{row['error']:.1e}",
            "{median:.2f} [{low:.2f}, {high:.2f}]".format(**row["speedup"]),
        ]
        for row in rows
    ]
    names = ("agent", "batch", "window", "tolerance", "sweeps", "positions read", "error",
             "speed")  # fmt: skip
    yield from markdown_table(names, cells)
    yield ""


def _prediction(rows: Sequence[Row]) -> Iterator[str]:
    agents = light_agents()
    yield from (
        "## Predicted for accelerators",
        "",
        "From sizes and data sheets, nothing was run: the agents of the released Light system in "
        "bfloat16 after 256 positions. A cell is the time of one sweep in single steps of the same "
        "batch, each the longer of its arithmetic and of one read of weights and cache. Parallel "
        "thinking gains where the sweeps of a window take fewer steps' time than it has thoughts: "
        "below window / cell sweeps.",
        "",
    )
    cells = [
        [
            f"{chip}, ridge {chips()[chip].peak(DTYPE) / chips()[chip].bandwidth:.0f}",
            str(batch),
            *(f"{sweeps_of_a_step(agents, batch, window, chip):.2f}" for window in WINDOWS),
        ]
        for chip, batch in itertools.product(CHIPS, BATCHES)
    ]
    yield from markdown_table(("chip", "batch", *(f"window {w}" for w in WINDOWS)), cells)
    yield ""


def _gradients(rows: Sequence[Row]) -> Iterator[str]:
    if not rows:
        return
    yield from (
        "## Gradients",
        "",
        "Gradient of the answer's loss with respect to all links, on-policy through three rounds, "
        f"{rows[0]['items']} validation items, settled to tolerance 0 in one window: through the "
        "last n sweeps, against sequential thinking. n = M - 1 is exact. Error and cosine are of "
        "all links together.",
        "",
    )
    cells = [
        [
            str(row["latent_steps"]),
            str(row["gradient"]),
            f"{row['norm']:.3g} ({row['sequential_norm']:.3g})",
            f"{row['cosine']:.4f}",
            f"{row['error']:.1e}",
            f"{abs(row['loss'] - row['sequential_loss']):.1e}",
        ]
        for row in rows
    ]
    names = ("M", "sweeps n", "norm (sequential)", "cosine", "error", "difference of losses")
    yield from markdown_table(names, cells)
    yield ""


def _training(rows: Sequence[Row]) -> Iterator[str]:
    if not rows:
        return
    yield from (
        "## Training",
        "",
        "The outer loop of the quickstart (60 steps, M = 4) from the aligned links of the runs of "
        "comparison, by way of thinking. Right answers of the first 500 test questions by round, "
        "mean over seeds [lowest, highest]; norm: median over steps of the gradient's norm.",
        "",
    )
    rounds = sorted({int(name) for row in rows for name in row["accuracy"]})
    cells = []
    for (name,), of in _grouped(rows, "thinking"):
        accuracies = [[row["accuracy"][str(r)] for row in of] for r in rounds]
        norms = [row["grad_norm"] for row in of]
        cells.append([name, str(len(of)), *map(_spread, accuracies), _numbers(norms)])
    yield from markdown_table(("thinking", "seeds", *(f"round {r}" for r in rounds), "norm"), cells)
    yield ""


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.1%} [{min(values):.1%}, {max(values):.1%}]"


def _numbers(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.3g} [{min(values):.3g}, {max(values):.3g}]"
