"""What an engine has done so far."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping

from rmas_jax.serving.requests import CANCELLED

ANSWERED, FAILED, REFUSED = "answered", "failed", "refused"
OUTCOMES = (ANSWERED, FAILED, CANCELLED, REFUSED)  # of requests
ROUNDS, READING, WRITING = "rounds", "reading", "writing"
PHASES = (ROUNDS, READING, WRITING)
RECENT = 64  # requests from which the speed is estimated
LEAST_WAIT_S, MOST_WAIT_S = 1.0, 600.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statistics:
    """A moment of an engine, and sums since it is warm."""

    is_alive: bool  # False: it is closed, or has died of an unexpected error
    queued: int  # requests that wait for their rounds
    preparing: int  # requests in their rounds, or whose texts wait for rows
    running: int  # rows with a text
    rows: int
    compilations: int  # of this process, since the engine is warm; 0 before
    by_outcome: Mapping[str, int]  # requests, by `OUTCOMES`
    seconds: Mapping[str, float]  # by `PHASES`
    prompt_tokens: int
    message_tokens: int  # in text, between agents
    answer_tokens: int
    latents: int  # vectors that crossed edges
    batches: int  # that went through the rounds
    batched: int  # requests in them
    steps: int  # of the answering agent, for all rows at once
    row_steps: int  # tokens that rows got in them


class Tally:
    """The sums, as they grow."""

    def __init__(self) -> None:
        self.outcomes = dict.fromkeys(OUTCOMES, 0)
        self.seconds = dict.fromkeys(PHASES, 0.0)
        counted = ("prompt_tokens", "message_tokens", "answer_tokens", "latents", "batches")
        self.counts = dict.fromkeys((*counted, "batched", "steps", "row_steps"), 0)
        self._ended: collections.deque[float] = collections.deque(maxlen=RECENT)

    def add(self, **counts: int) -> None:
        """Adds to the sums of these names."""
        for name, count in counts.items():
            self.counts[name] += count

    @contextlib.contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Adds the seconds of the block to a phase."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - started

    def ended(self, outcome: str) -> None:
        """Counts a request."""
        self.outcomes[outcome] += 1
        self._ended.append(time.perf_counter())

    def wait(self, queued: int) -> float:
        """Seconds until so many requests have ended, by the speed of the last ones."""
        ended = list(self._ended)
        each = (ended[-1] - ended[0]) / (len(ended) - 1) if len(ended) > 1 else 0.0
        return min(max(queued * each, LEAST_WAIT_S), MOST_WAIT_S)
