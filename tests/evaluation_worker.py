"""An evaluation of the tiny team in a process of its own, which may die anywhere.

    python tests/evaluation_worker.py TEAM_FOLDER FOLDER [OPERATION SHARE]

With OPERATION, the process kills itself at that operation on a file, from 1: before it, or, where
it writes, after this share of the bytes.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import jax
from teams import build_team

from rmas_jax.data import Example
from rmas_jax.evaluation.answering import Answering
from rmas_jax.evaluation.driver import LoadedBenchmark, evaluate
from rmas_jax.evaluation.graders import Grader
from rmas_jax.evaluation.graders.verdict import compared
from rmas_jax.host import atomic
from rmas_jax.models.generation import SamplingConfig

WORDS = ("a", "b", "the", "parcel", "from", "to", "where the parcel does")
BEGUN = "begun"


def grade(text, example):
    """Right or wrong, as good as at random but the same every time."""
    return compared(text or None, (len(text) + len(example.answer)) % 2 == 0)


def measure(team_folder: Path, folder: Path) -> None:
    """Drawn answers, two rollouts and two seeds, of a method that depends on who is in a batch."""
    team, links = build_team(team_folder, 1)
    items = [Example(word, f"{word} ?", word) for word in WORDS]
    prompts = {role: member.template for role, member in team.members.items()}
    answering = Answering(2, SamplingConfig(temperature=3.0), rollouts=2)
    benchmark = LoadedBenchmark(
        "words", "1", Grader("words", "words", grade), {"test": items}, prompts, answering
    )
    print(BEGUN, flush=True)
    evaluate(
        team,
        links,
        links,
        [benchmark],
        folder,
        methods=["shuffled_latents"],
        rounds=(1, 2),
        batch_size=3,
        seeds=(1, 2),
        progress=False,
    )


def die_at(operation: int, share: float) -> None:
    """Makes this process kill itself at an operation on files."""
    left = operation

    def passes() -> bool:
        nonlocal left
        left -= 1
        return left > 0

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def guarded(function):
        def call(*args, **options):
            if not passes():
                die()
            return function(*args, **options)

        return call

    write = atomic._write

    def write_a_part(file, content):
        if not passes():
            write(file, content[: int(share * len(content))])
            die()
        write(file, content)

    atomic._write = write_a_part
    atomic.os.fsync, atomic.os.replace = guarded(os.fsync), guarded(os.replace)
    Path.unlink = guarded(Path.unlink)


if __name__ == "__main__":
    jax.config.update("jax_disable_most_optimizations", True)  # as in conftest.py
    if sys.argv[3:]:
        die_at(int(sys.argv[3]), float(sys.argv[4]))
    measure(*map(Path, sys.argv[1:3]))
