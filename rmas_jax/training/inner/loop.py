"""The inner loop as a whole: reading, pairing and training, in order."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import jax
import numpy as np
from tqdm import tqdm

from rmas_jax.config import ConfigError, InnerConfig
from rmas_jax.host.nonfinite import NonFiniteError
from rmas_jax.host.preemption import end_if_due
from rmas_jax.host.processes import on_all
from rmas_jax.links import Links
from rmas_jax.models.tokenizer import shared_tokens
from rmas_jax.sharding import to_host
from rmas_jax.team import Team
from rmas_jax.topology import edge_name
from rmas_jax.training.curves import Curves
from rmas_jax.training.data.encoding import Dialogues, EncodedItems
from rmas_jax.training.divergence import DivergedError
from rmas_jax.training.inner.regression import Pairs, start_training, train_side_by_side
from rmas_jax.training.inner.step import UpstreamLink
from rmas_jax.training.states.cache import StateCache, check_room
from rmas_jax.training.states.token_states import (
    TokenStates,
    rollout_states,
    state_bytes,
    text_states,
)


def run_inner_loop(
    team: Team,
    links: Links,
    dialogues: Mapping[str, Dialogues],
    data: EncodedItems | None,
    config: InnerConfig,
    *,
    rounds: int,
    key: jax.Array,
    curves: Curves,
    cache: StateCache | None = None,
    align_outer: bool = True,
    log_every: int = 10,
    progress: bool = True,
) -> Links:
    """Trains every agent's inner link on its role texts, and aligns the outer links.

    The links of a part train in parallel, each on the next device of this process; every process
    trains them all, to the same numbers.

    Args:
      team: the system and its agents.
      links: initial links.
      dialogues: by role, for the first repeat; unused without steps.
      data: the same items as prompts with slots, for later repeats; None without these.
      config: of the regressions.
      rounds: R of the later repeats' rollouts.
      key: for the order of the batches.
      curves: receives the losses.
      cache: of the states of dialogues; None keeps them in memory.
      align_outer: whether to align outer links, which learn to map a token's vector to the
        receiver's embedding of the token, for shared tokens. Otherwise they stay unchanged.
      log_every: steps between rows of the curves.
      progress: whether to show bars.

    Returns:
      All links, trained ones on the host.

    Raises:
      PreemptedError: after SIGTERM.
      NonFiniteError: states or embeddings of an agent are NaN or infinite.
      DivergedError: a link's loss or gradient is NaN or infinite.
      ConfigError: the states of texts have no room, or the texts of an edge's sender hold no token
        shared by both ends.
    """
    system, topology = team.system, team.system.topology
    edges = {edge_name(edge): edge for edge in topology.edges if align_outer}
    for name in (*topology.order, *map(edge_name, topology.edges)):
        curves.truncate(name, 0)
    if config.steps == 0:
        return links
    links = Links(dict(links.inner), dict(links.outer))  # trained ones replace these
    sizes = {role: state_bytes(team, role, dialogues[role]) for role in topology.order}
    on_all(lambda: check_room(sizes, 0 if cache is None else cache.limit))
    devices = jax.local_devices()[:1] if team.mesh is None else team.mesh.local_devices
    states = {
        role: text_states(team, role, dialogues[role], cache, progress=progress)
        for role in topology.order
    }
    tables = {role: embedding_table(team, role) for role in topology.order}
    counterparts = {name: counterpart_ids(team, edge) for name, edge in edges.items()}
    bar = tqdm(
        total=config.repeats * (len(topology.order) + len(edges)) * config.steps,
        desc="inner loop",
        unit="step",
        disable=not progress,
    )

    def report(steps: int) -> None:
        bar.update(steps)
        end_if_due("in the inner loop, which starts again")

    number = itertools.count()
    for i in range(config.repeats):
        if i:  # a thought of a role without texts predicts no token
            assert data is not None  # given with repeats
            rolled_out = rollout_states(team, links, data, rounds=rounds, progress=progress)
            for role, rolled in rolled_out.items():
                states[role] = states[role].with_part(*rolled)
        for part in ("inner", "outer"):  # outer links read the outputs of trained inner ones
            if part == "inner":
                pairs_by_link = {
                    role: inner_pairs(states[role], tables[role]) for role in topology.order
                }
            else:
                pairs_by_link = {
                    name: outer_pairs(states[sender], counterparts[name], tables[receiver])
                    for name, (sender, receiver) in edges.items()
                }
            if empty := [name for name, pairs in pairs_by_link.items() if not len(pairs.ids)]:
                raise ConfigError(
                    f"{part} links {', '.join(empty)}: the sender's texts must have a token of the "
                    "receiver's vocabulary, got none; system.outer_start may be torch_default or "
                    "identity"
                )
            trainings = {
                name: start_training(
                    getattr(system, part)[name],
                    getattr(links, part)[name],
                    pairs,
                    config,
                    key=jax.random.fold_in(key, next(number)),
                    device=devices[k % len(devices)],
                    upstream=None if part == "inner" else upstream_link(team, links, edges[name]),
                )
                for k, (name, pairs) in enumerate(pairs_by_link.items())
            }
            for name, (params, logged) in train_side_by_side(trainings, report).items():
                work = f"repeat {i + 1}, {part} link {name}"
                target = name if part == "inner" else edges[name][1]
                check_training(work, target, pairs_by_link[name], logged)
                getattr(links, part)[name] = params
                for step in range(0, config.steps, log_every):
                    values = {curve: float(v[step]) for curve, v in logged.items()}
                    curves.write("inner", name, i * config.steps + step, **values)
    bar.close()
    return links


def check_training(work: str, target: str, pairs: Pairs, logged: Mapping[str, np.ndarray]) -> None:
    """Checks that a link's curves are finite; `target` is the role of the target embeddings.

    Raises:
      NonFiniteError: they are not, because target embeddings are not.
      DivergedError: they are not, for another reason.
    """
    finite = np.isfinite(logged["loss"]) & np.isfinite(logged["grad_norm"])
    if finite.all():
        return
    tokens = np.unique(pairs.ids)
    if len(broken := tokens[~np.isfinite(pairs.table[tokens]).all(axis=1)]):
        names = [f"token {token}" for token in broken.tolist()]
        raise NonFiniteError(target, "input embeddings", within=work, items=names)
    step = int(np.argmin(finite))
    raise DivergedError(
        f"inner loop, {work}, step {step}: loss {logged['loss'][step]}, gradient norm "
        f"{logged['grad_norm'][step]}; inner.learning_rate may be too high"
    )


def embedding_table(team: Team, role: str) -> np.ndarray:
    """An agent's input embeddings [V, D] on the host (scaled, where the family scales them)."""
    return to_host(team.agents[role].embedding_table())


def counterpart_ids(team: Team, edge: tuple[str, str]) -> np.ndarray:
    """The receiver's id of each of the sender's tokens [V]; -1 where it has none."""
    sender = edge[0]
    mine, theirs = shared_tokens(*(team.members[role].tokenizer for role in edge))
    counterpart = np.full(team.agents[sender].config.vocab_size, -1)
    counterpart[mine] = theirs
    return counterpart


def inner_pairs(states: TokenStates, table: np.ndarray) -> Pairs:
    """Pairs of an inner link: all tokens, with the agent's own embeddings as targets."""
    return Pairs(states, states.learned, states.ids[states.learned], table)


def outer_pairs(states: TokenStates, counterpart: np.ndarray, table: np.ndarray) -> Pairs:
    """Pairs of an outer link: shared tokens, with the receiver's embeddings as targets."""
    ids = counterpart[states.ids[states.learned]]
    known = ids >= 0
    return Pairs(states, states.learned[known], ids[known], table)


def upstream_link(team: Team, links: Links, edge: tuple[str, str]) -> UpstreamLink | None:
    """The link applied to a thought before an edge: the sender's inner link, or None."""
    if team.system.sent_vectors == "outer_of_hidden":
        return None
    return UpstreamLink(link=team.system.inner[edge[0]], params=links.inner[edge[0]])
