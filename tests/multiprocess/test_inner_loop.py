"""The inner loop in two processes that share a folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import inner_worker
import jax
import numpy as np
import pytest
from processes import ended, environment, free_port

from rmas_jax.host.errors import PREEMPTED
from rmas_jax.interop.link_files import load_links
from rmas_jax.sharding import make_mesh

WORKER = Path(inner_worker.__file__)


def run_two(folder):
    """Two processes, until they have ended."""
    folder.mkdir()
    port = free_port()
    workers = [
        subprocess.Popen(
            [sys.executable, WORKER, folder, *map(str, (process, 2, port))],
            cwd=WORKER.parents[1],
            env=environment(cache=folder.parent / "compiled"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(2)
    ]
    codes, outputs = ended(workers)
    assert codes == [PREEMPTED] * 2, outputs
    assert all("in the inner loop, which starts again" in output for output in outputs)


@pytest.mark.slow
def test_two_processes_train_the_same_links_as_one_share_states_and_stop_together(tmp_path):
    two = tmp_path / "two"
    run_two(two)
    assert len(list((two / "states").glob("*/states.npy"))) == len(inner_worker.ROLES)
    rows = [json.loads(line) for line in (two / "metrics.jsonl").read_text().splitlines()]
    assert len({(row["series"], row["step"]) for row in rows}) == len(rows)  # one process writes
    team, start = inner_worker.team_on(make_mesh(8), tmp_path / "team")
    one = inner_worker.train(team, start, tmp_path / "metrics.jsonl", states=two / "states")
    links = [load_links(file) for file in sorted(two.glob("*.safetensors"))]
    assert len(links) == 4  # cold and warm, of both processes
    for alone, begun, first, *others in zip(
        *map(jax.tree.leaves, (one, start, *links)), strict=True
    ):
        for other in others:
            np.testing.assert_array_equal(other, first)
        np.testing.assert_allclose(alone, first, atol=1e-5)
        assert np.abs(first - begun).max() > 1e-3  # much more than the tolerance
