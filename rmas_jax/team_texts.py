"""The texts of a team: tokenizers, prompt templates and end tokens, loaded before any weight."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from rmas_jax.config import ConfigError, SystemConfig
from rmas_jax.models import CheckpointError, load_tokenizer
from rmas_jax.models.checkpoint import read_config
from rmas_jax.models.generation import sampling_defaults
from rmas_jax.models.tokenizer import Tokenizer
from rmas_jax.models.vocabulary import check_ids, check_tokenizer, usable_ends
from rmas_jax.prompts import (
    RolePrompt,
    encode_stage,
    load_chat_template,
    load_method_prompts,
    load_prompts,
    shipped_chat_templates,
    today,
    turn_end,
    turn_starts,
)
from rmas_jax.rounds.schedules import RECURSION, SCHEDULES, edges_of
from rmas_jax.topology import Topology, load_topology


class TeamTexts(NamedTuple):
    """The parts of a team that read and write texts: all but weights and links."""

    topology: Topology
    templates: dict[str, RolePrompt]  # by role; they fit the chat templates
    tokenizers: dict[str, Tokenizer]  # by role
    end_tokens: dict[str, tuple[int, ...]]  # role -> ids that end its text; see `text_ends`
    stop_strings: Mapping[str, tuple[str, ...]] = {}  # by role with a named template; `turn_starts`


def load_team_texts(config: SystemConfig) -> TeamTexts:
    """Loads the parts of a team that read and write texts, and renders every prompt once.

    A faulty prompt therefore raises before any weight is read.

    Raises:
      ConfigError, TopologyError, CheckpointError, PromptError: as `load_team`.
    """
    topology = checked_topology(config)
    templates = load_prompts(config.prompts, topology.edges, config.task_type)
    tokenizers = {role: load_role_tokenizer(config, role) for role in topology.order}

    def ends_of(role: str) -> tuple[int, ...]:
        return checked_ends(config.agents[role], tokenizers[role], templates[role])

    with ThreadPoolExecutor() as pool:  # chat templates are rendered in processes of their own
        ends = dict(zip(tokenizers, pool.map(ends_of, tokenizers), strict=True))
    stops = {
        role: turn_starts(tokenizers[role], ends[role]) for role in config.chat_templates or {}
    }
    return TeamTexts(topology, templates, tokenizers, ends, stops)


def load_role_tokenizer(config: SystemConfig, role: str) -> Tokenizer:
    """The tokenizer of a role's agent, with the chat template that the configuration names.

    Raises:
      CheckpointError: it is unusable, or has no chat template and none is named.
      PromptError: the named template cannot be read.
    """
    source, option = config.agents[role], f"system.chat_templates.{role}"
    named = (config.chat_templates or {}).get(role)
    tokenizer = load_tokenizer(
        source,
        needs_chat_template=False,
        chat_template=None if named is None else load_chat_template(named, option=option),
        date=config.date or today(),
    )
    if not tokenizer.chat_template:
        raise CheckpointError(
            f"system.agents.{role}={source}: the tokenizer must have a chat template, or {option} "
            f"name one ({', '.join(shipped_chat_templates())}, or a jinja file), got neither (a "
            "base model?)"
        )
    return tokenizer


def load_templates(
    config: SystemConfig, texts: TeamTexts, task_type: str | None
) -> dict[str, RolePrompt]:
    """The prompt templates for a task type, which may differ from that of training.

    Raises:
      PromptError, CheckpointError: they do not fit the agents' chat templates.
    """
    if task_type == config.task_type:
        return texts.templates
    templates = load_prompts(config.prompts, texts.topology.edges, task_type)
    check_templates(config, texts, templates)
    return templates


def prompt_columns(config: SystemConfig, texts: TeamTexts) -> tuple[str, ...]:
    """The columns of the data in prompts of roles, and of text methods.

    Raises:
      PromptError: see `load_method_templates`.
    """
    methods = load_method_templates(config, texts.topology, texts.templates, config.task_type)
    sets = (texts.templates, *methods.values())
    return tuple(sorted({name for of in sets for prompt in of.values() for name in prompt.columns}))


def load_method_templates(
    config: SystemConfig,
    topology: Topology,
    own: Mapping[str, RolePrompt],
    task_type: str | None,
) -> dict[str, dict[str, RolePrompt]]:
    """The prompt templates of text methods with edges of their own, by schedule and role.

    `own` are those of the roles, for this task type.

    Raises:
      PromptError: see `load_method_prompts`.
    """
    edges = {
        name: edges_of(schedule, topology)
        for name, schedule in SCHEDULES.items()
        if name != RECURSION
    }
    return load_method_prompts(
        config.prompts, edges, own, answerer=topology.answerer, task_type=task_type
    )


def check_templates(
    config: SystemConfig, texts: TeamTexts, templates: Mapping[str, RolePrompt]
) -> None:
    """Renders and encodes prompts once.

    Raises:
      PromptError, CheckpointError: they do not fit the agents' chat templates.
    """
    for role, template in templates.items():
        checked_ends(config.agents[role], texts.tokenizers[role], template)


def text_ends(source: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids that end an agent's text; the first ends its turn, and its training texts.

    They are the end tokens of its generation configuration and of its tokenizer. Upstream uses the
    tokenizer's alone, which for Gemma does not end a turn.

    Raises:
      PromptError: there is none.
    """
    _, ends = sampling_defaults(source)
    own = tokenizer.eos_token_id
    ends = (*ends, *(() if own is None else (own,)))
    return tuple(dict.fromkeys((turn_end(tokenizer, ends), *ends)))


def checked_ends(source: str, tokenizer: Tokenizer, prompt: RolePrompt) -> tuple[int, ...]:
    """The end tokens of an agent; checks that all ids of its run have a row of the embedding.

    The ids are those of any text, of the prompt in its chat template, and of the end of a turn; see
    `rmas_jax.models.vocabulary`.

    Raises:
      CheckpointError: an id has no row; or config, tokenizer or end tokens are unusable.
      PromptError: see `text_ends` and `encode_stage`.
    """
    rows = read_config(source).vocab_size
    check_tokenizer(tokenizer, rows, source=source)
    read = encode_stage(
        tokenizer, prompt, [dict.fromkeys(("question", *prompt.columns), "?")], slot_width=1
    )
    ids = np.concatenate([read.prefix_ids.ravel(), read.body_ids.ravel()])
    check_ids(ids, rows, tokenizer=tokenizer, what=f"{source}: the prompt in its chat template")
    ends = text_ends(source, tokenizer)
    check_ids(ends[:1], rows, tokenizer=tokenizer, what=f"{source}: the end of a turn")
    return usable_ends(ends, rows, tokenizer=tokenizer, source=source)


def checked_topology(config: SystemConfig) -> Topology:
    """The topology of section `system`.

    Raises:
      ConfigError, TopologyError: its roles are not those of `system.agents`, or there are several
        rounds and no feedback edge.
    """
    topology = load_topology(config.topology)
    if set(config.agents) != set(topology.order):
        raise ConfigError(
            f"system.agents must have the roles of the {topology.name} topology, "
            f"{', '.join(topology.order)}, got {', '.join(config.agents) or 'none'}"
        )
    if config.rounds > 1 and not topology.feedback_edges:
        raise ConfigError(
            f"system.rounds must be 1, as the {topology.name} topology has no feedback edge (to an "
            f"earlier role), got {config.rounds}"
        )
    return topology
