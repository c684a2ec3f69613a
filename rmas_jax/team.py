"""From a configuration to a system that can run: agents, tokenizers, prompts, links."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

from rmas_jax.agents.agent import Agent, load_agent
from rmas_jax.agents.member import Member
from rmas_jax.config import ConfigError, SystemConfig
from rmas_jax.host.nonfinite import NonFiniteError
from rmas_jax.interop import (
    links_that_fit,
    read_links,
    read_released_links,
    write_released_links,
)
from rmas_jax.links import INNER, OUTER, LinkConfig, Links, align_link, init_link
from rmas_jax.models import load_tokenizer
from rmas_jax.models.directories import local_directory
from rmas_jax.models.generation import sampling_defaults
from rmas_jax.models.hf import read_config
from rmas_jax.models.plain_text import encode_plain
from rmas_jax.models.tokenizer import Tokenizer, shared_tokens
from rmas_jax.models.vocabulary import check_ids, check_tokenizer, usable_ends
from rmas_jax.prompts import (
    RolePrompt,
    StagePrompt,
    encode_stage,
    exact_width,
    load_prompts,
    today,
    turn_end,
)
from rmas_jax.sharding import to_host
from rmas_jax.topology import System, Topology, edge_name, load_topology


@dataclasses.dataclass(frozen=True, eq=False)
class Team:
    """A system with everything it runs on."""

    system: System  # static
    members: Mapping[str, Member]  # by role, in the order of their turns
    mesh: jax.sharding.Mesh | None = None  # devices that hold the agents; None is the default one

    @property
    def agents(self) -> dict[str, Agent]:
        """The agents by role, as functions of arrays take them."""
        return {role: member.agent for role, member in self.members.items()}

    def encode(
        self,
        questions: Sequence[str],
        *,
        slot_width: int | None = None,
        templates: Mapping[str, RolePrompt] | None = None,
        block_width: Callable[[int], int] = exact_width,
    ) -> dict[str, StagePrompt]:
        """What every role reads for B questions: its prompt as arrays on the host.

        Args:
          questions: any texts.
          slot_width: positions of a slot; None: one for each latent thought. Messages in text
            need as many as they may have tokens.
          templates: of the prompts, by role; None: those of the members.
          block_width: see `encode_stage`; `declared_width` for questions that come one by one.
        """
        width = self.system.latent_steps if slot_width is None else slot_width
        return {
            role: encode_stage(
                member.tokenizer,
                member.template if templates is None else templates[role],
                questions,
                slot_width=width,
                block_width=block_width,
            )
            for role, member in self.members.items()
        }


class TeamTexts(NamedTuple):
    """What a team reads and writes texts with: all of it but weights and links."""

    topology: Topology
    templates: dict[str, RolePrompt]  # by role; they fit the chat templates
    tokenizers: dict[str, Tokenizer]  # by role
    end_tokens: dict[str, tuple[int, ...]]  # role -> ids that end its text; see `text_ends`


def load_team(
    config: SystemConfig,
    *,
    texts: TeamTexts | None = None,
    dtype: str = "float32",
    mesh: jax.sharding.Mesh | None = None,
    weights: str | None = None,
) -> Team:
    """Loads what `system` names; `dtype`, `mesh` and `weights` as in `load_pretrained`.

    Args:
      texts: what `load_team_texts` loaded already.

    Raises:
      ConfigError, TopologyError: topology, agents and rounds do not fit each other.
      CheckpointError, UnsupportedModelError, PromptError: a model directory, a tokenizer or a
        prompt set cannot be used; before any weight is read where the cause shows before.
    """
    topology, templates, tokenizers, end_tokens = texts or load_team_texts(config)
    members = {
        role: Member(
            role=role,
            agent=load_agent(config.agents[role], dtype, mesh, weights=weights),
            tokenizer=tokenizers[role],
            template=templates[role],
            end_tokens=end_tokens[role],
        )
        for role in topology.order
    }
    width = {role: member.agent.width for role, member in members.items()}
    return Team(build_system(config, topology, width), members, mesh)


def load_team_texts(config: SystemConfig) -> TeamTexts:
    """Loads what a team reads and writes texts with, and renders every prompt once.

    So what is wrong with a prompt shows before any weight is read.

    Raises:
      ConfigError, TopologyError, CheckpointError, PromptError: as `load_team`.
    """
    topology = checked_topology(config)
    templates = load_prompts(config.prompts, topology.edges, config.task_type)
    date = config.date or today()
    tokenizers = {role: load_tokenizer(config.agents[role], date=date) for role in topology.order}
    ends = {
        role: checked_ends(config.agents[role], tokenizer, templates[role])
        for role, tokenizer in tokenizers.items()
    }
    return TeamTexts(topology, templates, tokenizers, ends)


def load_templates(
    config: SystemConfig, texts: TeamTexts, task_type: str | None
) -> dict[str, RolePrompt]:
    """The prompt set for problems of a type of task, which need not be that of the training.

    Raises:
      PromptError, CheckpointError: it cannot be used with the agents' chat templates.
    """
    if task_type == config.task_type:
        return texts.templates
    templates = load_prompts(config.prompts, texts.topology.edges, task_type)
    for role, tokenizer in texts.tokenizers.items():
        checked_ends(config.agents[role], tokenizer, templates[role])
    return templates


def text_ends(source: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids that end an agent's text; the first is what ends its turn, and the texts it learns from.

    They are those of its generation configuration, and its tokenizer's. Upstream takes the
    tokenizer's alone, which for Gemma is not the end of a turn.

    Raises:
      PromptError: there is none.
    """
    _, ends = sampling_defaults(source)
    own = tokenizer.eos_token_id
    ends = (*ends, *(() if own is None else (own,)))
    return tuple(dict.fromkeys((turn_end(tokenizer, ends), *ends)))


def checked_ends(source: str, tokenizer: Tokenizer, prompt: RolePrompt) -> tuple[int, ...]:
    """The end tokens of an agent, once all ids that its run will meet have a row of the embedding.

    These are the ids that any text can have, that its prompt has in its chat template, and that
    ends its turn; see `rmas_jax.models.vocabulary`.

    Raises:
      CheckpointError: an id has none; or config, tokenizer or end tokens cannot be used.
      PromptError: see `text_ends` and `encode_stage`.
    """
    rows = read_config(local_directory(source, patterns=("*.json",))).vocab_size
    check_tokenizer(tokenizer, rows, source=source)
    read = encode_stage(tokenizer, prompt, ["?"], slot_width=1)
    ids = np.concatenate([read.prefix_ids.ravel(), read.body_ids.ravel()])
    check_ids(ids, rows, tokenizer=tokenizer, what=f"{source}: the prompt in its chat template")
    ends = text_ends(source, tokenizer)
    check_ids(ends[:1], rows, tokenizer=tokenizer, what=f"{source}: the end of a turn")
    return usable_ends(ends, rows, tokenizer=tokenizer, source=source)


def checked_topology(config: SystemConfig) -> Topology:
    """The topology that `system` names.

    Raises:
      ConfigError, TopologyError: it has other roles than `system.agents`, or rounds without a way
        back.
    """
    topology = load_topology(config.topology)
    if set(config.agents) != set(topology.order):
        raise ConfigError(
            f"system.agents: the {topology.name} topology has exactly the roles "
            f"{', '.join(topology.order)}, got {', '.join(config.agents) or 'none'}"
        )
    if config.rounds > 1 and not topology.feedback_edges:
        raise ConfigError(
            f"system.rounds={config.rounds}: no edge of the {topology.name} topology leads back, "
            "so all rounds would be alike; use 1 round, or add an edge to an earlier role"
        )
    return topology


def build_system(config: SystemConfig, topology: Topology, width: Mapping[str, int]) -> System:
    """The system that `system` describes, with links as wide as its agents (by role)."""
    return System(
        topology=topology,
        inner=FrozenDict(
            {
                role: LinkConfig(INNER, config.inner_link, width[role], width[role])
                for role in topology.order
            }
        ),
        outer=FrozenDict(
            {
                edge_name(edge): LinkConfig(
                    OUTER, config.outer_link, width[edge[0]], width[edge[1]]
                )
                for edge in topology.edges
            }
        ),
        latent_steps=config.latent_steps,
        sent_vectors=config.sent_vectors,
    )


def load_links_for(team: Team, config: SystemConfig) -> Links:
    """The links that `system.links` names.

    They are a `.safetensors` file of ours, or the outer links of a release, whose inner links lie
    beside the agents. Their forms are those of the files, and must be `system.inner_link` and
    `system.outer_link`.

    Raises:
      ConfigError: `system.links` is null.
      CheckpointError: lists every link that cannot be read or, if all can, every one that is
        missing, not needed, or of another form or width than the system's.
    """
    if config.links is None:
        raise ConfigError("system.links must be a file, directory or hub id of links, got null")
    if Path(config.links).suffix == ".safetensors":
        links = read_links(config.links, inner_variant=config.inner_link)
    else:
        links = read_released_links(config.links, config.agents, task=config.links_task)
    forms = {INNER: team.system.inner, OUTER: team.system.outer}
    return links_that_fit(links, forms, source=f"system.links={config.links}")


def write_release(team: Team, links: Links, directory: str | Path) -> None:
    """Writes links as a release has them: a folder for each role, and `outer/`.

    Args:
      team: the system they belong to.
      links: of all roles and edges.
      directory: made if it does not exist.

    Raises:
      CheckpointError: upstream has no such roles or edges; nothing is written.
    """
    forms = {INNER: team.system.inner, OUTER: team.system.outer}
    write_released_links(
        directory,
        {
            kind: {name: (form, getattr(links, kind)[name]) for name, form in of_kind.items()}
            for kind, of_kind in forms.items()
        },
    )


def start_links(
    team: Team, *, start: str, key: jax.Array, texts: Mapping[str, Sequence[str]] | None = None
) -> Links:
    """Links before any training.

    Args:
      team: the system and its agents.
      start: how outer links start: "torch_default", "identity", or "aligned": the translation, by
        least squares, of the input embeddings of tokens that two vocabularies share. Inner links
        start with torch's defaults, as the inner loop trains them.
      key: PRNG key.
      texts: role -> what it may write; an aligned start then fits the tokens of these texts alone
        (a link has fewer parameters than a vocabulary has tokens).

    Raises:
      ConfigError: the ends of an edge that is to be aligned share no token.
      NonFiniteError: their embeddings of such tokens are NaN or infinite, or too large.
    """
    system = team.system
    keys = iter(jax.random.split(key, len(system.inner) + len(system.outer)))
    init = jax.jit(init_link, static_argnums=0, static_argnames="start")
    align = jax.jit(align_link, static_argnums=0)
    inner = {role: init(system.inner[role], next(keys)) for role in system.topology.order}
    outer = {}
    for edge in system.topology.edges:
        link = system.outer[edge_name(edge)]
        fresh = init(link, next(keys), start="identity" if start == "identity" else "torch_default")
        if start == "aligned":
            written = None if texts is None else texts[edge[0]]
            source, target = shared_embeddings(team, edge, texts=written)
            if not len(source):
                raise ConfigError(
                    "system.outer_start must be torch_default or identity where the ends of an "
                    f"edge share no token of the texts, got aligned for {edge_name(edge)}"
                )
            for role, embeddings in zip(edge, (source, target), strict=True):
                if not np.isfinite(embeddings).all():
                    where = f"input embeddings, to which link {edge_name(edge)} is aligned"
                    raise NonFiniteError(role, where)
            fresh = align(link, fresh, source, target)
            if not all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(fresh))):
                where = f"link {edge_name(edge)} aligned to {edge[1]} by least squares"
                raise NonFiniteError(edge[0], where)
        outer[edge_name(edge)] = fresh
    return Links(inner, outer)


def shared_embeddings(
    team: Team, edge: tuple[str, str], *, texts: Sequence[str] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Input embeddings [n, D] and [n, D'] of the tokens that both ends of an edge have.

    With `texts`, only of tokens that the sender would use to write them. They are on the host.
    """
    members = [team.members[role] for role in edge]
    ids = shared_tokens(*(member.tokenizer for member in members))
    if texts is not None:
        rows = encode_plain(members[0].tokenizer, texts)
        used = np.isin(ids[0], np.unique(np.concatenate([np.asarray(row) for row in rows])))
        ids = ids[0][used], ids[1][used]
    embeddings = tuple(
        member.agent.embed(jnp.asarray(own)[None])[0].astype(jnp.float32)
        for member, own in zip(members, ids, strict=True)
    )
    return to_host(embeddings)
