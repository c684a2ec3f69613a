"""The methods that an evaluation compares: one entry each, read by everything that names them.

To add a method, add an entry; `rmas_jax.rounds.channels` has the table of the channels they use.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence

from rmas_jax.config import ConfigError
from rmas_jax.config.training import TUNED
from rmas_jax.evaluation.selections import ANY_CORRECT, MAJORITY, SELECTIONS
from rmas_jax.host.errors import shown
from rmas_jax.rounds import channels, schedules

LATENT = "recursive_mas"
ALIGNED = "aligned_links"
TEXT = "recursive_text"
TRUNCATED = "truncated_text"
NO_LATENTS = "no_latents"
SHUFFLED = "shuffled_latents"
SHUFFLED_TEXT = "shuffled_text"
SELF_REFINEMENT = schedules.SELF_REFINEMENT
MIXTURE_OF_AGENTS = schedules.MIXTURE_OF_AGENTS
TEXTGRAD = schedules.TEXTGRAD
MAJORITY_VOTE = "majority_vote"
BEST_OF = "best_of_agents"
SINGLE_AGENTS = "single_agents"  # every agent alone; its results are called SINGLE and the role
SINGLE = "single_"
LOOP_LM = "loop_lm"


@dataclasses.dataclass(frozen=True)
class Method:
    """A method; named, explained and drawn alike in every table and figure."""

    name: str  # in configurations and files
    label: str
    meaning: str
    colour: str = "#000000"  # shipped: the Okabe-Ito palette, which colour-blind readers tell apart
    marker: str = "*"
    line: str = "-."
    _: dataclasses.KW_ONLY
    channel: str | None = channels.LATENT  # of `CHANNELS`, or TEXT; None: an agent alone
    has_aligned_links: bool = False  # those before the outer loop
    is_shuffled: bool = False  # every item gets the latents or messages of another one
    is_empty: bool = False  # nothing is passed
    is_cut: bool = False  # messages have at most as many tokens as there are latent steps
    answers_as_each: bool = False  # every agent is asked, instead of the answerer
    schedule: str = schedules.RECURSION  # of texts, in `SCHEDULES`
    min_rounds: int = 1  # with fewer, it is the answerer alone: not measured
    fills_budget: bool = False  # texts take as many steps as the latents before an answer
    selection: str | None = None  # of `SELECTIONS`: all agents answer alone, one answer counts
    is_looped: bool = False  # `evaluation.loop_lm` answers alone, with as many loops as rounds
    is_tuned: bool = False  # the answerer alone, after the entry of this name in `tuning`

    def __post_init__(self) -> None:
        for field, allowed in (
            ("channel", (None, channels.TEXT, *channels.CHANNELS)),
            ("schedule", tuple(schedules.SCHEDULES)),
            ("selection", (None, *SELECTIONS)),
        ):
            if (found := getattr(self, field)) not in allowed:
                raise ValueError(
                    f"{field} of the method {self.name} must be one of "
                    f"{', '.join(map(str, allowed))}, got {found!r}"
                )

    @property
    def has_own_prompts(self) -> bool:
        """Whether its agents read other prompts than those of the prompt set's roles."""
        return self.schedule != schedules.RECURSION

    @property
    def passes_latents(self) -> bool:
        """Whether vectors cross its edges."""
        return self.channel in channels.CHANNELS and not self.is_empty

    @property
    def uses_links(self) -> bool:
        """Whether what crosses its edges depends on links."""
        return self.passes_latents and channels.CHANNELS[str(self.channel)].uses_links

    def variants(
        self, rounds: Sequence[int], *, order: Sequence[str], latent_steps: int
    ) -> list[tuple[str | None, int]]:
        """(role, rounds) of all that is measured; None is the topology's answerer."""
        if self.answers_as_each:
            return [(role, 1) for role in order]
        if self.selection is not None or self.is_tuned:
            return [(None, 1)]
        if (self.is_cut or self.fills_budget) and not latent_steps:
            return []  # a text of no tokens passes nothing: that is NO_LATENTS
        return [(None, count) for count in rounds if count >= self.min_rounds]


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            LATENT,
            "latent, trained links",
            "agents exchange latent thoughts, links trained",
            "#0072B2",
            "o",
            "-",
        ),
        Method(
            ALIGNED,
            "latent, aligned links",
            "the same before the outer training",
            "#56B4E9",
            "s",
            "--",
            has_aligned_links=True,
        ),
        Method(
            TEXT,
            "text",
            "the same agents and rounds, exchanging text",
            "#D55E00",
            "^",
            "-",
            channel=channels.TEXT,
        ),
        Method(
            TRUNCATED,
            "text cut to m tokens",
            "text messages cut to the number of latent steps: equal compute",
            "#E69F00",
            "v",
            "--",
            channel=channels.TEXT,
            is_cut=True,
        ),
        Method(
            SELF_REFINEMENT,
            "self-refinement",
            "the answerer alone revises drafts, in as many steps as the latents take",
            "#882255",
            "<",
            "-.",
            channel=channels.TEXT,
            schedule=schedules.SELF_REFINEMENT,
            fills_budget=True,
        ),
        Method(
            MIXTURE_OF_AGENTS,
            "mixture of agents",
            "in each round, every agent reads all answers of the round before",
            "#332288",
            "h",
            "-",
            channel=channels.TEXT,
            schedule=schedules.MIXTURE_OF_AGENTS,
            min_rounds=2,
        ),
        Method(
            TEXTGRAD,
            "TextGrad",
            "the answerer revises its draft by the feedback of the others",
            "#999933",
            ">",
            "--",
            channel=channels.TEXT,
            schedule=schedules.TEXTGRAD,
            min_rounds=2,
        ),
        Method(
            MAJORITY_VOTE,
            "majority vote",
            "each agent answers alone; the most frequent answer counts",
            "#44AA99",
            "p",
            "-.",
            channel=None,
            selection=MAJORITY,
        ),
        Method(
            BEST_OF,
            "best of the agents (oracle)",
            "each agent answers alone; right if one is: no system, but the bound of all selections",
            "#117733",
            "H",
            ":",
            channel=None,
            selection=ANY_CORRECT,
        ),
        Method(
            NO_LATENTS,
            "no latents",
            "control: nothing is passed",
            "#777777",
            "x",
            ":",
            is_empty=True,
        ),
        Method(
            SHUFFLED,
            "shuffled latents",
            "control: every item gets another item's latents",
            "#CC79A7",
            "D",
            ":",
            is_shuffled=True,
        ),
        Method(
            SHUFFLED_TEXT,
            "shuffled text",
            "control: every item gets another item's text",
            "#661100",
            "d",
            ":",
            channel=channels.TEXT,
            is_shuffled=True,
        ),
        Method(
            SINGLE_AGENTS,
            "single agents",
            "each agent answers alone",
            "#009E73",
            "P",
            "-.",
            channel=None,
            answers_as_each=True,
        ),
        Method(
            LOOP_LM,
            "LoopLM",
            "one looped language model alone, as many loops as rounds",
            "#000000",
            "h",
            "-",
            channel=None,
            is_looped=True,
        ),
        Method(
            f"{TUNED}lora",
            "answerer, LoRA",
            "the answerer alone, trained on the answers by low-rank updates",
            "#999933",
            "<",
            "-.",
            channel=None,
            is_tuned=True,
        ),
        Method(
            f"{TUNED}full",
            "answerer, fully tuned",
            "the answerer alone, with all its weights trained on the answers",
            "#332288",
            ">",
            "-.",
            channel=None,
            is_tuned=True,
        ),
        Method(
            f"{TUNED}soft_prompt",
            "answerer, soft prompt",
            "the answerer alone, behind trained vectors",
            "#882255",
            "h",
            "-.",
            channel=None,
            is_tuned=True,
        ),
    )
}


def result_name(method: Method, role: str | None = None) -> str:
    """The name of a method in results; of an agent alone, SINGLE and its role."""
    return method.name if role is None else f"{SINGLE}{role}"


def planned_methods(
    names: Sequence[str], rounds: Sequence[int], *, order: Sequence[str], latent_steps: int
) -> list[tuple[str, int]]:
    """(name, rounds) in results of all that an evaluation of these methods measures."""
    return [
        (result_name(METHODS[name], role), count)
        for name in names
        for role, count in METHODS[name].variants(rounds, order=order, latent_steps=latent_steps)
    ]


def chosen_methods(
    names: Sequence[str] | None, *, loop_lm: str | None = None, tuned: Collection[str] = ()
) -> tuple[str, ...]:
    """The names of `evaluation.methods`; where it is null, all that the configuration serves.

    Args:
      names: of methods, or None.
      loop_lm: source of the looped language model.
      tuned: names of the entries of `tuning`.

    Raises:
      ConfigError: there is no such method, or not what it needs.
    """
    if names is None:
        return tuple(
            name
            for name, method in METHODS.items()
            if (loop_lm or not method.is_looped) and (name in tuned or not method.is_tuned)
        )
    for i, name in enumerate(names):
        if name not in METHODS:
            raise ConfigError(
                f"evaluation.methods.{i}: must be one of {', '.join(METHODS)}, got {shown(name)}"
            )
        if METHODS[name].is_looped and loop_lm is None:
            raise ConfigError(
                f"evaluation.loop_lm must be a directory or hub id for the method {name}, got null"
            )
        if METHODS[name].is_tuned and name not in tuned:
            kind = name.removeprefix(TUNED)
            raise ConfigError(
                f"evaluation.methods.{i}: {name} needs an entry with kind: {kind} in the section "
                f"tuning, got {', '.join(tuned) or 'none'}"
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
    return Method(name, name.replace("_", " "), "")


def ordered(names: Iterable[str]) -> list[str]:
    """Unique names: the known ones in the order of `METHODS`, then the others as they come."""
    rank = {name: position for position, name in enumerate(METHODS)}
    return sorted(dict.fromkeys(names), key=lambda name: rank.get(name, len(rank)))
