"""The rows of the pool in which all answers are written, and whose texts they hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rmas_jax.agents import pool as pools
from rmas_jax.agents.reading import PromptInput
from rmas_jax.agents.sampling import RowRules
from rmas_jax.serving.jobs import Job, Text, Writer, Written, seeds_of, text_keys
from rmas_jax.serving.settings import EngineSettings
from rmas_jax.serving.statistics import Tally
from rmas_jax.sharding import to_host


class Begun(NamedTuple):
    """Texts of a group whose first tokens are chosen, and that wait for rows."""

    rows: pools.Rows  # a batch, one for each job
    waiting: list[tuple[Text, int]]  # and its row of these


class PoolRows:
    """Writes texts in a pool of rows."""

    def __init__(
        self, writer: Writer, settings: EngineSettings, widths: Sequence[int], tally: Tally
    ):
        """Args:
        writer: the answering agent.
        settings: of the engine.
        widths: of the blocks of the widest prompt, prefix and body.
        tally: to add to.
        """
        self.agent, self.settings, self.widths = writer.member.agent, settings, tuple(widths)
        self.texts: list[Text | None] = [None] * settings.rows  # None: free
        self.tally = tally
        self._pool: pools.Rows | None = None
        self._done = np.ones(settings.rows, bool)  # rows that have ended on the device
        self._step = 0  # of the pool
        self._how: dict[str, Any] = {
            "end_tokens": writer.member.end_tokens,
            "max_tokens": settings.max_tokens,
            "sampling": settings.sampling,
        }

    @property
    def running(self) -> int:
        """Rows with a text."""
        return len(self.texts) - self.texts.count(None)

    def begin(self, prompt: PromptInput, jobs: Sequence[Job]) -> list[Begun]:
        """Reads the prompts of a batch, and chooses the first token of each text of the jobs."""
        hidden, cache = pools.read_prompts(self.agent, prompt)
        return [
            self._first_tokens(hidden, cache, jobs, number)
            for number in range(max(job.request.n for job in jobs))
        ]

    def _first_tokens(
        self, hidden: jax.Array, cache: Any, jobs: Sequence[Job], number: int
    ) -> Begun:
        """The n-th texts of all jobs that have so many."""
        size = self.settings.batch
        filled = [job.request for job in [*jobs, *[jobs[-1]] * (size - len(jobs))]]
        rules: dict[str, Any] = {
            "temperature": np.array([one.temperature for one in filled], np.float32),
            "top_p": np.array([one.top_p for one in filled], np.float32),
            "limits": np.array([one.max_tokens for one in filled], np.int32),
        }
        rows = pools.begin(
            self.agent,
            hidden,
            cache,
            keys=text_keys(seeds_of(jobs, size), np.int32(number)),
            rules=RowRules(**rules),
            **self._how,
        )
        written, waiting = _on_host(rows), []
        for row, job in enumerate(jobs):
            if job.is_over or number >= job.request.n:
                continue
            text = job.texts[number]
            text.take(written, row, self._how["end_tokens"])
            if not text.is_over:
                waiting.append((text, row))
        return Begun(rows, waiting)

    def fill(self, begun: Begun) -> None:
        """Puts waiting texts into free rows, as many as there are."""
        rows, size = self.settings.rows, pools.filled_at_once(self.settings.rows)
        free = [place for place, text in enumerate(self.texts) if text is None]
        while free and begun.waiting:
            source, place = np.zeros(size, np.int32), np.full(size, rows, np.int32)
            for i in range(min(size, len(free), len(begun.waiting))):
                text, source[i] = begun.waiting.pop(0)
                place[i] = free.pop(0)
                self.texts[place[i]], self._done[place[i]] = text, False
            self._fill(begun.rows, source, place)

    def touch(self, begun: Begun) -> None:
        """Compiles all programs for texts like these; does nothing else while all rows are free."""
        nowhere = np.full(pools.filled_at_once(self.settings.rows), self.settings.rows, np.int32)
        # A new pool has programs of its own; from then on, pools are results of programs.
        for _ in range(2 if self._pool is None else 1):
            self._fill(begun.rows, np.zeros_like(nowhere), nowhere)
            self._run(self.settings.rows)
            self.end(np.zeros(self.settings.rows, bool))

    def _fill(self, begun: pools.Rows, source: np.ndarray, place: np.ndarray) -> None:
        if self._pool is None:
            self._pool = self._opened(begun)
        self._pool = pools.fill(self.agent.decoder, self._pool, begun, source, place)

    def _run(self, ended: int) -> Written:
        """Writes until this many rows have ended, or are free, or for some steps."""
        assert self._pool is not None
        steps = np.int32(self.settings.steps_at_once)
        self._pool = pools.run(self.agent, self._pool, np.int32(ended), steps, **self._how)
        return _on_host(self._pool)

    def _opened(self, like: pools.Rows) -> pools.Rows:
        """A pool of free rows, for prompts of all widths."""
        others = [block.valid.shape[1] for block in like.past[: -len(self.widths)]]
        return pools.empty_pool(
            self.agent.decoder, like, rows=self.settings.rows, widths=[*others, *self.widths]
        )

    def write(self, *, is_awaited: bool) -> None:
        """Writes some steps; fewer if others wait, and enough rows for them end before."""
        rows = self.settings.rows
        share = pools.filled_at_once(rows) if is_awaited else rows
        written = self._run(min(rows - self.running + share, rows))
        self._done = written.done.copy()
        self.tally.add(steps=int(written.step) - self._step)
        self._step = int(written.step)
        for place, text in enumerate(self.texts):
            if text is not None and not text.is_over:
                self.tally.add(row_steps=int(written.lengths[place]) - text.count)
                text.take(written, place, self._how["end_tokens"])
        self.release()

    def release(self) -> None:
        """Frees the rows of texts that are over."""
        is_over = np.array([text is not None and text.is_over for text in self.texts])
        if (is_over & ~self._done).any():
            self.end(is_over)
        self.texts = [
            None if over else text for text, over in zip(self.texts, is_over, strict=True)
        ]

    def end(self, is_over: np.ndarray) -> None:
        """Ends rows [B] bool on the device."""
        assert self._pool is not None
        self._pool = pools.end_rows(self._pool, is_over)
        self._done |= is_over


def _on_host(rows: pools.Rows) -> Written:
    text = rows.text
    found = (text.done, text.tokens, text.lengths, text.finite, text.logprobs, text.step)
    return Written(*to_host(found))
