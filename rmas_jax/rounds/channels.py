"""Channels: how agents feed thoughts back to themselves and send them to each other.

A channel is any value with the two methods of `Channel` that passes through `jit`, such as a
`flax.struct.PyTreeNode`. The latent channel is RecursiveMAS; the others are for comparison.
`CHANNELS` holds those with a name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import struct

from rmas_jax.agents.agent import Agent
from rmas_jax.agents.member import Member
from rmas_jax.links import Links, apply_link
from rmas_jax.models.tokenizer import shared_tokens
from rmas_jax.topology import System, edge_name


class Channel(Protocol):
    """How thoughts return and travel; both methods are differentiable."""

    def feed(self, role: str, hidden: jax.Array) -> jax.Array:
        """A role's hidden states [B, T, D] -> its next input embeddings [B, T, D]."""

    def send(self, edge: tuple[str, str], thoughts: jax.Array) -> jax.Array:
        """A sender's thoughts [B, M, D] -> vectors [B, M, D'] for the receiver's slot."""


class LatentChannel(struct.PyTreeNode):
    """RecursiveLinks: thoughts return through the inner link, and travel as outer(inner(H))
    (upstream) or outer(H) (the paper's text), as `system.sent_vectors` says.
    """

    system: System = struct.field(pytree_node=False)
    links: Links

    def feed(self, role: str, hidden: jax.Array) -> jax.Array:
        """Through the inner link (paper eq. 3)."""
        return apply_link(self.system.inner[role], self.links.inner[role], hidden)

    def send(self, edge: tuple[str, str], thoughts: jax.Array) -> jax.Array:
        """Through the outer link (paper eq. 4)."""
        if self.system.sent_vectors == "outer_of_inner":
            thoughts = self.feed(edge[0], thoughts)
        name = edge_name(edge)
        return apply_link(self.system.outer[name], self.links.outer[name], thoughts)


class SoftmaxChannel(struct.PyTreeNode):
    """Differentiable text: every vector is the expected embedding of the next token."""

    agents: Mapping[str, Agent]  # by role
    # Edge name -> ids [n] of the shared tokens in the sender's and in the receiver's vocabulary;
    # a transfer drops the probability of other tokens.
    shared_tokens: Mapping[str, tuple[jax.Array, jax.Array]]

    def feed(self, role: str, hidden: jax.Array) -> jax.Array:
        """The agent's own expected embedding."""
        vocabulary = jnp.arange(self.agents[role].config.vocab_size)
        return self._expected(role, hidden, self._embedded(role, vocabulary))

    def send(self, edge: tuple[str, str], thoughts: jax.Array) -> jax.Array:
        """The receiver's expected embedding."""
        sender, receiver = edge
        own, other = self.shared_tokens[edge_name(edge)]
        unshared = jnp.full(self.agents[sender].config.vocab_size, -1)
        return self._expected(
            sender, thoughts, self._embedded(receiver, unshared.at[own].set(other))
        )

    def _expected(self, role: str, hidden: jax.Array, embedded: jax.Array) -> jax.Array:
        """Hidden states [B, T, D] -> the mean of [V, D'] by the chances of the next token.

        Chances lie as logits do, by rows and by vocabulary, and meet the embeddings there.
        """
        agent = self.agents[role].during("thinking")
        on = agent.partition
        chances = jax.nn.softmax(agent.unembed(hidden), axis=-1)
        chances = on.constrain(chances, "rows", None, "vocab")
        out = chances @ on.constrain(embedded, "vocab", None)
        return on.constrain(out, "rows", None, None)

    def _embedded(self, role: str, ids: jax.Array) -> jax.Array:
        """An agent's embeddings [V, D'] of ids [V]; zero for -1."""
        # Read as a batch of single tokens, whose rows are split: no device has them all.
        embedded = self.agents[role].embed(jnp.maximum(ids, 0)[:, None])[:, 0]
        return jnp.where(ids[:, None] >= 0, embedded, 0)


class SelectChannel(struct.PyTreeNode):
    """The first channel where a condition holds, else the second; the condition may be traced."""

    condition: jax.Array | bool  # [] bool
    first: Channel
    second: Channel

    def feed(self, role: str, hidden: jax.Array) -> jax.Array:
        """See `Channel`; both channels compute."""
        vectors = self.first.feed(role, hidden), self.second.feed(role, hidden)
        return jnp.where(self.condition, *vectors)

    def send(self, edge: tuple[str, str], thoughts: jax.Array) -> jax.Array:
        """See `Channel`; both channels compute."""
        vectors = self.first.send(edge, thoughts), self.second.send(edge, thoughts)
        return jnp.where(self.condition, *vectors)


class ShuffledChannel(struct.PyTreeNode):
    """A null control: every receiver gets the thoughts of the previous item in the batch."""

    channel: Channel

    def feed(self, role: str, hidden: jax.Array) -> jax.Array:
        """See `channel`."""
        return self.channel.feed(role, hidden)

    def send(self, edge: tuple[str, str], thoughts: jax.Array) -> jax.Array:
        """The vectors of the previous item."""
        return jnp.roll(self.channel.send(edge, thoughts), 1, axis=0)


def _latent(system: System, links: Links, members: Mapping[str, Member]) -> Channel:
    return LatentChannel(system, links)


def _softmax(system: System, links: Links, members: Mapping[str, Member]) -> Channel:
    shared: dict[str, Any] = {
        edge_name(edge): shared_tokens(*(members[role].tokenizer for role in edge))
        for edge in system.topology.edges
    }
    return SoftmaxChannel({role: member.agent for role, member in members.items()}, shared)


@dataclasses.dataclass(frozen=True)
class NamedChannel:
    """A channel that methods, commands and measurements can name."""

    name: str
    meaning: str
    make: Callable[[System, Links, Mapping[str, Member]], Channel]  # members by role
    uses_links: bool = True  # False: `make` may get none


LATENT, SOFTMAX = "latent", "softmax"
TEXT = "text"  # no channel of vectors: see `text_channel`
CHANNELS: dict[str, NamedChannel] = {
    channel.name: channel
    for channel in (
        NamedChannel(LATENT, "thoughts through RecursiveLinks", _latent),
        NamedChannel(SOFTMAX, "expected embeddings of the next token", _softmax, False),
    )
}
