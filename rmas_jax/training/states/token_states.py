"""Training data of links: an agent's states over its role texts, and over its latent rounds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from rmas_jax.agents.agent import Agent
from rmas_jax.host.nonfinite import NonFiniteError
from rmas_jax.host.preemption import end_if_due
from rmas_jax.links import Links
from rmas_jax.sharding import batch_shards, put_batch, to_host
from rmas_jax.team import Team
from rmas_jax.training.data.encoding import Dialogues, EncodedItems, learned_tokens
from rmas_jax.training.data.limits import rows_at_once
from rmas_jax.training.data.packing import packed_batches
from rmas_jax.training.rollouts import roll_outs
from rmas_jax.training.states.cache import StateCache, fill


class TokenStates(NamedTuple):
    """Predicted tokens, and the states before them in consecutive parts."""

    parts: tuple[np.ndarray, ...]  # each [n_i, D], in the agent's dtype; may be a memory map
    ids: np.ndarray  # [n] int32
    learned: np.ndarray  # [m] indices in 0..n-1 of the tokens to learn from; may repeat

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """States [..., D] of tokens [...]."""
        if len(self.parts) == 1:
            return self.parts[0][numbers]
        out = np.empty((*numbers.shape, self.parts[0].shape[1]), self.parts[0].dtype)
        start = 0
        for part in self.parts:
            is_here = (numbers >= start) & (numbers < start + len(part))
            out[is_here] = part[numbers[is_here] - start]
            start += len(part)
        return out

    def with_part(self, part: np.ndarray, ids: np.ndarray) -> TokenStates:
        """These tokens and, after them, others to learn from once."""
        number = len(self.ids) + np.arange(len(ids))
        return TokenStates(
            (*self.parts, part),
            np.concatenate([self.ids, ids]),
            np.concatenate([self.learned, number]),
        )


def states_before(agent: Agent, ids: jax.Array, segments: jax.Array) -> jax.Array:
    """The states [B, T - 1, D] that predict all tokens but the first column.

    Args:
      agent: the reader.
      ids: [B, T] dialogues, several in a row.
      segments: [B, T] int32, see `Decoder.read_packed`.
    """
    agent = agent.during("reading")
    return agent.read_packed(agent.embed(ids), segments)[:, :-1]


def text_states(
    team: Team,
    role: str,
    dialogues: Dialogues,
    cache: StateCache | None = None,
    *,
    progress: bool = False,
) -> TokenStates:
    """The tokens of a role's texts, in order, with states from the cache or else from the agent.

    `progress` is whether the agent's reading shows a bar.
    """
    ids = dialogues.text_ids
    row = jax.ShapeDtypeStruct((1, 2), np.int32)
    one = jax.eval_shape(states_before, team.agents[role], row, row)
    like = jax.ShapeDtypeStruct((len(ids), one.shape[-1]), one.dtype)
    chunks = read_texts(team, role, dialogues, progress=progress)
    if cache is None:
        read = fill(np.empty(like.shape, like.dtype), chunks)
    else:
        read = cache.states(role, dialogues, like, chunks)
    return TokenStates((read,), ids, learned_tokens(dialogues))


def state_bytes(team: Team, role: str, dialogues: Dialogues) -> int:
    """Bytes of the states of a role's texts."""
    agent = team.agents[role]
    return int(dialogues.text_lengths.sum()) * agent.width * agent.dtype.itemsize


def read_texts(
    team: Team, role: str, dialogues: Dialogues, *, progress: bool = False
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Runs a frozen agent once over its role texts; yields token numbers [k] and states [k, D].

    Dialogues are packed (`packed_batches`) into batches of as many rows as `rows_at_once` allows.
    `progress` is whether to show a bar.

    Raises:
      NonFiniteError: a state is NaN or infinite.
    """
    agent = team.agents[role]
    read = jax.jit(states_before)
    batches = packed_batches(
        dialogues,
        width=agent.width,
        heads=agent.config.num_heads,
        shards=batch_shards(team.mesh),
    )
    total, is_off = len(dialogues.tokens.ids), not progress
    with tqdm(desc=f"reading, {role}", total=total, unit="token", disable=is_off) as bar:
        for batch in batches:
            end_if_due("while texts are read, which starts again")
            hidden = to_host(read(agent, *put_batch((batch.ids, batch.segments), team.mesh)))
            numbers = batch.numbers[:, 1:]
            states = hidden[numbers >= 0]
            if not np.isfinite(states).all():
                raise NonFiniteError(role, "states of the role texts that it reads")
            bar.update(int((batch.segments > 0).sum()))
            yield numbers[numbers >= 0], states


def rollout_states(
    team: Team,
    links: Links,
    data: EncodedItems,
    *,
    rounds: int,
    batch_size: int | None = None,
    progress: bool = False,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Runs the latent rounds and pairs every thought with the token it predicts.

    Thoughts drift over rounds; pairs of drifted thoughts teach the links to correct the drift
    (dataset aggregation, Ross et al. 2011). Only stages at which the agent would still write its
    text exactly count: other thoughts have no token. The rollout has no gradient.

    Args:
      team: the system and its agents.
      links: of the rollout.
      data: items.
      rounds: R.
      batch_size: items at once; None: as many as `rows_at_once` allows for the longest item, with
        the texts of all roles together, whose caches coexist.
      progress: whether to show a bar.

    Returns:
      Role -> thoughts [n, D] and ids [n] of the tokens, by round, item and place, independently of
      the batch size; without roles that have no texts.
    """
    if batch_size is None:
        heads = max(agent.config.num_heads for agent in team.agents.values())
        batch_size = rows_at_once(_longest_item(data), heads)
    found: dict[str, list[tuple[np.ndarray, ...]]] = {role: [] for role in data.texts}
    is_off = not progress
    with tqdm(desc="rounds of the links", total=len(data), unit="item", disable=is_off) as bar:
        for batch, out, rows in roll_outs(team, links, data, rounds=rounds, batch_size=batch_size):
            for role, hidden in out.thoughts.items():  # [R, B, M, D]
                ids, valid = (
                    np.moveaxis(np.asarray(x)[:, :rounds, : hidden.shape[2]], 1, 0)
                    for x in (batch.targets[role].ids, batch.targets[role].valid)
                )
                keep = valid & out.scores[role].exact_match[..., None] & (rows >= 0)[None, :, None]
                r, b, m = np.nonzero(keep)
                found[role].append((r, rows[b], m, ids[keep], np.asarray(hidden)[r, b, m]))
            bar.update(int((rows >= 0).sum()))
    joined = {}
    for role, parts in found.items():
        r, row, m, ids, thoughts = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.lexsort((m, row, r))
        joined[role] = thoughts[order], ids[order]
    return joined


def _longest_item(data: EncodedItems) -> int:
    """Columns of the longest item: for every role, one prompt and one text."""
    widths = data.widths(np.arange(len(data)), is_tiled=True)
    slots = sum(prompt.slot_width * len(prompt.senders) for prompt in data.prompts.values())
    return slots + sum(map(sum, widths.prompts.values())) + sum(widths.targets.values())
