"""Writes the rollouts of a split in a pool of rows that finished texts leave to waiting ones.

    batch 0, batch 1, ... --listen--> waiting rows --> pool of B rows --> rollouts of batches

A batch is read as in `rollouts`; its rows enter the pool as others end, so that nobody waits for
the longest text of a batch. A pool has one width of prompts: it runs empty before batches of
another width. Tool calls and retries come after the first piece of a text, on the plain path.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from rmas_jax.agents import pool as pools
from rmas_jax.agents.agent import Agent
from rmas_jax.agents.answers import Piece, stops_of
from rmas_jax.evaluation import programs
from rmas_jax.evaluation.answerer import Answerer
from rmas_jax.evaluation.answering import Listened
from rmas_jax.evaluation.batches import Batch
from rmas_jax.evaluation.rollouts import Listen, Work, Written
from rmas_jax.evaluation.shared import Shared
from rmas_jax.host.nonfinite import NonFiniteError
from rmas_jax.sharding import to_host

T = TypeVar("T")


@dataclasses.dataclass(eq=False)
class _Rollout:
    """A rollout of a batch under way."""

    batch: Batch
    number: int
    listened: Listened
    begun: pools.Rows
    piece: Piece  # what its finished rows have written
    waiting: list[int]  # rows that are in no pool yet
    missing: int  # rows that are not finished

    def finish(self, row: int, piece: Piece, at: int) -> None:
        """Takes the text of a row from another place."""
        for own, other in zip(self.piece, piece, strict=True):
            own[row] = other[at]
        self.missing -= 1


class _Watch:
    """Sums the seconds of the parts of the work."""

    def __init__(self, shared: Shared):
        self.shared = shared
        self.seconds = 0.0

    def timed(self, call: Callable[[], T]) -> T:
        """As `Shared.timed`; for calls that may compile."""
        result, seconds = self.shared.timed(call)
        self.seconds += seconds
        return result

    def once(self, call: Callable[[], T]) -> T:
        """For calls whose programs are compiled."""
        started = time.perf_counter()
        result = call()
        self.seconds += time.perf_counter() - started
        return result

    def take(self) -> float:
        """The seconds since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


class _Rows:
    """The rows of a pool, and whose texts they hold."""

    def __init__(self, agent: Agent, settings: Mapping[str, Any], watch: _Watch):
        self.agent, self.settings, self.watch = agent, settings, watch
        self.pool: pools.Rows | None = None
        self.texts: list[tuple[_Rollout, int] | None] = []  # rollout and row of it; None: free

    @property
    def is_busy(self) -> bool:
        return any(self.texts)

    def fits(self, rollout: _Rollout) -> bool:
        """Whether the pool has the widths of a rollout's prompts."""
        return self.pool is not None and _widths(self.pool) == _widths(rollout.begun)

    def admits(self, rollout: _Rollout) -> bool:
        """Whether rows of a rollout can enter now."""
        return not self.is_busy or (self.fits(rollout) and None in self.texts)

    def enter(self, rollout: _Rollout) -> None:
        """Puts waiting rows into free ones, as many as there are."""
        if not rollout.waiting:
            return
        if not self.fits(rollout):
            self._open(rollout.begun)
        free = [at for at, text in enumerate(self.texts) if text is None]
        count = min(len(free), len(rollout.waiting))
        place, source = free[:count], rollout.waiting[:count]
        del rollout.waiting[:count]
        for at, row in zip(place, source, strict=True):
            self.texts[at] = rollout, row
        assert self.pool is not None
        fill = functools.partial(self._fill, self.pool, rollout.begun, source, place)
        self.pool = self.watch.once(_whole(fill))

    def _open(self, like: pools.Rows) -> None:
        """Opens another pool; compiles its programs, which do nothing on free rows."""
        self.pool = None  # its memory is free
        pool = pools.empty_pool(self.agent.decoder, like)
        batch = len(like.text.done)
        pool = self._fill(pool, like, [0], [batch])
        self.pool = jax.block_until_ready(self._run(pool, batch))
        self.texts = [None] * batch

    def _fill(
        self, pool: pools.Rows, begun: pools.Rows, source: Sequence[int], place: Sequence[int]
    ) -> pools.Rows:
        """Puts begun texts into rows of a pool, in calls of one program."""
        batch = len(begun.text.done)
        size = pools.filled_at_once(batch)
        for start in range(0, len(source), size):
            rows = np.zeros(size, np.int32), np.full(size, batch, np.int32)
            for row, wanted in zip(rows, (source, place), strict=True):
                part = wanted[start : start + size]
                row[: len(part)] = part
            pool = programs.fill(self.agent.decoder, pool, begun, *rows)
        return pool

    def _run(self, pool: pools.Rows, ended: int) -> pools.Rows:
        return programs.run(self.agent, pool, np.int32(ended), **self.settings)

    def run(self, *, is_awaited: bool) -> list[_Rollout]:
        """Writes until a share of the rows is free, if others wait for them, or all are.

        Returns:
          The rollouts that are finished.
        """
        before, batch = self.pool, len(self.texts)
        assert before is not None
        share = pools.filled_at_once(batch) if is_awaited else batch
        ended = min(self.texts.count(None) + share, batch)

        def work() -> tuple[pools.Rows, Any]:
            pool = self._run(before, ended)
            text = pool.text
            return pool, to_host((text.done, text.tokens, text.lengths, text.finite))

        self.pool, (done, *parts) = self.watch.once(work)
        piece = Piece(*parts)
        finished = []
        for at in np.flatnonzero(done).tolist():
            if (text := self.texts[at]) is not None:
                rollout, row = text
                rollout.finish(row, piece, at)
                self.texts[at] = None
                finished += [rollout] * (not rollout.missing)
        return finished


def write_refilled(
    answerer: Answerer, listen: Listen, works: Sequence[Work], *, seed: int
) -> Iterator[Written]:
    """Writes like `rollouts.write_batches`, in a pool; rollouts come as they end.

    Seconds of a rollout are those of all work since the one before.

    Raises:
      NonFiniteError: an agent's numbers are NaN or infinite; its rows are places in the split.
    """
    watch, how = _Watch(answerer.shared), answerer.answering
    member = answerer.team.members[answerer.answers_as]
    settings = {
        "end_tokens": member.end_tokens,
        "max_tokens": how.max_tokens,
        "sampling": how.sampling,
        "stops": stops_of(member, how.toolbox),
    }
    rows = _Rows(member.agent, settings, watch)
    coming = _begin(answerer, listen, works, seed, settings, watch)
    following = next(coming, None)
    while following is not None or rows.is_busy:
        while following is not None and rows.admits(following):
            rows.enter(following)
            if following.waiting:
                break
            if not following.missing:  # all rows ended with their first token
                yield _written(answerer, following, watch)
            following = next(coming, None)
        if rows.is_busy:
            is_awaited = following is not None and rows.fits(following)
            for rollout in rows.run(is_awaited=is_awaited):
                yield _written(answerer, rollout, watch)


def _begin(
    answerer: Answerer,
    listen: Listen,
    works: Sequence[Work],
    seed: int,
    settings: Mapping[str, Any],
    watch: _Watch,
) -> Iterator[_Rollout]:
    """Reads batch by batch, and chooses the first tokens of each rollout."""
    agent = answerer.team.members[answerer.answers_as].agent
    for batch, numbers in works:
        with _of_batch(batch):
            listened = watch.timed(functools.partial(listen, batch.rows))
        read = functools.partial(programs.read_prompts, agent, listened.prompt)
        hidden, cache = watch.timed(_whole(read))
        keys = answerer.keys(seed, batch.rows)
        for k in numbers:
            first = functools.partial(
                programs.begin, agent, hidden, cache, keys=keys[k], **settings
            )
            begun = watch.timed(_whole(first))
            text = begun.text
            done, *parts = to_host((text.done, text.tokens, text.lengths, text.finite))
            waiting = np.flatnonzero(~done[: batch.kept]).tolist()
            piece = Piece(*(np.array(part) for part in parts))
            yield _Rollout(batch, k, listened, begun, piece, waiting, len(waiting))


def _written(answerer: Answerer, rollout: _Rollout, watch: _Watch) -> Written:
    """A finished rollout, with later pieces of its texts."""
    batch, prompt, keys = rollout.batch, rollout.listened.prompt, rollout.begun.keys
    for part in rollout.piece:
        part[batch.kept :] = part[0]  # rows that fill the batch up are not written
    with _of_batch(batch):
        texts = watch.timed(lambda: answerer.write(prompt, keys, first=rollout.piece))
    answers = rollout.listened.answered({answerer.answers_as: [texts]})
    return Written(batch, rollout.number, answers, watch.take() / len(batch.rows))


@contextlib.contextmanager
def _of_batch(batch: Batch) -> Iterator[None]:
    try:
        yield
    except NonFiniteError as error:
        raise error.at(batch.rows) from None


def _whole(call: Callable[[], T]) -> Callable[[], T]:
    """A call that ends when the device has finished."""
    return lambda: jax.block_until_ready(call())


def _widths(rows: pools.Rows) -> list[tuple[int, ...]]:
    return [block.valid.shape for block in rows.past]
