"""The team of the capacity curve with embedded agents, for tests."""

import jax

from experiments.real_agents.options import CONFIG, with_steps
from rmas_jax.config import load_config
from rmas_jax.interop.link_files import save_links
from rmas_jax.sharding import to_host
from rmas_jax.team import load_team, start_links

AGENTS = "system.agents={planner: embedded/planner, solver: embedded/solver}"
PERSONS = 2
SET = ["--set", AGENTS, "--set", f"data.evidence.pairs={PERSONS}"]  # options


def dials():
    """Of its data, with few persons."""
    return load_config(CONFIG, [f"data.evidence.pairs={PERSONS}"]).data.evidence


def team_of(count):
    """The team with M latent steps."""
    return load_team(with_steps(load_config(CONFIG, [AGENTS]), count).system)


def links_of(team, seed):
    """Links that nothing has trained."""
    return start_links(team, start="identity", key=jax.random.key(seed))


def saved(folder, *links):
    """Paths of files with these links."""
    paths = [str(folder / f"links-{seed}.safetensors") for seed in range(len(links))]
    for path, of in zip(paths, links, strict=True):
        save_links(path, to_host(of))
    return paths
