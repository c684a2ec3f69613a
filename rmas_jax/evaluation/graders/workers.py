"""A pool of processes that compare one pair of answers at a time, and that can be killed."""

from __future__ import annotations

import atexit
import json
import os
import queue
import selectors
import subprocess
import sys
import time
from pathlib import Path

from rmas_jax.evaluation.graders.verdict import Outcome

WALL_S = 10.0  # of one comparison
START_S = 120.0  # of a process, on a busy machine
LIMIT_BYTES = 2**30  # address space of a process
GRACE_S = 5  # after which a process ends itself, should nobody have killed it
_FOLDER = Path(__file__).parent
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]);"
    "from exact.worker import main; main({})"
)


class WorkerError(Exception):
    """A process gave no reply; `outcome` is the kind of failure."""

    def __init__(self, outcome: Outcome, reason: str):
        super().__init__(reason)
        self.outcome, self.reason = outcome, reason


class Worker:
    """A process of `exact.worker`: a fresh interpreter, without JAX and `rmas_jax`."""

    def __init__(self, limit_bytes: int):
        path = [*filter(None, sys.path), str(_FOLDER)]  # the same packages, but not ours
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", _START.format(limit_bytes), json.dumps(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._unread = b""
        try:
            self._reply(START_S)
        except WorkerError as error:
            self.kill()
            raise WorkerError(Outcome.CRASHED, f"a process did not start: {error.reason}") from None

    def ask(self, gold: str, given: str | None, wall_s: float) -> tuple[Outcome, str]:
        """The outcome and reason of a comparison; with `given` None, of reading a gold answer.

        Raises:
          WorkerError: it took too long or too much memory; the process must be killed.
        """
        request = {"gold": gold, "given": given, "wall_s": int(wall_s) + GRACE_S}
        try:
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            raise WorkerError(Outcome.CRASHED, "the process has ended") from None
        reply = self._reply(wall_s)
        return Outcome(reply["outcome"]), reply["reason"]

    def _reply(self, wall_s: float) -> dict[str, str]:
        assert self.process.stdout is not None
        end = time.monotonic() + wall_s
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(max(0.0, end - time.monotonic())):
                    raise WorkerError(Outcome.TIMEOUT, f"no reply within {wall_s:g} s")
                piece = os.read(self.process.stdout.fileno(), 2**16)
                if not piece:
                    raise WorkerError(Outcome.CRASHED, "the process ended, or exceeded its memory")
                self._unread += piece
        line, self._unread = self._unread.split(b"\n", 1)
        reply: dict[str, str] = json.loads(line)
        return reply

    def kill(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


class Pool:
    """As many workers as cores, each started when it is first needed; for any number of threads."""

    def __init__(
        self, size: int | None = None, *, limit_bytes: int = LIMIT_BYTES, wall_s: float = WALL_S
    ):
        self._limit_bytes, self._wall_s = limit_bytes, wall_s
        self._idle: queue.LifoQueue[Worker | None] = queue.LifoQueue()
        for _ in range(size or os.cpu_count() or 1):
            self._idle.put(None)

    def ask(self, gold: str, given: str | None) -> tuple[Outcome, str]:
        """As `Worker.ask`; a worker that fails is killed, and the next pair gets a new one."""
        worker = self._idle.get()
        try:
            if worker is not None and worker.process.poll() is not None:  # killed from outside
                worker.kill()
                worker = None
            if worker is None:
                worker = Worker(self._limit_bytes)
            return worker.ask(gold, given, self._wall_s)
        except BaseException as error:
            if worker is not None:
                worker.kill()
                worker = None
            if isinstance(error, WorkerError):
                return error.outcome, error.reason
            raise
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """Ends all workers that are idle."""
        idle = [self._idle.get() for _ in range(self._idle.qsize())]
        for worker in idle:
            if worker is not None:
                worker.kill()
            self._idle.put(None)


POOL = Pool()  # of this process
atexit.register(POOL.close)
