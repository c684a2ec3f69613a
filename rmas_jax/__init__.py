"""Recursive multi-agent systems in latent space, as pure JAX functions.

The names below are those that most programs start from. Each is imported from its module at its
first use: `import rmas_jax` itself imports nothing else, JAX included.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rmas_jax.agents.agent import Agent as Agent
    from rmas_jax.agents.agent import load_agent as load_agent
    from rmas_jax.config import RunConfig as RunConfig
    from rmas_jax.config import load_config as load_config
    from rmas_jax.evaluation.answerer import Answerer as Answerer
    from rmas_jax.links import Links as Links
    from rmas_jax.rounds.channels import LatentChannel as LatentChannel
    from rmas_jax.rounds.recursion import Unroll as Unroll
    from rmas_jax.rounds.recursion import listen as listen
    from rmas_jax.rounds.recursion import run_rounds as run_rounds
    from rmas_jax.rounds.recursion import solve as solve
    from rmas_jax.runs.run import run as run
    from rmas_jax.team import load_links_for as load_links_for
    from rmas_jax.team import load_team as load_team
    from rmas_jax.team import start_links as start_links
    from rmas_jax.topology import load_topology as load_topology

__version__ = "0.1.0"

# Name -> its module; the imports above, which type checkers read, are the same.
_HOMES = {
    "Agent": "rmas_jax.agents.agent",
    "Answerer": "rmas_jax.evaluation.answerer",
    "LatentChannel": "rmas_jax.rounds.channels",
    "Links": "rmas_jax.links",
    "RunConfig": "rmas_jax.config",
    "Unroll": "rmas_jax.rounds.recursion",
    "listen": "rmas_jax.rounds.recursion",
    "load_agent": "rmas_jax.agents.agent",
    "load_config": "rmas_jax.config",
    "load_links_for": "rmas_jax.team",
    "load_team": "rmas_jax.team",
    "load_topology": "rmas_jax.topology",
    "run": "rmas_jax.runs.run",
    "run_rounds": "rmas_jax.rounds.recursion",
    "solve": "rmas_jax.rounds.recursion",
    "start_links": "rmas_jax.team",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value  # the next use finds it without this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
