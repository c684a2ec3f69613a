"""The engine: one team, loaded once, that answers the requests of many senders.

    submit --> queue --> group --rounds--> first tokens --> rows of the pool --> texts --> ticket

One thread does all work on the devices. Again and again it runs a piece of the rounds of waiting
requests, puts texts whose first token is chosen into free rows, and writes a few tokens in all
rows; then it emits what is new, and frees the rows of texts that have ended.

All programs have fixed shapes: `batch` requests go through the rounds together, `rows` texts are
written at once, and the blocks of prompts have one of a few widths. Nothing that a request computes
depends on its neighbours or on when it came, bit for bit.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed

from tqdm import tqdm

from rmas_jax.host.compilations import compilations
from rmas_jax.host.errors import InputError, clipped
from rmas_jax.host.generators import result_of
from rmas_jax.host.nonfinite import NonFiniteError
from rmas_jax.links import Links
from rmas_jax.rounds.channels import CHANNELS, TEXT
from rmas_jax.serving.checks import check_request, with_defaults
from rmas_jax.serving.groups import Pieces, Prepared, Rounds
from rmas_jax.serving.jobs import Job, Writer
from rmas_jax.serving.prompts import Layout
from rmas_jax.serving.requests import BusyError, Event, FailedEvent, Request, RequestError
from rmas_jax.serving.rows import Begun, PoolRows
from rmas_jax.serving.settings import EngineSettings
from rmas_jax.serving.statistics import READING, REFUSED, ROUNDS, WRITING, Statistics, Tally
from rmas_jax.serving.tickets import Ticket
from rmas_jax.team import Team

AT_ONCE = 2  # kinds: while one is traced, which is Python, programs of the other are compiled
WARM_TRIES = 3  # of the first kind, at most, until one compiles nothing
CLOSED_S = 60.0  # `retry_after` of a request that comes too late
log = logging.getLogger(__name__)


class EngineError(InputError):
    """A team that cannot be served with these settings."""


@dataclasses.dataclass(frozen=True)
class _Group:
    """Requests on their way through the rounds."""

    jobs: list[Job]
    pieces: Pieces


class Engine:
    """Answers requests; its methods are safe to use in any thread."""

    def __init__(self, team: Team, links: Links | None, settings: EngineSettings):
        """Takes a loaded team, and its links, or None where no channel needs them.

        Raises:
          EngineError: links are missing for a channel of the settings.
        """
        for name in settings.channels:
            if links is None and name != TEXT and CHANNELS[name].uses_links:
                raise EngineError(f"links must be given for the channel {name}, got None")
        self.team, self.settings = team, settings
        self._layout = Layout(team, settings.widths, shares_starts=settings.shares_starts)
        self._tally = Tally()
        self._writer = Writer(team.members[team.system.topology.answerer])
        self._rounds = Rounds(team, links, settings, self._layout)
        self._compiled: int | None = None  # programs, when it became warm
        # Of the thread that works.
        self._group: _Group | None = None
        self._begun: list[Begun] = []  # the texts of a group wait for rows
        self._rows = PoolRows(self._writer, settings, self._widest_prompt(), self._tally)
        # Of all threads, with this lock; no event is emitted inside it.
        self._lock = threading.Condition()
        self._queue: collections.deque[Job] = collections.deque()
        self._thread: threading.Thread | None = None
        self._is_alive, self._is_closing, self._is_cancelling = True, False, False

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the texts that a question has beside itself."""
        return self._layout.columns

    @property
    def is_warm(self) -> bool:
        """Whether all programs are compiled."""
        return self._compiled is not None

    def warm(self, *, progress: bool = False) -> None:
        """Compiles all programs, before `start`; no request compiles anything afterwards.

        Asks short questions of every kind and width; with a bar, in a terminal.

        Raises:
          InputError: numbers of an agent are NaN or infinite.
        """
        kinds = [*self._kinds()]
        hidden = None if progress else True  # None: unless standard error is a terminal
        # On several devices, programs must start in one order everywhere.
        threads = ThreadPoolExecutor(AT_ONCE if self.team.mesh is None else 1)
        try:
            tries = [threads.submit(self._try, *kind) for kind in kinds]
            ended = as_completed(tries)
            for one in tqdm(ended, "compiling", len(tries), unit="kind", disable=hidden):
                one.result()
        finally:
            threads.shutdown(cancel_futures=True)  # after an error, or Ctrl-C
        for _ in range(WARM_TRIES):
            known = compilations()
            self._try(*kinds[0])
            if known == compilations():
                break
        else:
            log.warning("the engine is not warm: each request of a kind compiles programs anew")
        self._compiled = compilations()

    def _try(self, request: Request, width: int) -> None:
        """Runs all programs that a request of this width needs."""
        asked = self._layout.encode(
            self._layout.probe(), slot_width=self._slot_width(request), width=width
        )
        events: list[Event] = []
        ticket = Ticket(request)
        ticket.listen(events.append)
        jobs = [Job(request, ticket, asked, self._writer, Tally())]
        prepared = result_of(self._rounds.of(jobs, message_tokens=1))
        for error in prepared.errors.values():
            raise error
        with self._lock:
            for begun in self._rows.begin(prepared.prompt, jobs):
                self._rows.touch(begun)
        for event in events:
            if isinstance(event, FailedEvent):
                raise EngineError(event.message)

    def _kinds(self) -> Iterator[tuple[Request, int]]:
        """A short request of each kind that has programs of its own, and its width."""
        short = Request(
            question="",
            rounds=min(2, self.settings.max_rounds),
            max_tokens=min(2, self.settings.max_tokens),
            is_watched=True,
            nearest=self.settings.nearest,
        )
        for channel in self.settings.channels:
            request = dataclasses.replace(short, channel=channel)
            for width in self.settings.widths:
                yield with_defaults(request, self.settings), width

    def start(self) -> None:
        """Starts the thread that works."""
        with self._lock:
            if self._thread is None and not self._is_closing:
                self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
                self._thread.start()

    def submit(self, request: Request) -> Ticket:
        """Takes a request.

        Raises:
          RequestError: a value is out of its range, or the question is too long.
          BusyError: the queue is full, or the engine takes no more requests.
        """
        try:
            self._check_room()  # before any work
            request = with_defaults(request, self.settings)
            check_request(request, self.settings, self.columns)
            asked = self._layout.encode(request.question, slot_width=self._slot_width(request))
            ticket = Ticket(request)
            job = Job(request, ticket, asked, self._writer, self._tally)
            with self._lock:
                self._check_room()
                self._queue.append(job)
                self._lock.notify_all()
        except (RequestError, BusyError):
            with self._lock:
                self._tally.outcomes[REFUSED] += 1
            raise
        return ticket

    def _check_room(self) -> None:
        with self._lock:
            if not self._is_alive or self._is_closing:
                raise BusyError("the engine takes no more requests", CLOSED_S)
            if (queued := len(self._queue)) >= self.settings.queue:
                raise BusyError(
                    f"the queue is full: {queued:,} requests wait", self._tally.wait(queued)
                )

    def close(self, *, finish: bool = True) -> None:
        """Takes no more requests; waits until those under way are answered, or cancels them."""
        with self._lock:
            self._is_closing = True
            self._is_cancelling |= not finish
            self._lock.notify_all()
            thread = self._thread
        if thread is None:
            self._end_all(None)
            self._is_alive = False
        elif thread is not threading.current_thread():
            thread.join()

    def statistics(self) -> Statistics:
        """What it is doing, and has done since it is warm."""
        with self._lock:
            return Statistics(
                is_alive=self._is_alive,
                queued=len(self._queue),
                preparing=self._preparing(),
                running=self._rows.running,
                rows=self.settings.rows,
                compilations=0 if self._compiled is None else compilations() - self._compiled,
                by_outcome=dict(self._tally.outcomes),
                seconds=dict(self._tally.seconds),
                **self._tally.counts,
            )

    def _preparing(self) -> int:
        """Requests that are no longer queued, and have no row yet."""
        group, begun = self._group, self._begun
        waiting = {id(text.job) for one in begun for text, _ in [*one.waiting]}
        return len(waiting) + (0 if group is None else len(group.jobs))

    def _slot_width(self, request: Request) -> int:
        in_text = request.channel == TEXT
        return self.settings.message_tokens if in_text else self.team.system.latent_steps

    def _widest_prompt(self) -> tuple[int, int]:
        """Positions of the widest prefix and body of the answerer."""
        role, widest = self.team.system.topology.answerer, self.settings.widths[-1]
        prefix, *blocks = self._layout.block_widths(role, widest)
        slot = max(
            self.settings.message_tokens if name == TEXT else self.team.system.latent_steps
            for name in self.settings.channels
        )
        return prefix, sum(blocks) + (len(blocks) - 1) * slot

    def _run(self) -> None:
        """The life of the thread."""
        try:
            while self._wait():
                self._work()
        except BaseException as error:
            log.exception("the engine has stopped")
            with self._lock:
                self._is_alive = False
            self._end_all(clipped(f"the engine has stopped: {type(error).__name__}: {error}", 500))
        finally:
            with self._lock:
                self._is_alive = False

    def _wait(self) -> bool:
        """Waits for work; False: there will be none."""
        with self._lock:
            while not self._has_work():
                if self._is_closing:
                    return False
                self._lock.wait()
            return True

    def _has_work(self) -> bool:
        return bool(self._queue or self._group or self._begun or self._rows.running)

    def _work(self) -> None:
        """A piece of the rounds of some requests, and a few tokens of the texts of others."""
        self._drop_cancelled()
        if self._group is None and not self._begun:
            self._group = self._next_group()
        if self._group is not None:
            self._advance(self._group)
        with self._tally.timed(WRITING):
            for begun in self._begun:
                self._rows.fill(begun)
            self._begun = [begun for begun in self._begun if begun.waiting]
            if self._rows.running:
                self._rows.write(is_awaited=bool(self._begun))

    def _drop_cancelled(self) -> None:
        """Frees the places of requests that are cancelled."""
        for job in self._jobs():
            if job.ticket.is_cancelled or self._is_cancelling:
                job.cancel()
        with self._lock:
            left = [job for job in self._queue if not job.is_over]
            self._queue.clear()
            self._queue.extend(left)
        if self._group is not None and all(job.is_over for job in self._group.jobs):
            self._group.pieces.close()
            self._group = None
        for begun in self._begun:
            begun.waiting[:] = [(text, row) for text, row in begun.waiting if not text.is_over]
        self._begun = [begun for begun in self._begun if begun.waiting]
        self._rows.release()

    def _jobs(self) -> list[Job]:
        """All requests under way."""
        with self._lock:
            jobs = list(self._queue)
        if self._group is not None:
            jobs += self._group.jobs
        jobs += [text.job for begun in self._begun for text, _ in begun.waiting]
        return [*jobs, *(text.job for text in self._rows.texts if text is not None)]

    def _next_group(self) -> _Group | None:
        """The requests that go through the rounds with the one that waits the longest."""
        with self._lock:
            if not self._queue:
                return None
            first = self._queue[0]
            jobs = [job for job in self._queue if job.group == first.group]
            jobs = jobs[: self.settings.batch]
            for job in jobs:
                self._queue.remove(job)
        for job in jobs:
            job.begin_rounds()
        self._tally.add(batches=1, batched=len(jobs))
        return _Group(jobs, self._rounds.of(jobs))

    def _advance(self, group: _Group) -> None:
        """Runs the next piece of the rounds of a group; the last one begins its texts."""
        try:
            with self._tally.timed(ROUNDS):
                next(group.pieces)
        except StopIteration as end:
            with self._tally.timed(READING):
                self._begin_texts(group.jobs, end.value)
            self._group = None  # after an error here, its requests are still found
        except NonFiniteError as error:
            self._group = None
            self._run_without(group.jobs, error)

    def _begin_texts(self, jobs: list[Job], prepared: Prepared) -> None:
        for row, job in enumerate(jobs):
            job.end_rounds(prepared.rounds[row])
            if row in prepared.errors:
                job.fail(prepared.errors[row])
        if not all(job.is_over for job in jobs):
            begun = self._rows.begin(prepared.prompt, jobs)
            self._begun = [one for one in begun if one.waiting]

    def _run_without(self, jobs: list[Job], error: NonFiniteError) -> None:
        """Fails the requests whose rows an error names; the others go through the rounds again."""
        failed = {row for row in error.rows if row < len(jobs)} or set(range(len(jobs)))
        for row in failed:
            jobs[row].fail(error)
        with self._lock:
            self._queue.extendleft(
                job for row, job in reversed([*enumerate(jobs)]) if row not in failed
            )

    def _end_all(self, message: str | None) -> None:
        """Fails all requests under way; without a message, cancels them."""
        for job in self._jobs():
            if message is None:
                job.cancel()
            else:
                job.fail(message)
        with self._lock:
            self._queue.clear()
