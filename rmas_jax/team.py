"""Builds a team from a configuration: agents, tokenizers, prompts, links."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

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
from rmas_jax.models.plain_text import encode_plain
from rmas_jax.models.tokenizer import shared_tokens
from rmas_jax.partition import DEFAULT_POLICIES, Policies
from rmas_jax.prompts import (
    Question,
    RolePrompt,
    StagePrompt,
    encode_stage,
    exact_width,
)
from rmas_jax.sharding import to_host
from rmas_jax.team_texts import TeamTexts, load_team_texts
from rmas_jax.topology import System, Topology, edge_name


@dataclasses.dataclass(frozen=True, eq=False)
class Team:
    """A system with its agents, tokenizers and prompts."""

    system: System  # static
    members: Mapping[str, Member]  # by role, in the order of their turns
    mesh: jax.sharding.Mesh | None = None  # devices that hold the agents; None is the default one
    loop_lm: Member | None = None  # of the baseline `evaluation.loop_lm`, in the answerer's role

    @property
    def agents(self) -> dict[str, Agent]:
        """The agents by role: arguments of functions of arrays."""
        return {role: member.agent for role, member in self.members.items()}

    def encode(
        self,
        questions: Sequence[Question],
        *,
        slot_width: int | None = None,
        templates: Mapping[str, RolePrompt] | None = None,
        block_width: Callable[[int], int] = exact_width,
    ) -> dict[str, StagePrompt]:
        """What every role reads for B questions: its prompt as arrays on the host.

        Args:
          questions: any texts; or texts by field, of the question and the columns of prompts.
          slot_width: positions of a slot; None: one for each latent thought. Messages in text
            need as many as they may have tokens.
          templates: of the prompts, of these roles that have members; None: those of the members.
          block_width: see `encode_stage`; `declared_width` for questions that come one by one.
        """
        width = self.system.latent_steps if slot_width is None else slot_width
        if templates is None:
            templates = {role: member.template for role, member in self.members.items()}
        return {
            role: encode_stage(
                member.tokenizer,
                templates[role],
                questions,
                slot_width=width,
                block_width=block_width,
            )
            for role, member in self.members.items()
            if role in templates
        }


def load_team(
    config: SystemConfig,
    *,
    texts: TeamTexts | None = None,
    dtype: str = "float32",
    mesh: jax.sharding.Mesh | None = None,
    weights: str | None = None,
    policies: Policies = DEFAULT_POLICIES,
    is_abstract: bool = False,
) -> Team:
    """Loads the team of a configuration.

    Args:
      config: section `system`.
      texts: result of `load_team_texts`, if already loaded.
      dtype: see `load_pretrained`, as for `mesh`, `weights` and `policies`.
      is_abstract: see `load_agent`.

    Raises:
      ConfigError, TopologyError: topology, agents and rounds do not fit each other.
      CheckpointError, UnsupportedModelError, PromptError: a model directory, a tokenizer or a
        prompt set is unusable; raised before weights are read, unless the weights are the cause.
    """
    texts = texts or load_team_texts(config)
    members = {
        role: Member(
            role=role,
            agent=load_agent(
                config.agents[role],
                dtype,
                mesh,
                weights=weights,
                policies=policies,
                is_abstract=is_abstract,
            ),
            tokenizer=texts.tokenizers[role],
            template=texts.templates[role],
            end_tokens=texts.end_tokens[role],
            stop_strings=texts.stop_strings.get(role, ()),
        )
        for role in texts.topology.order
    }
    width = {role: member.agent.width for role, member in members.items()}
    return Team(build_system(config, texts.topology, width), members, mesh)


def build_system(config: SystemConfig, topology: Topology, width: Mapping[str, int]) -> System:
    """The system of section `system`; `width` by role gives the widths of its links."""
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
        sweeps=config.sweeps if config.thinking == "parallel" else None,
    )


def load_links_for(team: Team, config: SystemConfig) -> Links:
    """The links of `system.links`.

    They are a `.safetensors` file of `rmas`, or the outer links of a release, whose inner links are
    in the agents' directories. Their variants must be `system.inner_link` and `system.outer_link`.

    Raises:
      ConfigError: `system.links` is null.
      CheckpointError: lists every link that cannot be read or, if all can, every one that is
        missing, not needed, or of another variant or width than the system's.
    """
    if config.links is None:
        raise ConfigError("system.links must be a file, directory or hub id of links, got null")
    if Path(config.links).suffix == ".safetensors":
        links = read_links(config.links, inner_variant=config.inner_link)
    else:
        links = read_released_links(config.links, config.agents, task=config.links_task_type)
    configs = {INNER: team.system.inner, OUTER: team.system.outer}
    return links_that_fit(links, configs, source=f"system.links={config.links}")


def write_release(team: Team, links: Links, directory: str | Path) -> None:
    """Writes links in the layout of a release: a folder for each role, and `outer/`.

    Args:
      team: the links' team.
      links: of all roles and edges.
      directory: made if it does not exist.

    Raises:
      CheckpointError: upstream has no such roles or edges; nothing is written.
    """
    configs = {INNER: team.system.inner, OUTER: team.system.outer}
    write_released_links(
        directory,
        {
            kind: {name: (link, getattr(links, kind)[name]) for name, link in of_kind.items()}
            for kind, of_kind in configs.items()
        },
    )


def start_links(
    team: Team, *, start: str, key: jax.Array, texts: Mapping[str, Sequence[str]] | None = None
) -> Links:
    """Links before any training.

    Args:
      team: the system and its agents.
      start: of outer links: "torch_default", "identity", or "aligned", a least-squares map between
        the input embeddings of tokens that both vocabularies have. Inner links start with torch's
        defaults, because the inner loop trains them.
      key: PRNG key.
      texts: role -> examples of its texts; a map is then fitted to the tokens of these texts alone
        (a link has fewer parameters than a vocabulary has tokens).

    Raises:
      ConfigError: sender and receiver of a fitted edge share no token.
      NonFiniteError: their embeddings of such tokens are NaN, infinite, or too large.
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
                of_texts = "" if texts is None else " of the texts"
                raise ConfigError(
                    "system.outer_start must be torch_default or identity where sender and "
                    f"receiver share no token{of_texts}, got {start} for {edge_name(edge)}"
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
    """Input embeddings [n, D] and [n, D'], on the host, of tokens that sender and receiver share.

    With `texts`, only of the sender's tokens of these texts.
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
