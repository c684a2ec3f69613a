"""What links learn from: an agent's states over its role texts, and over its own latent rounds."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from rmas_jax.assembly import Team
from rmas_jax.sharding import put_batch, to_host
from rmas_jax.training.batches import Dialogues, TrainingData, length_groups
from rmas_jax.training.inner import states_before
from rmas_jax.training.preemption import end_if_due
from rmas_jax.training.rollouts import BATCH_SIZE, roll_outs
from rmas_jax.training.state_cache import StateCache, fill

BATCH_TOKENS = 2**15  # of a batch that is read, padding included


class TokenStates(NamedTuple):
    """Predicted tokens, and the states before them in parts that are counted through."""

    parts: tuple[np.ndarray, ...]  # each [n_i, D], in the agent's dtype; may be a memory map
    ids: np.ndarray  # [n] int32

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
        """These tokens, and others behind them."""
        return TokenStates((*self.parts, part), np.concatenate([self.ids, ids]))


def text_states(
    team: Team, role: str, dialogues: Dialogues, cache: StateCache | None = None
) -> TokenStates:
    """The tokens of a role's texts, in order, from the cache or else read by the frozen agent."""
    model, params = team.system.models[role], team.agents[role]
    ids = dialogues.ids[dialogues.target]
    one = jax.eval_shape(
        functools.partial(states_before, model, width=1),
        params,
        *(jax.ShapeDtypeStruct((1, 2), dtype) for dtype in (np.int32, bool)),
    )
    like = jax.ShapeDtypeStruct((len(ids), one.shape[-1]), one.dtype)
    chunks = read_texts(team, role, dialogues)
    if cache is None:
        return TokenStates((fill(np.empty(like.shape, like.dtype), chunks),), ids)
    return TokenStates((cache.states(role, dialogues, like, chunks),), ids)


def read_texts(
    team: Team, role: str, dialogues: Dialogues
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Runs a frozen agent once over its role texts; yields tokens [k] and the states [k, D] before.

    Rows of like length are read together (`length_groups`), cut to the longest of their group. So
    a row is padded to less than twice its length; only those shorter than an eighth of the longest
    of all may be padded more, up to that eighth. A batch has at most `BATCH_TOKENS` tokens, with
    padding, and `BATCH_SIZE` rows (a power of two, so that they divide over devices); a longer row
    is read alone. The last batch of a group wraps.
    """
    model, params = team.system.models[role], team.agents[role]
    read = jax.jit(functools.partial(states_before, model), static_argnames="width")
    lengths = dialogues.valid.sum(axis=1)
    number = np.cumsum(dialogues.target).reshape(dialogues.target.shape) - 1  # of each token
    for group in length_groups(lengths, 1):
        length, width = lengths[group].max(), int(dialogues.target[group].sum(axis=1).max())
        size = min(_rows_per_batch(length), len(group))
        for start in range(0, len(group), size):
            rows = group[np.arange(start, start + size) % len(group)]
            batch = (dialogues.ids[rows, -length:], dialogues.valid[rows, -length:])
            end_if_due("while texts are read, which starts again")
            hidden = to_host(read(params, *put_batch(batch, team.mesh), width=width))
            is_text = dialogues.target[rows, -width:]
            yield number[rows, -width:][is_text], hidden[is_text]


def _rows_per_batch(length: int) -> int:
    """Rows of this length that are read at once: a power of two."""
    return min(BATCH_SIZE, 2 ** int(np.log2(max(1, BATCH_TOKENS // length))))


def rollout_states(
    team: Team, links: object, data: TrainingData, *, rounds: int, batch_size: int = BATCH_SIZE
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Runs the system in latents and pairs every thought with the token it stands for.

    Thoughts drift over rounds; pairs of drifted thoughts teach the links to lead back (dataset
    aggregation, Ross et al. 2011). Only stages at which the agent would still write the right text
    count: what is lost cannot be paired. No gradient passes through the rollout.

    Returns:
      Role -> thoughts [n, D] and ids [n] of the tokens; roles without texts are left out.
    """
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {role: [] for role in data.targets}
    for batch, out, counts in roll_outs(team, links, data, rounds=rounds, batch_size=batch_size):
        for role, hidden in out.thoughts.items():  # [R, B, M, D]
            ids, valid = (
                np.moveaxis(x[:, :rounds, : hidden.shape[2]], 1, 0)
                for x in (batch.targets[role].ids, batch.targets[role].valid)
            )
            keep = valid & out.right[role][..., None] & counts[None, :, None]
            found[role].append((hidden[:, :, : keep.shape[2]][keep], ids[keep]))
    return {
        role: tuple(np.concatenate(column) for column in zip(*parts, strict=True))
        for role, parts in found.items()
    }
