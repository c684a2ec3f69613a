"""Work that was begun and goes on, without its agents: what reads and writes the files of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp

from rmas_jax.checkpoints import open_checkpoints
from rmas_jax.cli import ask, role_texts, run
from rmas_jax.config import load_config
from rmas_jax.host.errors import BAD_INPUT, USER_ERRORS, say_error
from rmas_jax.interop.link_files import save_links
from rmas_jax.runs.folder import RunFolder, RunStep, dated
from rmas_jax.runs.resolve import find_data, make_output_dir, read_inputs
from rmas_jax.tools.recorded import RecordedSearch
from rmas_jax.training.curves import Curves

STEPS = (
    RunStep.of_files("training", run.ALIGNED, run.TRAINED),
    RunStep("evaluation", settings=["test"]),
)


def _said(work: Callable[[], object]) -> int:
    try:
        work()
    except USER_ERRORS as error:
        say_error(error)
        return BAD_INPUT
    return 0


def read_run(arguments: list[str]) -> int:
    """What `experiments/run.py` does before it trains: reads and checks all that a run needs."""

    def read() -> None:
        path, *overrides = arguments
        config = load_config(path, overrides)
        make_output_dir(config.output_dir)
        read_inputs(config, find_data(config))

    return _said(read)


def go_on(arguments: list[str]) -> int:
    """What `experiments/run.py` does with its folder, with steps that do nothing but write."""

    def work() -> None:
        path, *overrides = arguments
        config = dated(load_config(path, overrides))
        with RunFolder(config, "digest", "1.0", STEPS) as folder:
            state = {"w": jnp.zeros(4)}

            def train() -> None:
                Curves(folder.path / "metrics.jsonl").write("outer", "links", 1, loss=0.5)
                for name in (run.ALIGNED, run.TRAINED):
                    save_links(folder.path / name, {"inner": {"a": state}})

            folder.stage(STEPS[0], train)
            folder.stage(STEPS[1], lambda: None)
            Curves(folder.path / "metrics.jsonl").truncate("links", 2)
            run.own_links(folder.path, run.ALIGNED)
            phase = folder.path / "checkpoints" / "phase"
            with open_checkpoints(phase, keep=1, made_with={"key": 1}) as store:
                if store.restore_newest(state) is None:
                    store.save(1, state, validation_loss=0.5)

    return _said(work)


def read_questions(arguments: list[str]) -> int:
    """What `experiments/ask.py` does but for answering: loads the team, reads the questions."""
    account = {"answers": [], "steps": [], "crossed": []}
    with mock.patch.object(ask.Asker, "ask", lambda self, text: {"question": text, **account}):
        return ask.main(arguments)


def keep_texts(arguments: list[str]) -> int:
    """`experiments/role_texts.py`, whose team writes the same about everything."""

    def solve(team, prompts, *, rounds, **_):
        texts = {role: ["words"] * rounds for role in team.system.topology.order}
        count = len(jax.tree.leaves(prompts)[0])
        return [role_texts.Attempt(texts, "", 1)] * count

    with mock.patch.object(role_texts, "solve", solve):
        return role_texts.main(arguments)


def replay(arguments: list[str]) -> int:
    """Reads recorded searches."""
    return _said(lambda: RecordedSearch(None, Path(arguments[0])))
