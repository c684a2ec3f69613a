"""Latent steps, rounds, answers and training steps of a team, against torch and against floors.

    python -m experiments.benchmarks.rounds --shape 10M --out runs/rounds
    experiments/benchmarks/gpu.sh runs/gpu           all parts at the released Light sizes

Both libraries load the same random agents and links (team.py). Contenders are

    torch      transformers, eager mode, with a cache; training as upstream, rows one by one
    scanned    rmas_jax, layers in a loop
    unrolled   rmas_jax, layers one after another, each with arrays of its own (`Agent.unrolled`)

and run in turn. A floor is the time of `rmas_jax.planning.bounds` at the rates of this device: its
copy bandwidth, or that of a sum if higher, and a product of large matrices, measured before. Parts:

    steps      M latent steps of each agent after its prompt
    answer     tokens of the solver after its prompt
    rounds     R rounds of all agents, up to the solver's prompt of the last one
    training   a teacher-forced and an on-policy step of the outer loop

Medians and ranges are without compilation. --profile names what takes longest on a GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gzip
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import harness
from experiments.benchmarks.team import (
    ROLES,
    SHAPES,
    Shape,
    load_jax_team,
    make_team,
    token_rows,
    training_data,
)
from experiments.benchmarks.training_steps import phase_of, torch_steps
from rmas_jax.agents.agent import Agent
from rmas_jax.agents.reading import read_body
from rmas_jax.agents.sampling import speak
from rmas_jax.agents.thinking import think
from rmas_jax.links import Links
from rmas_jax.models import Cache
from rmas_jax.planning import bounds
from rmas_jax.planning.chips import Chip
from rmas_jax.rounds.channels import LatentChannel
from rmas_jax.rounds.recursion import listen
from rmas_jax.topology import System
from rmas_jax.training.outer.step import outer_step, phase_supervision, start_phase

PARTS = ("steps", "answer", "rounds", "training")
TORCH = "torch"


@dataclasses.dataclass(frozen=True, eq=False)
class Bench:
    """Both sides of a team, and how to measure them."""

    shape: Shape
    folder: Path
    system: System
    ways: dict[str, dict[str, Agent]]  # contender -> the agents by role
    links: Links
    torch_team: Any  # None: without torch
    chip: Chip  # this device, by its own rates
    repeats: int
    out: Path
    with_profile: bool

    @property
    def agents(self) -> dict[str, Agent]:
        """The agents, with layers in a loop."""
        return self.ways["scanned"]

    def row(
        self,
        part: str,
        batch: int,
        contenders: dict[str, Callable[[], Any]],
        programs: dict[str, harness.Compiled],
        bound: bounds.Bound,
        *,
        steps: int = 1,
    ) -> Iterator[dict[str, Any]]:
        """Measures contenders; yields a row for each."""
        seconds = harness.in_turn(contenders, repeats=self.repeats)
        floor = bound.seconds(self.chip, 1, dtype=self.shape.dtype)
        theirs = seconds.get(TORCH)
        for name, of in seconds.items():
            times = harness.summary(of)
            ratios = [a / b for a, b in zip(theirs, of, strict=True)] if theirs else []
            program = programs.get(name)
            yield {
                "part": part,
                "batch": batch,
                "contender": name,
                "steps": steps,
                "seconds": of,
                "median_s": times.median,
                "floor_s": floor,
                "times_floor": times.median / floor,
                "flops": bound.flops,
                "times_torch": harness.summary(ratios)._asdict() if ratios else None,
                "lower_s": program.lower_s if program else None,
                "compile_s": program.compile_s if program else None,
                "temporaries": _temporaries(program) if program else None,
            }
            print(f"{part} batch {batch} {name}: {times.median:.4f} s, {times.median / floor:.2f} "
                  f"times the floor", file=sys.stderr, flush=True)  # fmt: skip
        if self.with_profile:
            for name, program in programs.items():
                self._profile(f"{part}_{batch}_{name}".replace(" ", "_"), contenders[name], program)

    def _profile(self, name: str, call: Callable[[], Any], program: harness.Compiled) -> None:
        """Writes the program, and what it spends its time on."""
        self.out.mkdir(parents=True, exist_ok=True)
        text = program.executable.as_text() or ""
        (self.out / f"{name}.hlo.gz").write_bytes(gzip.compress(text.encode()))
        kernels = harness.profile(call)
        lines = [f"{k.seconds:.6f} s  {k.count:6d} x  {k.line}  {k.name}" for k in kernels]
        (self.out / f"{name}.kernels.txt").write_text("\n".join(lines) + "\n")


def _temporaries(program: harness.Compiled) -> int:
    return int(program.executable.memory_analysis().temp_size_in_bytes)


# --- Parts ----------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=(0, 1, 5))
def _think(
    system: System, role: str, agent: Agent, links: Links, state: Any, steps: int
) -> jax.Array:
    hidden, cache = state
    feed = functools.partial(LatentChannel(system, links).feed, role)
    return think(agent, feed, hidden, cache, steps=steps)


@functools.partial(jax.jit, static_argnums=2)
def _write(agent: Agent, state: Any, tokens: int) -> jax.Array:
    return speak(agent, *state, end_tokens=(), max_tokens=tokens).tokens


@jax.jit
def _read(agent: Agent, ids: jax.Array) -> tuple[jax.Array, Cache]:
    hidden, cache = agent.read(agent.embed(ids), jnp.ones(ids.shape, bool))
    return hidden[:, -1], agent.seal(cache, 0)


@functools.partial(jax.jit, static_argnums=0)
def _listen(system: System, agents: Any, links: Links, prompts: Any, rounds: jax.Array) -> Any:
    """The vectors that the answerer received, and its state at its prompt's end."""
    channel = LatentChannel(system, links)
    outcome = listen(system, agents, channel, prompts, rounds=rounds)
    agent = agents[system.topology.answerer]
    return outcome.prompt.received, read_body(agent, outcome.prompt)


def _prompt(bench: Bench, role: str, batch: int) -> np.ndarray:
    """Prompts of a role without a slot: token ids [B, T]."""
    rows = token_rows(bench.shape, batch)[role]
    return np.array([before + after for before, after, _ in rows], np.int32)


def steps_part(bench: Bench, batch: int, roles: Sequence[str]) -> Iterator[dict[str, Any]]:
    """M latent steps of agents."""
    many = bench.shape.latent_steps
    for role in roles:
        ids = _prompt(bench, role, batch)
        programs, contenders = {}, dict[str, Callable[[], Any]]()
        for name, agents in bench.ways.items():
            arguments = agents[role], bench.links, _read(agents[role], ids)
            program = harness.compiled(_think, bench.system, role, *arguments, many)
            programs[name] = program
            contenders[name] = functools.partial(program.call, *arguments)
        if bench.torch_team:
            contenders = {TORCH: _torch_thinks(bench, role, ids)} | contenders
            _compare(contenders, f"{role}: thoughts")
        part = bounds.single_steps(bench.agents[role], batch, many - 1, ids.shape[1])
        yield from bench.row(
            f"steps of the {role}",
            batch,
            contenders,
            programs,
            bounds.Bound((part,)),
            steps=many - 1,
        )


def _torch_thinks(bench: Bench, role: str, ids: np.ndarray) -> Callable[[], np.ndarray]:
    from experiments.benchmarks import torch_team

    state = _torch_reads(bench, role, ids)

    def call() -> np.ndarray:
        hidden, cache = state
        torch_team.rewind(cache, ids.shape[1])
        out = torch_team.think(
            bench.torch_team.models[role], bench.torch_team.links[role], hidden, cache,
            bench.shape.latent_steps,
        )  # fmt: skip
        return out.float().cpu().numpy()

    return call


def _torch_reads(bench: Bench, role: str, ids: np.ndarray) -> tuple[Any, Any]:
    import torch

    from experiments.benchmarks import torch_team

    model = bench.torch_team.models[role]
    tokens = torch.tensor(ids, dtype=torch.long, device=bench.torch_team.device)
    return torch_team.read(model, model.get_input_embeddings()(tokens))


def answer_part(bench: Bench, batch: int, tokens: int) -> Iterator[dict[str, Any]]:
    """Tokens of the solver."""
    from experiments.benchmarks import torch_team

    role = ROLES[-1]
    ids = _prompt(bench, role, batch)
    programs, contenders = {}, dict[str, Callable[[], Any]]()
    for name, agents in bench.ways.items():
        arguments = agents[role], _read(agents[role], ids)
        programs[name] = harness.compiled(_write, *arguments, tokens)
        contenders[name] = functools.partial(programs[name].call, *arguments)
    if bench.torch_team:
        theirs = _torch_reads(bench, role, ids)

        def call() -> np.ndarray:
            torch_team.rewind(theirs[1], ids.shape[1])
            model = bench.torch_team.models[role]
            return torch_team.write(model, *theirs, tokens).cpu().numpy()

        contenders = {TORCH: call} | contenders
    bound = bounds.bound_of_answer(bench.agents[role], batch, ids.shape[1], tokens=tokens)
    yield from bench.row("answer", batch, contenders, programs, bound, steps=tokens - 1)


def rounds_part(bench: Bench, batch: int) -> Iterator[dict[str, Any]]:
    """R rounds of all agents."""
    from experiments.benchmarks import torch_team

    prompts = jax.device_put(training_data(bench.shape, batch).prompts)
    rounds = jnp.asarray(bench.shape.rounds)
    programs, contenders = {}, dict[str, Callable[[], Any]]()
    for name, agents in bench.ways.items():
        arguments = agents, bench.links, prompts, rounds
        programs[name] = harness.compiled(_listen, bench.system, *arguments)
        contenders[name] = functools.partial(_received, programs[name], *arguments)
    if bench.torch_team:
        rows = token_rows(bench.shape, batch)

        def call() -> np.ndarray:
            return torch_team.listen(bench.torch_team, rows, bench.shape)[0].float().cpu().numpy()

        contenders = {TORCH: call} | contenders
        _compare(contenders, "received")
    bound = bounds.bound_of_rounds(bench.system, bench.agents, prompts, rounds=bench.shape.rounds)
    role = ROLES[-1]
    read = bounds.reading(bench.agents[role], batch, *bounds.widths(prompts[role])[:0:-1])
    bound = bounds.Bound((*bound.parts, read))
    yield from bench.row("rounds", batch, contenders, programs, bound)


def _received(program: harness.Compiled, *arguments: Any) -> jax.Array:
    return program.call(*arguments)[0]


def training_part(bench: Bench, batch: int, latents: str) -> Iterator[dict[str, Any]]:
    """A step of the outer loop."""
    phase = phase_of(bench.shape, batch, latents=latents)
    data = jax.device_put(training_data(bench.shape, batch))
    state = start_phase(phase, jax.tree.map(jnp.copy, bench.links))
    step = jax.jit(outer_step, static_argnums=(0, 1), donate_argnums=4)
    program = harness.compiled(step, bench.system, phase, bench.agents, data, state)
    losses = []

    def ours() -> None:
        nonlocal state
        state, metrics = program.call(bench.agents, data, state)
        losses.append(float(metrics["loss"]))

    contenders: dict[str, Callable[[], Any]] = {"scanned": ours}
    if bench.torch_team and latents == "teacher_forced":
        device = bench.torch_team.device
        contenders = {
            TORCH: torch_steps(bench.shape, bench.folder, batch, device=device)
        } | contenders
    answerer = bench.system.topology.answerer
    supervision = phase_supervision(phase, data.targets, answerer=answerer)
    bound = bounds.bound_of_step(
        bench.system,
        bench.agents,
        data.prompts,
        {role: target.ids.shape[2] for role, target in data.targets.items()},
        supervision.scored or {},
        forced={role: supervision.forces(role, is_answerer=role == answerer) for role in ROLES},
        rounds=bench.shape.rounds,
    )
    yield from bench.row(f"training, {latents}", batch, contenders, {"scanned": program}, bound)


def _compare(contenders: dict[str, Callable[[], Any]], what: str) -> None:
    """Prints differences to torch's vectors [B, M, D], at the first, the fourth and the last.

    Random agents of many layers amplify rounding from thought to thought.
    """
    expected = contenders[TORCH]()
    for name, call in contenders.items():
        gap = np.linalg.norm(np.asarray(call(), np.float32) - expected, axis=(0, 2))
        gap = (gap / np.linalg.norm(expected, axis=(0, 2)))[[0, 3, -1]]
        shown = ", ".join(f"{x:.1e}" for x in gap)
        print(f"{what} of {name}: relative differences to torch {shown}", file=sys.stderr)


# --- Report ---------------------------------------------------------------------------------------


def markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    setting = report["setting"]
    lines = [
        f"# Latent rounds, {setting['shape']} agents, {setting['device']}",
        "",
        f"{setting['rounds']} rounds, {setting['latent_steps']} latents, {setting['dtype']}; "
        f"{setting['repeats']} interleaved repeats, medians; jax {setting['jax']}"
        + (f", torch {setting['torch']}" if setting["torch"] else "")
        + f". Rates of this device: {setting['bandwidth'] / 1e9:,.0f} GB/s, "
        f"{setting['peak'] / 1e12:,.1f} TFLOP/s.",
        "",
    ]
    columns = ("part", "batch", "contender", "s", "ms a step", "times the floor", "TFLOP/s",
               "times torch (range)", "compile s")  # fmt: skip
    rows = []
    for row in report["rows"]:
        ratio = row["times_torch"]
        rows.append(
            (
                row["part"],
                str(row["batch"]),
                row["contender"],
                f"{row['median_s']:.4f}",
                f"{1e3 * row['median_s'] / row['steps']:.3f}" if row["steps"] > 1 else "",
                f"{row['times_floor']:.2f}",
                f"{row['flops'] / row['median_s'] / 1e12:.2f}",
                f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
                if ratio
                else "",
                f"{row['lower_s'] + row['compile_s']:.1f}" if row["compile_s"] else "",
            )
        )
    return "\n".join([*lines, *harness.markdown_table(columns, rows), ""])


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.rounds",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, number = out.add_argument, functools.partial(out.add_argument, type=int, metavar="N")
    add("--shape", choices=SHAPES, default="10M", help="of the agents (10M)")
    add("--parts", nargs="+", choices=PARTS, default=PARTS, help="(all)")
    add("--roles", nargs="+", choices=ROLES, default=ROLES, help="of latent steps (all)")
    add("--latents", nargs="+", choices=("teacher_forced", "on_policy"),
        default=("teacher_forced", "on_policy"), help="of training steps (both)")  # fmt: skip
    number("--batch", nargs="+", default=[1, 8], help="batch sizes (1 8)")
    number("--training-batch", nargs="+", default=[8], help="of training steps (8)")
    number("--tokens", default=64, help="of the answer (64)")
    number("--repeats", default=5, help="measured, after one to warm up (5)")
    add("--unrolled", action="store_true", help="adds agents with unrolled layers")
    add("--team", type=Path, metavar="DIR", help="keeps the team there, or takes it from there")
    add("--no-torch", action="store_true", help="rmas_jax alone")
    add("--profile", action="store_true", help="writes programs, and kernels by time")
    add("--out", type=Path, required=True, help="folder for the report")
    return out


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints the table and writes it; returns the exit code."""
    args = parser().parse_args(arguments)
    if args.tokens < 2 or min(args.repeats, *args.batch, *args.training_batch) < 1:
        print(
            "error: --tokens must be at least 2, --repeats and batch sizes at least 1",
            file=sys.stderr,
        )
        return 2
    import torch

    shape, machine = SHAPES[args.shape], harness.machine()
    device = "cuda" if machine["platform"] == "gpu" and torch.cuda.is_available() else "cpu"
    chip = harness.measured_chip(shape.dtype)
    memory = "/dev/shm" if device == "cuda" else None  # large checkpoints need no disk
    with tempfile.TemporaryDirectory(dir=memory) as directory:
        folder = args.team or Path(directory)
        if not (folder / f"{ROLES[0]}.pt").exists():
            make_team(shape, folder, device=device)
        system, agents, links = load_jax_team(shape, folder)
        ways = {"scanned": agents}
        if args.unrolled:
            ways["unrolled"] = {role: agent.unrolled() for role, agent in agents.items()}
        team = None
        if not args.no_torch:
            from experiments.benchmarks.torch_team import load_torch_team

            torch.set_num_threads(os.cpu_count() or 1)
            team = load_torch_team(shape, folder, device)
        bench = Bench(
            shape, folder, system, ways, links, team, chip, args.repeats, args.out, args.profile
        )
        report: dict[str, Any] = {
            "setting": machine
            | {
                "shape": args.shape,
                "dtype": shape.dtype,
                "rounds": shape.rounds,
                "latent_steps": shape.latent_steps,
                "lengths": dict(shape.lengths),
                "text": shape.text,
                "tokens": args.tokens,
                "repeats": args.repeats,
                "bandwidth": chip.chip_bandwidth,
                "peak": chip.chip_peak[shape.dtype],
                "torch": None if team is None else torch.__version__,
            },
            "rows": [],
        }
        for row in _rows(bench, args):
            report["rows"].append(row)
            page = markdown(report)
            harness.write_report(args.out, "rounds", report, page)
    print(page)
    return 0


def _rows(bench: Bench, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for batch in args.batch:
        if "steps" in args.parts:
            yield from steps_part(bench, batch, args.roles)
        if "answer" in args.parts:
            yield from answer_part(bench, batch, args.tokens)
        if "rounds" in args.parts:
            yield from rounds_part(bench, batch)
    if "training" in args.parts:
        for batch in args.training_batch:
            for latents in args.latents:
                yield from training_part(bench, batch, latents)


if __name__ == "__main__":
    sys.exit(main())
