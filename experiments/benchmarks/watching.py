"""What evaluations compute, seen where they call their programs.

A result of an evaluation shows none of this: a method may take what another one has computed, or
read a prefix inside its program of rounds, and what compiles is computed twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

from rmas_jax.agents.pool import Rows
from rmas_jax.evaluation import listening, programs
from rmas_jax.evaluation.answering import Prompts
from rmas_jax.rounds import text_channel

PARTS = ("prefixes read", "rounds run", "messages written")  # by batch
PROGRAMS = (
    (listening, "read_prefix_jitted"),
    (listening, "listen_jitted"),
    (text_channel, "write_texts"),
)


class Watched:
    """The calls of `PROGRAMS` so far."""

    def __init__(self, prefixes: mock.Mock, rounds: mock.Mock, messages: mock.Mock):
        self._prefixes, self._rounds, self._messages = prefixes, rounds, messages

    @property
    def prompts(self) -> list[Prompts]:
        """Those of each call that runs rounds."""
        # System, agents, channel, prompts, prefixes, progress before.
        return [call.args[3] for call in self._rounds.call_args_list]

    def parts(self) -> dict[str, int]:
        """How often each of `PARTS` is computed."""
        read, ran = self._prefixes.call_count, 0
        for args, options in self._rounds.call_args_list:
            *_, prompts, prefixes, before = args
            read += 0 if prefixes else len(prompts)
            ran += int(options["rounds"]) - (int(before.rounds) if before else 0)
        return dict(zip(PARTS, (read, ran, self._messages.call_count), strict=True))


@contextlib.contextmanager
def watched() -> Iterator[Watched]:
    """Watches the evaluations in the block."""
    with contextlib.ExitStack() as stack:
        yield Watched(
            *(
                stack.enter_context(mock.patch.object(module, name, wraps=getattr(module, name)))
                for module, name in PROGRAMS
            )
        )


@contextlib.contextmanager
def pool_steps() -> Iterator[list[int]]:
    """The decode steps of each call in the block that writes in a pool of rows."""
    steps: list[int] = []
    run = programs.run

    def counted(agent: Any, pool: Rows, *args: Any, **options: Any) -> Rows:
        before = int(pool.text.step)  # the call takes the pool's memory
        pool = run(agent, pool, *args, **options)
        steps.append(int(pool.text.step) - before)
        return pool

    with mock.patch.object(programs, "run", counted):
        yield steps
