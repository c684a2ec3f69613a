"""Parallel latents: sweeps, errors and gradients against sequential thinking, as JSON and a page.

    python -m experiments.studies.parallel_latents --out docs/parallel-latents \\
        --runs runs/comparison-0 [--parts team gradients agents training] [--agents 10M 100M]

`--runs` are finished runs of the study `comparison` (docs/studies.md), whose trained links the
embedded team takes. The part `pretrained` needs `--checkpoint`, such as a model of
`experiments.real_agents.fetch`, and reasoning-gym. Parts that are measured replace those in
results.json; the page is made from all of them. Sweeps and errors do not depend on the machine;
seconds are medians of calls in turn.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import harness
from experiments.benchmarks.team import SHAPES, load_jax_team, make_team, token_rows
from experiments.studies.parallel_latents_page import page
from experiments.studies.pretrained_thinker import RidgeLink, load_thinker
from experiments.studies.pretrained_thinker import token_rows as thinker_prompts
from rmas_jax.agents.agent import Agent
from rmas_jax.agents.sweeps import relative_change, windows
from rmas_jax.agents.thinking import think
from rmas_jax.agents.writing import write
from rmas_jax.config import PhaseConfig, SweepConfig, load_config
from rmas_jax.data.loading import Dataset, load_dataset
from rmas_jax.host.atomic import write_atomic
from rmas_jax.links import Links
from rmas_jax.prompts import StagePrompt
from rmas_jax.rounds.channels import LatentChannel
from rmas_jax.rounds.recursion import listen
from rmas_jax.run_files import RunFiles
from rmas_jax.runs.run import run as run_all
from rmas_jax.team import Team, load_links_for, load_team
from rmas_jax.topology import System
from rmas_jax.training.data.encoding import encode_examples
from rmas_jax.training.outer.step import outer_loss

TOLERANCES = (0.3, 0.1, 0.03, 0.01, 0.001, 0.0)
WINDOWS = (4, 8, 16, 32)
QUESTIONS, ROUNDS, MAX_TOKENS = 500, 3, 16
THOUGHTS = 32  # of a pretrained agent
Row = dict[str, Any]


def tolerant(how: SweepConfig, tolerance: jax.Array) -> SweepConfig:
    """Sweeps with a traced tolerance: one program serves all."""
    return dataclasses.replace(how, tolerance=tolerance)  # type: ignore[arg-type]


@functools.partial(jax.jit, static_argnames=("system", "how", "ends"))
def answers(
    system: System,
    agents: Mapping[str, Agent],
    links: Links,
    prompts: Mapping[str, StagePrompt],
    tolerance: jax.Array,
    *,
    how: SweepConfig | None,
    ends: tuple[int, ...],
) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    """The vectors that the answerer received, sweeps [B, N], and the tokens of greedy answers."""
    if how is not None:
        system = system.replace(sweeps=tolerant(how, tolerance))
    channel = LatentChannel(system, links)
    out = listen(system, agents, channel, prompts, rounds=jnp.int32(ROUNDS))
    agent = agents[system.topology.answerer]
    state = write(agent, out.prompt, end_tokens=ends, max_tokens=MAX_TOKENS)
    return out.prompt.received, out.sweeps, state.tokens


def embedded_team(run: Path, latent_steps: int) -> tuple[Team, Links]:
    """The team of the quickstart, with the trained links of a run."""
    links = RunFiles(run).trained_links
    overrides = [f"system.latent_steps={latent_steps}", f"system.links={links}"]
    config = load_config("quickstart", overrides).system
    team = load_team(config)
    return team, load_links_for(team, config)


def relay(folder: Path) -> Dataset:
    """The task of the embedded team."""
    config = load_config("quickstart")
    roles = tuple(config.system.agents)
    return load_dataset(config.data, roles=roles, rounds=ROUNDS, data_dir=folder)


def team_part(runs: Sequence[Path], dataset: Dataset, steps: Sequence[int]) -> Iterator[Row]:
    """Sweeps, errors and changed answers of the embedded team on its test questions."""
    examples = dataset.load("test")[:QUESTIONS]
    for run, many in itertools.product(runs, steps):
        team, links = embedded_team(run, many)
        member = team.members[team.system.topology.answerer]
        prompts = team.encode([example.question for example in examples])
        of = functools.partial(answers, team.system, team.agents, links, prompts)
        ends = member.end_tokens

        def correct(tokens: Any, member: Any = member, ends: Any = ends) -> list[bool]:
            texts = [
                member.tokenizer.decode([t for t in row if t not in ends and t]).strip()
                for row in np.asarray(tokens).tolist()
            ]
            return [
                text == example.answer.strip()
                for text, example in zip(texts, examples, strict=True)
            ]

        reference, _, expected = jax.device_get(of(0.0, how=None, ends=ends))
        turns = np.array([ROUNDS] * (len(team.agents) - 1) + [ROUNDS - 1])
        common = {"run": run.name, "latent_steps": many, "questions": len(examples)}
        common["sequential_correct"] = sum(correct(expected))
        widths = dict.fromkeys(windows(many - 1, window)[1] for window in WINDOWS)
        for width, start in itertools.product(widths, ("round", "last")):
            how = SweepConfig(window=max(width, 2), start=start)
            for tolerance in TOLERANCES:
                received, sweeps, tokens = jax.device_get(of(tolerance, how=how, ends=ends))
                error = np.asarray(relative_change(reference, received))
                yield {
                    **common,
                    "window": width,
                    "start": start,
                    "tolerance": tolerance,
                    "sweeps_per_turn": float(sweeps.mean(0).sum() / turns.sum()),
                    "most_sweeps_per_turn": float((sweeps / turns).max()),
                    "error": float(error.mean()),
                    "changed": int((tokens != expected).any(axis=1).sum()),
                    "correct": sum(correct(tokens)),
                }
                print(f"{common} {width} {start} {tolerance}", file=sys.stderr, flush=True)


def phase(**options: Any) -> PhaseConfig:
    """On-policy training on the answer, through all rounds and thoughts."""
    return PhaseConfig(
        name="on_policy",
        latents="on_policy",
        rounds=ROUNDS,
        steps=1,
        batch_size=1,
        learning_rate=1e-3,
        warmup_steps=0,
        **options,
    )


@functools.partial(jax.jit, static_argnames="system")
def gradient(system: System, agents: Any, links: Links, batch: Any) -> tuple[jax.Array, Links]:
    """Loss and gradient of all links, inner ones too."""
    how = phase(train_inner_links=True)
    return jax.value_and_grad(lambda links: outer_loss(system, how, agents, links, batch)[0])(links)


def gradient_part(
    runs: Sequence[Path], dataset: Dataset, steps: Sequence[int], items: int = 16
) -> Iterator[Row]:
    """Gradients through the last sweeps against those of sequential thinking."""
    examples = dataset.load("validation")[:items]
    for run, many in itertools.product(runs, steps):
        team, links = embedded_team(run, many)
        batch = encode_examples(team, examples).batch()

        def of(
            sweeps: SweepConfig | None, team: Any = team, links: Any = links, batch: Any = batch
        ) -> tuple[float, np.ndarray]:
            system = team.system.replace(sweeps=sweeps)
            loss, grads = gradient(system, team.agents, links, batch)
            flat = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(grads)]
            return float(loss), np.concatenate(flat)

        loss, expected = of(None)
        common = {"run": run.name, "latent_steps": many, "items": items, "sequential_loss": loss}
        common["sequential_norm"] = float(np.linalg.norm(expected))
        for last in sorted({1, 2, 4, 8, many - 1}):
            if last < many:
                loss, found = of(SweepConfig(window=max(many - 1, 2), gradient=last))
                norm = np.linalg.norm(found)
                yield {
                    **common,
                    "gradient": last,
                    "loss": loss,
                    "norm": float(norm),
                    "cosine": float(found @ expected / (norm * np.linalg.norm(expected))),
                    "error": float(np.linalg.norm(found - expected) / np.linalg.norm(expected)),
                }
                print(f"{common} {last}", file=sys.stderr, flush=True)


@functools.partial(jax.jit, static_argnames=("role", "steps", "how"))
def thoughts(
    agent: Agent,
    channel: LatentChannel | RidgeLink,
    ids: jax.Array,
    tolerance: jax.Array,
    *,
    role: str,
    steps: int,
    how: SweepConfig | None,
) -> tuple[jax.Array, jax.Array | None]:
    """An agent's thoughts after prompts [B, T], and the sweeps [B]."""
    hidden, cache = agent.read(agent.embed(ids), jnp.ones(ids.shape, bool))
    sweeps = None if how is None else tolerant(how, tolerance)
    cache = agent.seal(cache, 0)
    feed = functools.partial(channel.feed, role)
    made = think(agent, feed, hidden[:, -1], cache, steps=steps, sweeps=sweeps)
    return made.thoughts, made.sweeps


def _finished(of: Callable[..., Any], tolerance: float, how: SweepConfig | None) -> Any:
    return jax.block_until_ready(of(tolerance, how=how))


def agents_part(names: Sequence[str], batches: Sequence[int], repeats: int) -> Iterator[Row]:
    """Sweeps, errors and seconds of random agents, after prompts of random tokens."""
    for name in names:
        shape = SHAPES[name]
        with tempfile.TemporaryDirectory() as folder:
            make_team(shape, Path(folder))
            system, agents, links = load_jax_team(shape, Path(folder))
        role, steps = "planner", shape.latent_steps
        channel = LatentChannel(system, links)
        for batch in batches:
            rows = token_rows(shape, batch)[role]
            ids = np.array([before + after for before, after, _ in rows], np.int32)
            of = functools.partial(thoughts, agents[role], channel, ids, role=role, steps=steps)
            for row in _by_window(of, steps, repeats):
                yield {"agent": name, "batch": batch, "latent_steps": steps, **row}


def pretrained_part(source: Path, batches: Sequence[int], repeats: int) -> Iterator[Row]:
    """The same of a pretrained agent after prompts of text, with a link fitted to it."""
    agent, link = load_thinker(source)
    for batch in batches:
        ids = thinker_prompts(source, batch, seed=1)
        of = functools.partial(thoughts, agent, link, ids, role="thinker", steps=THOUGHTS)
        for row in _by_window(of, THOUGHTS, repeats):
            setting = {"latent_steps": THOUGHTS, "prompt_tokens": ids.shape[1]}
            yield {"agent": source.stem, "batch": batch, **setting, **row}


def _by_window(of: Callable[..., Any], steps: int, repeats: int) -> Iterator[Row]:
    """Sweeps, errors and seconds of `thoughts` by window and tolerance."""
    expected, _ = jax.device_get(of(0.0, how=None))
    for window in WINDOWS:
        _, width = windows(steps - 1, window)
        how = SweepConfig(window=width)
        calls = {"sequential": functools.partial(_finished, of, 0.0, None)}
        rows_of = []
        for tolerance in TOLERANCES:
            found, sweeps = jax.device_get(of(tolerance, how=how))
            error = np.asarray(relative_change(expected, found))
            rows_of.append((tolerance, sweeps, float(error.mean())))
            calls[str(tolerance)] = functools.partial(_finished, of, tolerance, how)
        seconds = harness.in_turn(calls, repeats=repeats)
        base = seconds["sequential"]
        for tolerance, sweeps, error in rows_of:
            yield {
                "window": width,
                "tolerance": tolerance,
                "sweeps": float(sweeps.mean()),
                "most_sweeps": int(sweeps.max()),
                "error": error,
                "sequential_s": harness.summary(base).median,
                "speedup": harness.speedup(base, seconds[str(tolerance)])._asdict(),
            }
        print(f"window {width}", file=sys.stderr, flush=True)


THINKING = {
    "sequential": (),
    "parallel": ("system.thinking=parallel",),
    "parallel-last": ("system.thinking=parallel", "system.sweeps.gradient=1"),
}


def training_part(runs: Sequence[Path], folder: Path) -> Iterator[Row]:
    """The outer loop from the aligned links of runs, by way of thinking; finished ones are read."""
    for run, (name, overrides) in itertools.product(runs, THINKING.items()):
        seed = run.name.rpartition("-")[2]
        chosen = [
            *(f"name={name}-{seed}", f"seed={seed}", f"output_dir={folder}"),
            *("runtime.progress=false", "inner.steps=0", "inner.repeats=1"),
            f"system.links={RunFiles(run).aligned_links}",
            f"evaluation.benchmarks=[{{name: relay, splits: ['test[:{QUESTIONS}]']}}]",
            *("evaluation.rounds=[1, 2, 3, 4]", "evaluation.methods=[recursive_mas]"),
            *overrides,
        ]
        finished = run_all(load_config("quickstart", chosen))
        files = RunFiles(folder / f"{name}-{seed}")
        steps = [json.loads(line) for line in files.metrics.read_text().splitlines()]
        norms = [
            step["grad_norm"] for step in steps if "grad_norm" in step and step["loop"] == "outer"
        ]
        yield {
            "thinking": name,
            "seed": int(seed),
            "accuracy": {str(row["rounds"]): row["accuracy"] for row in finished.measured.results},
            "grad_norm": statistics.median(norms),
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the parts, and writes results.json and README.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, nargs="+", default=[Path("runs/comparison-0")])
    parser.add_argument("--parts", nargs="*", default=["team", "gradients", "agents", "training"])
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 8, 16, 32], metavar="M")
    parser.add_argument("--agents", nargs="+", default=["10M", "100M"], metavar="NAME")
    parser.add_argument("--checkpoint", type=Path, metavar="PATH", help="of the part pretrained")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--trained", type=Path, default=Path("runs"), help="folder of training")
    options = parser.parse_args(arguments)
    if "pretrained" in options.parts and options.checkpoint is None:
        parser.error("--parts pretrained needs --checkpoint")
    file = options.out / "results.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        dataset = relay(Path(folder))
        parts: dict[str, Callable[[], Iterator[Row]]] = {
            "team": lambda: team_part(options.runs, dataset, options.steps),
            "gradients": lambda: gradient_part(options.runs, dataset, options.steps),
            "agents": lambda: agents_part(options.agents, options.batches, options.repeats),
            "pretrained": lambda: pretrained_part(
                options.checkpoint, options.batches, options.repeats
            ),
            "training": lambda: training_part(options.runs, options.trained),
        }
        for name in options.parts:
            results[name] = list(parts[name]())
            options.out.mkdir(parents=True, exist_ok=True)
            write_atomic(
                file, json.dumps(results | {"machine": harness.machine()}, indent=1) + "\n"
            )
    write_atomic(options.out / "README.md", page(results))


if __name__ == "__main__":
    main()
