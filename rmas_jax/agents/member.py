"""A member of a team: an agent in its role, with tokenizer, templates and end tokens."""

from __future__ import annotations

import dataclasses

from rmas_jax.agents.agent import Agent
from rmas_jax.models.tokenizer import Tokenizer
from rmas_jax.prompts import RolePrompt


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """An agent in a role: a value of the host, whose parameters are on the devices."""

    role: str
    agent: Agent
    tokenizer: Tokenizer
    template: RolePrompt  # of its prompts
    end_tokens: tuple[int, ...]  # ids that end its text; the first ends a turn of its chat template
    stop_strings: tuple[str, ...] = ()  # that end its text and are no part of it; see `turn_starts`
