"""What agents feed back to themselves and send to each other: latents, or something to compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rmas_jax.links import apply_link
from rmas_jax.topology import System, edge_name


class Channel(NamedTuple):
    """What an agent feeds back to itself and what it sends; both differentiable.

    The latent channel is `latent_channel`; others stand beside it for comparison.
    """

    feed: Callable[[str, jax.Array], jax.Array]  # role, hidden [B, T, D] -> embeddings [B, T, D]
    send: Callable[[tuple[str, str], jax.Array], jax.Array]  # edge, [B, M, D] -> [B, M, D']


def latent_channel(system: System, links: Any) -> Channel:
    """RecursiveLinks as the channel: thoughts return through the inner link, and travel as
    outer(inner(H)) (upstream) or outer(H) (the paper's text), as `system.sent_vectors` says.
    """

    def feed(role, hidden):
        return apply_link(system.inner[role], links["inner"][role], hidden)

    def send(edge, thoughts):
        if system.sent_vectors == "outer_of_inner":
            thoughts = feed(edge[0], thoughts)
        name = edge_name(edge)
        return apply_link(system.outer[name], links["outer"][name], thoughts)

    return Channel(feed, send)


def softmax_channel(system: System, agents: Any, shared_tokens: Mapping[str, Any]) -> Channel:
    """Differentiable text: every vector is the expected embedding of the next token.

    Args:
      system: the system.
      agents: parameters by role.
      shared_tokens: edge name -> (ids of the sender, ids of the receiver) of tokens that both
        vocabularies have; probability of other tokens is dropped in a transfer.
    """

    def probabilities(role, hidden):
        model, params = system.models[role], {"params": agents[role]}
        return jax.nn.softmax(model.apply(params, hidden, method="unembed"), axis=-1)

    def embeddings(role, ids):
        return system.models[role].apply({"params": agents[role]}, ids[None], method="embed")[0]

    def feed(role, hidden):
        vocabulary = jnp.arange(system.models[role].config.vocab_size)
        return probabilities(role, hidden) @ embeddings(role, vocabulary)

    def send(edge, thoughts):
        sender, receiver = edge
        mine, theirs = shared_tokens[edge_name(edge)]
        return probabilities(sender, thoughts)[..., mine] @ embeddings(receiver, theirs)

    return Channel(feed, send)


def select_channel(condition: jax.Array | bool, first: Channel, second: Channel) -> Channel:
    """The first channel where `condition` holds, else the second: a choice that may be data."""
    return Channel(
        feed=lambda *turn: jnp.where(condition, first.feed(*turn), second.feed(*turn)),
        send=lambda *turn: jnp.where(condition, first.send(*turn), second.send(*turn)),
    )


def shuffled(channel: Channel) -> Channel:
    """A null control: every receiver gets the thoughts of the item before it in the batch."""

    def send(edge, thoughts):
        return jnp.roll(channel.send(edge, thoughts), 1, axis=0)

    return channel._replace(send=send)
