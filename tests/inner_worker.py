"""A tiny inner loop on fake devices, as one process of several.

    python tests/inner_worker.py FOLDER PROCESS PROCESSES PORT

Eight devices in all share the agents. Each process trains twice, the second time from what the
first has left, and writes both links. Then the last one gets SIGTERM, and all exit with PREEMPTED.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import jax
import numpy as np
from teams import QUESTIONS, build_team, with_agents

from rmas_jax.config import InnerConfig
from rmas_jax.data import Example
from rmas_jax.host.errors import PREEMPTED
from rmas_jax.host.preemption import PreemptedError
from rmas_jax.interop.link_files import save_links
from rmas_jax.links import Links
from rmas_jax.sharding import make_mesh, replicated
from rmas_jax.team import Team
from rmas_jax.training.curves import Curves
from rmas_jax.training.data.encoding import encode_dialogues, encode_examples
from rmas_jax.training.inner.loop import run_inner_loop
from rmas_jax.training.states import token_states
from rmas_jax.training.states.cache import StateCache

CONFIG = InnerConfig(
    steps=5, batch_size=8, learning_rate=1e-2, warmup_steps=1, repeats=2, noise=0.1
)
ROLES = ("planner", "critic", "solver")
EXAMPLES = [
    Example(
        str(i),
        question,
        "w",
        texts={
            "planner": (f"from {i} to a", f"you plan {i}"),
            "critic": ("plan about", f"refine {i} a"),
            "solver": ("w", "the parcel " * (i + 1)),
        },
    )
    for i, question in enumerate(QUESTIONS)
]


def team_on(mesh: jax.sharding.Mesh, folder: Path) -> tuple[Team, Links]:
    """The team of `teams`, on every device of a mesh, and its links."""
    team, links = build_team(folder)
    whole = replicated(mesh)
    agents = jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(whole, np.asarray(x), x.shape), team.agents
    )
    return with_agents(team, agents, mesh), links


def train(
    team: Team,
    links: Links,
    metrics: Path,
    config: InnerConfig = CONFIG,
    *,
    examples: list[Example] = EXAMPLES,
    states: Path | None = None,
    **options: bool,
) -> Links:
    """Trains on the examples, with a cache in the folder `states` if it is given."""
    dialogues = {
        role: encode_dialogues(examples, member, topology=team.system.topology, rounds=2)
        for role, member in team.members.items()
    }
    data = encode_examples(team, examples)
    agents = {role: role for role in ROLES}
    return run_inner_loop(
        team,
        links,
        dialogues,
        data,
        config,
        rounds=2,
        key=jax.random.key(0),
        curves=Curves(metrics),
        cache=None if states is None else StateCache(states, limit_gib=1, agents=agents),
        log_every=2,
        progress=False,
        **options,
    )


def never_read(*_):
    """Fails as soon as it is asked for the first states."""
    raise AssertionError("texts are read again")
    yield


def main() -> None:
    """One process."""
    folder, (process, processes, port) = Path(sys.argv[1]), map(int, sys.argv[2:])
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_num_cpu_devices", 8 // processes)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", processes, process)
    team, links = team_on(make_mesh(8), folder / f"team-{process}")
    for name in ("cold", "warm"):
        trained = train(team, links, folder / "metrics.jsonl", states=folder / "states")
        save_links(folder / f"{name}-{process}.safetensors", trained)
        token_states.read_texts = never_read
    if process == processes - 1:
        signal.raise_signal(signal.SIGTERM)
    try:
        for _ in range(100):  # it takes a while until all processes know of the signal
            train(team, links, folder / "stopped.jsonl", states=folder / "states")
    except PreemptedError as stopped:
        print(stopped)
        sys.exit(PREEMPTED)


if __name__ == "__main__":
    main()
