"""Work that was begun and goes on, without its agents: what reads and writes the files of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp

from rmas_jax.checkpoints import open_checkpoints
from rmas_jax.cli import ask, role_texts
from rmas_jax.config import load_config
from rmas_jax.host.errors import BAD_INPUT, USER_ERRORS, print_error
from rmas_jax.interop.link_files import save_links
from rmas_jax.links import Links
from rmas_jax.run_files import RunFiles
from rmas_jax.runs.folder import RunFolder, RunStep, dated, missing, open_folder
from rmas_jax.runs.resolve import resolve
from rmas_jax.runs.run import ALIGNED_WAY_OUT, own_links
from rmas_jax.tools.recorded import open_recorded
from rmas_jax.training.curves import open_curves


def _said(work: Callable[[], object]) -> int:
    try:
        work()
    except USER_ERRORS as error:
        print_error(error)
        return BAD_INPUT
    return 0


def read_run(arguments: list[str]) -> int:
    """What a run does before it trains: reads and checks all that it needs."""
    path, *overrides = arguments
    return _said(lambda: resolve(load_config(path, overrides)))


def go_on(arguments: list[str]) -> int:
    """What a run does with its folder, with steps that do nothing but write."""

    def work() -> None:
        path, *overrides = arguments
        config = dated(load_config(path, overrides))
        files = RunFiles(Path(config.output_dir) / config.name)
        links = (files.aligned_links, files.trained_links)
        steps = (
            RunStep("training", lambda: missing(*links)),
            RunStep("evaluation", settings=["test"]),
        )
        with open_folder(config, {}, steps) as folder:
            _do(folder, links)

    return _said(work)


def _do(folder: RunFolder, links: Sequence[Path]) -> None:
    files, state = folder.files, {"w": jnp.zeros(4)}

    def train() -> None:
        open_curves(files.metrics).write("outer", "links", 1, loss=0.5)
        for path in links:
            save_links(path, Links({"a": state}, {"a->b": state}))

    folder.do("training", train)
    folder.do("evaluation", lambda: None)
    own_links(files.aligned_links, ALIGNED_WAY_OUT)
    with open_checkpoints(files.checkpoints_of("phase"), keep=1, made_with={"key": 1}) as store:
        if store.restore_newest(state) is None:
            store.save(1, state, validation_loss=0.5)


def read_questions(arguments: list[str]) -> int:
    """What `rmas ask` does but for answering: loads the team, reads the questions."""
    account = {"answers": [], "steps": [], "crossed": []}
    with mock.patch.object(ask, "ask", lambda _, text, **how: {"question": text, **account}):
        return ask.main(arguments)


def keep_texts(arguments: list[str]) -> int:
    """`rmas role-texts`, whose team writes the same about everything."""

    def solve(team, prompts, *, rounds, **_):
        texts = {role: ["words"] * rounds for role in team.system.topology.order}
        count = len(jax.tree.leaves(prompts)[0])
        return [role_texts.Attempt(texts, "", 1)] * count

    with mock.patch.object(role_texts, "solve", solve):
        return role_texts.main(arguments)


def replay(arguments: list[str]) -> int:
    """Reads recorded searches."""
    return _said(lambda: open_recorded(None, Path(arguments[0])))
