"""What the loops of a run learn from, as tokens."""

from __future__ import annotations

import numpy as np

from rmas_jax.config import ConfigError
from rmas_jax.models.tokenizer import shared_tokens
from rmas_jax.runs.resolve import Resolved
from rmas_jax.team import Team
from rmas_jax.training.data.encoding import (
    Dialogues,
    EncodedItems,
    encode_dialogues,
    encode_examples,
)
from rmas_jax.training.data.lists import encode_lists, with_lists


def encode_inner(resolved: Resolved) -> tuple[dict[str, Dialogues], EncodedItems | None]:
    """Inputs of the inner loop: dialogues, empty without steps; data for later repeats."""
    config, team = resolved.config, resolved.team
    if config.inner.steps == 0:
        return {}, None
    items = list(resolved.train[: config.inner.items])
    dialogues = {
        role: encode_dialogues(
            items,
            team.members[role],
            topology=team.system.topology,
            rounds=config.system.rounds,
        )
        for role in team.system.topology.order
    }
    if config.inner.lists:
        senders = {edge[0] for edge in team.system.topology.edges}
        for role, of_texts in dialogues.items():
            if role not in senders:
                continue  # its links carry no message
            tokens, tokenizer = _tokens_to_send(team, role), team.members[role].tokenizer
            lists = encode_lists(tokenizer, tokens, config.inner.lists)
            dialogues[role] = with_lists(of_texts, lists)
    return dialogues, encode_examples(team, items) if config.inner.repeats > 1 else None


def encode_outer(resolved: Resolved) -> tuple[EncodedItems, EncodedItems] | None:
    """Training and validation data of the outer loop; None without phases."""
    if not resolved.config.outer.phases:
        return None
    held_out = resolved.validation[: resolved.config.outer.validation_size]
    return resolved.training_data, encode_examples(resolved.team, held_out)


def _tokens_to_send(team: Team, role: str) -> np.ndarray:
    """A role's ids of all tokens that a receiver of its messages has as well.

    Raises:
      ConfigError: there are none.
    """
    known = [
        shared_tokens(*(team.members[end].tokenizer for end in edge))[0]
        for edge in team.system.topology.edges
        if edge[0] == role
    ]
    tokens = np.unique(np.concatenate([np.zeros(0, np.int32), *known]))
    if not len(tokens):
        raise ConfigError(
            "inner.lists must be 0 for a role that shares no token with a receiver of its "
            f"messages, got {role}"
        )
    return tokens
