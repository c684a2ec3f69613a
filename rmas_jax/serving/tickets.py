"""A ticket: what the sender of a request holds while it is answered."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator

from rmas_jax.serving.requests import CANCELLED, DoneEvent, EndEvent, Event, FailedEvent, Request

log = logging.getLogger(__name__)


class Ticket:
    """The events of a request, for its sender; safe to use in any thread."""

    def __init__(self, request: Request):
        self.request = request
        self._lock = threading.Lock()
        self._early: list[Event] = []  # before there was a listener
        self._listener: Callable[[Event], None] | None = None
        self._cancelled = threading.Event()

    @property
    def is_cancelled(self) -> bool:
        """Whether the sender wants no more."""
        return self._cancelled.is_set()

    def events(self) -> Iterator[Event]:
        """Yields the events as they happen; blocks.

        The last one is a DoneEvent, a FailedEvent, or, once it is cancelled, an EndEvent with
        CANCELLED. A ticket has one listener, or one such iterator.
        """
        found: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.listen(found.put)
        while True:
            event = found.get()
            yield event
            if is_last(event):
                return

    def listen(self, callback: Callable[[Event], None]) -> None:
        """Calls back for every event, those before this call included, in order.

        From the engine's thread, so it must return at once; an error in it cancels the request. For
        events before this call, errors are the caller's.
        """
        with self._lock:
            early, self._early, self._listener = self._early, [], callback
            for event in early:
                callback(event)

    def cancel(self) -> None:
        """Frees the place of the request; once is enough, at any time."""
        self._cancelled.set()  # the engine looks between two pieces of its work

    def emit(self, event: Event) -> None:
        """Passes an event to the sender; for the engine."""
        with self._lock:
            if self._listener is None:
                self._early.append(event)
                return
            try:
                self._listener(event)
            except Exception:
                log.warning("the listener of a request failed: it is cancelled", exc_info=True)
                self.cancel()


def is_last(event: Event) -> bool:
    """Whether no event of a ticket follows."""
    is_cancelled = isinstance(event, EndEvent) and event.reason == CANCELLED
    return is_cancelled or isinstance(event, DoneEvent | FailedEvent)
