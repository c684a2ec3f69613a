"""A tiny training run on fake devices, in this process or as one process of several.

    python tests/training_worker.py AGENTS FOLDER MESH STEPS DEVICES [PROCESS PROCESSES PORT [ASK]]

MESH is like 2,2,2. A process that gets ASK sends itself SIGTERM after so many steps. With 0 STEPS
nothing is trained: two checkpoints are saved, the part of the last process in the newer one is
damaged, and all restore.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from fake_storage import ROOT
from flat import encoded_items
from jax.sharding import NamedSharding, PartitionSpec
from processes import environment
from systems import TinySystem, build_pattern

from rmas_jax.agents.agent import Agent, load_agent
from rmas_jax.checkpoints import open_checkpoints
from rmas_jax.config import OuterConfig, PhaseConfig
from rmas_jax.host.preemption import PreemptedError, sigterm_noted
from rmas_jax.host.processes import broadcast_from_first, join
from rmas_jax.host.storage import Mirror, open_mirror
from rmas_jax.interop.link_files import save_links
from rmas_jax.models import save_pretrained
from rmas_jax.rounds.supervision import Targets
from rmas_jax.sharding import make_mesh, to_host
from rmas_jax.training.curves import Curves
from rmas_jax.training.hooks import Hook, when
from rmas_jax.training.outer.loop import run_phase

PREEMPTED = 75
CHECKPOINTS = "fake://bucket/checkpoints"  # used where there is a folder for the fake storage


def write_agents(folder: Path) -> None:
    """Checkpoints of two random agents."""
    for role, agent in build_pattern("distillation").agents.items():
        save_pretrained(folder / role, agent.decoder, agent.params)


def load_agents(folder: Path, tiny: TinySystem, mesh: jax.sharding.Mesh) -> dict[str, Agent]:
    """Those agents, from their checkpoints onto a mesh."""
    return {role: load_agent(folder / role, mesh=mesh) for role in tiny.agents}


def train(
    agents: Path,
    folder: Path,
    sizes: tuple[int, int, int],
    steps: int,
    *,
    optimizer: str = "sgd",  # Adam would make a step of every rounding error where a gradient is 0
    hooks: Sequence[Hook] = (),
    mirror: Mirror | None = None,
) -> Any:
    """Trains, or goes on training, on a mesh over all devices or the first; writes the links.

    The checkpoints are in the folder or, with a mirror, on object storage.
    """
    tiny = build_pattern("distillation")
    needed = int(np.prod(sizes))
    mesh = make_mesh(*sizes, devices=jax.devices()[:needed])
    random = np.random.default_rng(0)
    ids = random.integers(0, 37, (24, 2, 4)).astype(np.int32)
    target = Targets(ids=ids, valid=np.ones(ids.shape, bool))
    data = encoded_items(
        tiny.prompt_tokens(["where does it end" + " now" * (i % 5) for i in range(24)]),
        {role: target for role in tiny.agents},
    )
    phase = PhaseConfig(
        name="worker",
        latents="teacher_forced",
        rounds=2,
        steps=steps,
        batch_size=8,
        learning_rate=1e-1,
        warmup_steps=1,
        optimizer=optimizer,
    )
    folder.mkdir(exist_ok=True)
    links = run_phase(
        tiny.team(load_agents(agents, tiny, mesh), mesh),
        tiny.links,
        data,
        data.rows(np.arange(8)),
        OuterConfig(phases=(phase,), checkpoint_every=4, log_every=1, validation_every=steps),
        phase,
        key=jax.random.key(7),
        directory=folder / "checkpoints" if mirror is None else mirror.local,
        mirror=mirror,
        curves=Curves(folder / "metrics.jsonl"),
        hooks=hooks,
        progress=False,
    )
    links = to_host(links)
    if jax.process_index() == 0:
        save_links(folder / "links.safetensors", links)
    return links


def start(agents: Path, folder: Path, sizes: Sequence[int], steps: int, *rest: int) -> Any:
    """A process of this program, started; see its arguments."""
    command = [sys.executable, __file__, agents, folder, ",".join(map(str, sizes)), steps, *rest]
    return subprocess.Popen(
        list(map(str, command)),
        cwd=Path(__file__).parents[1],
        env=environment(cache=agents / "compiled"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def lines(file: Path) -> int:
    """Lines of a file that may not exist yet."""
    return len(file.read_text().splitlines()) if file.is_file() else 0


def go_back(folder: Path, sizes: tuple[int, int, int]) -> None:
    """Restores after damage to what the last process has written of the newest checkpoint."""
    mesh = make_mesh(*sizes)
    split = NamedSharding(mesh, PartitionSpec("fsdp"))

    def state(step: int) -> Any:
        rows = np.random.default_rng(step).normal(size=(8, 512))
        return {"rows": jax.make_array_from_callback(rows.shape, split, lambda index: rows[index])}

    def damage() -> None:
        last = f"2/state/ocdbt.process_{jax.process_count() - 1}/d/*"
        for file in list(folder.glob(last)) or [folder / "nothing was written"]:
            file.write_bytes(file.read_bytes()[:7])

    with open_checkpoints(folder, keep=2) as store:
        for step in (1, 2):
            store.save(step, state(step))
    broadcast_from_first(damage)
    with open_checkpoints(folder, keep=2) as store:
        step, found = store.restore_newest(state(0))
        same = jax.tree.map(np.array_equal, to_host(found), to_host(state(step)))
        store.save(3, state(3))
        print(f"went back to {step}: {same}, then {store.steps()}")


def ask_at(step: int) -> Hook:
    """SIGTERM to this process after so many steps of the phase."""
    return when(lambda event: event.done == step, lambda _: os.kill(os.getpid(), signal.SIGTERM))


def main() -> int:
    """One process."""
    agents, folder, sizes, steps, *rest = sys.argv[1:]
    devices, process, processes, port, ask = (
        int(x) for x in (*rest, *(8, 0, 1, 0, 0)[len(rest) :])
    )
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_num_cpu_devices", devices)
    if processes > 1:
        join(f"127.0.0.1:{port}", processes, process)
    sizes = tuple(int(size) for size in sizes.split(","))
    if int(steps) == 0:
        go_back(Path(folder), sizes)
        return 0
    try:
        with sigterm_noted():
            mirror = open_mirror(CHECKPOINTS) if ROOT in os.environ else None
            hooks = [ask_at(ask)]
            train(Path(agents), Path(folder), sizes, int(steps), hooks=hooks, mirror=mirror)
    except PreemptedError as error:
        print(error)
        return PREEMPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
