"""The methods that an evaluation compares: one entry each, read by everything that names them.

To add a method, add an entry here and say in `entrants.method_runs` how it answers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from rmas_jax.config import ConfigError
from rmas_jax.host.errors import shown

LATENT = "recursive_mas"
ALIGNED = "aligned_links"
TEXT = "recursive_text"
TRUNCATED = "truncated_text"
NO_LATENTS = "no_latents"
SHUFFLED = "shuffled_latents"
SINGLE_AGENTS = "single_agents"  # every agent alone; its results are called SINGLE and the role
SINGLE = "single_"


@dataclasses.dataclass(frozen=True)
class Method:
    """A method; named, explained and drawn alike in every table and figure."""

    name: str  # in configurations and files
    label: str
    meaning: str
    colour: str  # of the Okabe-Ito palette, which colour-blind readers can tell apart
    marker: str
    line: str = "-"


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            LATENT,
            "latent, trained links",
            "agents exchange latent thoughts, links trained",
            "#0072B2",
            "o",
        ),
        Method(
            ALIGNED,
            "latent, aligned links",
            "the same before the outer training",
            "#56B4E9",
            "s",
            "--",
        ),
        Method(TEXT, "text", "the same agents and rounds, exchanging text", "#D55E00", "^"),
        Method(
            TRUNCATED,
            "text cut to m tokens",
            "text messages cut to the number of latent steps: equal compute",
            "#E69F00",
            "v",
            "--",
        ),
        Method(NO_LATENTS, "no latents", "control: nothing is passed", "#777777", "x", ":"),
        Method(
            SHUFFLED,
            "shuffled latents",
            "control: every item gets another item's latents",
            "#CC79A7",
            "D",
            ":",
        ),
        Method(SINGLE_AGENTS, "single agents", "each agent answers alone", "#009E73", "P", "-."),
    )
}


def chosen_methods(names: Sequence[str] | None) -> tuple[str, ...]:
    """The names of `evaluation.methods`; all methods where it is null.

    Raises:
      ConfigError: there is no such method.
    """
    if names is None:
        return tuple(METHODS)
    for i, name in enumerate(names):
        if name not in METHODS:
            raise ConfigError(
                f"evaluation.methods.{i}: must be one of {', '.join(METHODS)}, got {shown(name)}"
            )
    return tuple(names)


def describe(name: str) -> Method:
    """Label and style of a method in results: of single agents, and of unknown names, too."""
    if name in METHODS:
        return METHODS[name]
    if name.startswith(SINGLE):
        role = name.removeprefix(SINGLE).replace("_", " ")
        return dataclasses.replace(
            METHODS[SINGLE_AGENTS],
            name=name,
            label=f"single {role}",
            meaning=f"the {role} answers alone",
        )
    return Method(name, name.replace("_", " "), "", "#000000", "*", "-.")


def ordered(names: Iterable[str]) -> list[str]:
    """Unique names: the known ones in the order of `METHODS`, then the others as they come."""
    rank = {name: position for position, name in enumerate(METHODS)}
    return sorted(dict.fromkeys(names), key=lambda name: rank.get(name, len(rank)))
