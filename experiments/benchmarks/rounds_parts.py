"""The parts of `rounds.py`: what each measures, on both sides."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import harness, scopes
from experiments.benchmarks.team import ROLES, Shape, token_rows, training_data
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
from rmas_jax.runs.plan_programs import phase_bound
from rmas_jax.topology import System
from rmas_jax.training.outer.step import outer_step, start_phase

TORCH, UPSTREAM = "torch", "torch, no cache"
ROUNDS, LATENT_STEPS = (1, 2, 3, 4), (16, 32, 64)  # of costs


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
    weight_rates: dict[int, float]  # batch -> bytes/s of the fastest products, see `products`
    upstream: bool  # whether rounds run as upstream, too
    repeats: int
    out: Path
    with_profile: bool

    @property
    def agents(self) -> dict[str, Agent]:
        """The agents, with layers in a loop."""
        return self.ways["scanned"]

    def measured(
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
        yield from self.rows(part, batch, seconds, programs, bound, steps=steps)
        if self.with_profile:
            for name, program in programs.items():
                file = f"{part}_{batch}_{name}".replace(" ", "_")
                trips = max(steps, self.shape.rounds)  # of the loop over tokens, or rounds
                self._profile(file, contenders[name], program, bound, trips)

    def rows(
        self,
        part: str,
        batch: int,
        seconds: dict[str, list[float]],
        programs: dict[str, harness.Compiled],
        bound: bounds.Bound,
        *,
        steps: int = 1,
    ) -> Iterator[dict[str, Any]]:
        """A row for each contender's seconds."""
        floor = bound.seconds(self.chip, 1, dtype=self.shape.dtype)
        practical = bound.seconds(
            self.chip, 1, dtype=self.shape.dtype, weight_rate=self.weight_rates[batch]
        )
        theirs = seconds.get(TORCH)
        for name, of in seconds.items():
            times = harness.summary(of)
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
                "practical_s": practical,
                "times_practical": times.median / practical,
                "flops": bound.flops,
                "times_torch": harness.speedup(theirs, of)._asdict() if theirs else None,
                "lower_s": program.lower_s if program else None,
                "compile_s": program.compile_s if program else None,
                "temporaries": _temporaries(program) if program else None,
            }
            print(f"{part} batch {batch} {name}: {times.median:.4f} s, {times.median / floor:.2f} "
                  f"times the floor", file=sys.stderr, flush=True)  # fmt: skip

    def _profile(
        self,
        name: str,
        call: Callable[[], Any],
        program: harness.Compiled,
        bound: bounds.Bound,
        trips: int,
    ) -> None:
        """Writes the program, and what it spends its time on, by kernel and by scope."""
        self.out.mkdir(parents=True, exist_ok=True)
        text = program.executable.as_text() or ""
        (self.out / f"{name}.hlo.gz").write_bytes(gzip.compress(text.encode()))
        kernels = harness.profile(call)
        lines = [f"{k.seconds:.6f} s  {k.count:6d} x  {k.line}  {k.name}" for k in kernels]
        (self.out / f"{name}.kernels.txt").write_text("\n".join(lines) + "\n")
        found = scopes.by_scope(text, kernels, trips=trips)
        lines = scopes.table(found, bound, self.chip, self.shape.dtype)
        (self.out / f"{name}.scopes.txt").write_text("\n".join(lines) + "\n")
        print("\n".join(lines), file=sys.stderr, flush=True)


def _temporaries(program: harness.Compiled) -> int:
    return int(program.executable.memory_analysis().temp_size_in_bytes)


@functools.partial(jax.jit, static_argnums=(0, 1, 5))
def _think(
    system: System, role: str, agent: Agent, links: Links, state: Any, steps: int
) -> jax.Array:
    hidden, cache = state
    feed = functools.partial(LatentChannel(system, links).feed, role)
    return think(agent, feed, hidden, cache, steps=steps).thoughts


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
        yield from bench.measured(
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
    yield from bench.measured("answer", batch, contenders, programs, bound, steps=tokens - 1)


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

        def call(*, cached: bool) -> np.ndarray:
            received = torch_team.listen(bench.torch_team, rows, bench.shape, cached=cached)[0]
            return received.float().cpu().numpy()

        theirs: dict[str, Callable[[], Any]] = {TORCH: functools.partial(call, cached=True)}
        if bench.upstream:
            theirs[UPSTREAM] = functools.partial(call, cached=False)
        contenders = theirs | contenders
        _compare(contenders, "received")
    bound = _listen_bound(bench.system, bench.agents, prompts, bench.shape.rounds)
    yield from bench.measured("rounds", batch, contenders, programs, bound)


def costs_part(bench: Bench, batch: int) -> Iterator[dict[str, Any]]:
    """Rounds of several R and M, the rows with both; one program per M."""
    calls, of = dict[str, Callable[[], Any]](), dict[str, tuple[int, int, bounds.Bound]]()
    for many in LATENT_STEPS:
        shape = dataclasses.replace(bench.shape, latent_steps=many)
        system = dataclasses.replace(bench.system, latent_steps=many)
        prompts = jax.device_put(training_data(shape, batch).prompts)
        arguments = bench.agents, bench.links, prompts
        program = harness.compiled(_listen, system, *arguments, jnp.asarray(1))
        for rounds in ROUNDS:
            name = f"{rounds} rounds, {many} latents"
            calls[name] = functools.partial(program.call, *arguments, jnp.asarray(rounds))
            of[name] = rounds, many, _listen_bound(system, bench.agents, prompts, rounds)
    seconds = harness.in_turn(calls, repeats=bench.repeats)
    for name, (rounds, many, bound) in of.items():
        [row] = bench.rows(f"costs, {name}", batch, {"scanned": seconds[name]}, {}, bound)
        yield row | {"rounds": rounds, "latents": many}


def _listen_bound(system: System, agents: Any, prompts: Any, rounds: int) -> bounds.Bound:
    """Of rounds and the answerer's last prompt."""
    bound = bounds.bound_of_rounds(system, agents, prompts, rounds=rounds)
    role = ROLES[-1]
    rows, prefix, body = bounds.widths(prompts[role])
    read = bounds.reading(agents[role], rows, body, prefix)
    return bounds.Bound((*bound.parts, read))


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
    bound = phase_bound(bench.system, bench.agents, phase, data)
    yield from bench.measured(
        f"training, {latents}", batch, contenders, {"scanned": program}, bound
    )


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
