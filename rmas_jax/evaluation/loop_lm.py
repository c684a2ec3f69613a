"""The LoopLM baseline: one looped language model alone, as many loops as the team has rounds.

Its layers run R times over their own outputs with the same weights, where a team runs R rounds. It
reads the answerer's first prompt with nothing in the slots. A model that was trained with another
number of loops runs as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jax.sharding import Mesh

from rmas_jax.agents.agent import load_agent
from rmas_jax.agents.member import Member
from rmas_jax.config import ConfigError
from rmas_jax.models import load_tokenizer
from rmas_jax.models.checkpoint import read_config
from rmas_jax.partition import DEFAULT_POLICIES, Policies
from rmas_jax.prompts import RolePrompt, today
from rmas_jax.team import Team
from rmas_jax.team_texts import checked_ends

FIELD = "evaluation.loop_lm"


def load_loop_lm(
    source: str,
    role: str,
    templates: Sequence[RolePrompt],
    *,
    date: str | None = None,
    dtype: str = "float32",
    mesh: Mesh | None = None,
    weights: str | None = None,
    policies: Policies = DEFAULT_POLICIES,
    is_abstract: bool = False,
) -> Member:
    """A looped language model as member in a role.

    Args:
      source: directory or hub id.
      role: whose prompts it reads, the answerer.
      templates: of these prompts, by task type; the first is the member's own.
      date: of chat templates that contain one, YYYY-MM-DD; None: today.
      dtype: see `load_pretrained`, as for `mesh`, `weights` and `policies`.
      is_abstract: see `load_agent`.

    Raises:
      ConfigError: the model is not looped.
      CheckpointError, UnsupportedModelError, PromptError: see `load_team`; raised before weights
        are read, unless these are the cause.
    """
    config = read_config(source)
    if config.loops is None:
        raise ConfigError(
            f"{FIELD} must be a looped language model (model_type ouro), got {source}, which is "
            f"{config.model_type}"
        )
    tokenizer = load_tokenizer(source, date=date or today())
    ends = [checked_ends(source, tokenizer, template) for template in templates]
    options = {"weights": weights, "policies": policies}
    agent = load_agent(source, dtype, mesh, is_abstract=is_abstract, **options)
    return Member(role, agent, tokenizer, templates[0], ends[0])


def looped(member: Member, loops: int) -> Member:
    """The member with another number of loops; weights are shared."""
    decoder = member.agent.decoder
    config = dataclasses.replace(decoder.config, loops=loops)
    agent = member.agent.replace(decoder=decoder.clone(config=config))
    return dataclasses.replace(member, agent=agent)


def team_of_one(team: Team, loops: int) -> Team:
    """The looped language model of a team in its answerer's place, with nobody else.

    Raises:
      ValueError: the team has none.
    """
    if team.loop_lm is None:
        raise ValueError("the team must have a loop_lm for the method loop_lm, got None")
    member = looped(team.loop_lm, loops)
    return dataclasses.replace(team, members={member.role: member})
