"""The methods of an evaluation: their names in files, and how they are called and drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

LATENT = "recursive_mas"
ALIGNED = "aligned_links"
TEXT = "recursive_text"
TRUNCATED = "truncated_text"
NO_LATENTS = "no_latents"
SHUFFLED = "shuffled_latents"
SINGLE = "single_"  # and the role of the agent that answers alone


@dataclasses.dataclass(frozen=True)
class Method:
    """How a method is called, explained and drawn; the same in every table and figure."""

    label: str
    meaning: str
    colour: str  # of the Okabe-Ito palette, which colour-blind readers can tell apart
    marker: str
    line: str = "-"


METHODS = {
    LATENT: Method(
        "latent, trained links", "agents exchange latent thoughts, links trained", "#0072B2", "o"
    ),
    ALIGNED: Method(
        "latent, aligned links", "the same before the outer training", "#56B4E9", "s", "--"
    ),
    TEXT: Method("text", "the same agents and rounds, exchanging text", "#D55E00", "^"),
    TRUNCATED: Method(
        "text cut to m tokens",
        "text messages cut to the number of latent steps: equal compute",
        "#E69F00",
        "v",
        "--",
    ),
    NO_LATENTS: Method("no latents", "control: nothing is passed", "#777777", "x", ":"),
    SHUFFLED: Method(
        "shuffled latents", "control: every item gets another item's latents", "#CC79A7", "D", ":"
    ),
}


def describe(name: str) -> Method:
    """Label and style of a method, for single agents and names that this package never saw too."""
    if name in METHODS:
        return METHODS[name]
    if name.startswith(SINGLE):
        role = name.removeprefix(SINGLE).replace("_", " ")
        return Method(f"single {role}", f"the {role} answers alone", "#009E73", "P", "-.")
    return Method(name.replace("_", " "), "", "#000000", "*", "-.")


def ordered(names: Iterable[str]) -> list[str]:
    """Unique names: the known ones in the order of `METHODS`, then the others as they come."""
    rank = {name: position for position, name in enumerate(METHODS)}
    return sorted(dict.fromkeys(names), key=lambda name: rank.get(name, len(rank)))
