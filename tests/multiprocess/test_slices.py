"""A phase on four hosts that are lost one after the other goes on on two, to the same losses."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
import training_worker
from fake_storage import ROOT
from processes import ended, free_port, wait_until
from systems import build_pattern
from training_worker import lines, start

from rmas_jax.interop.link_files import load_links

# Few steps: the rounding of another mesh grows with every step, to 3e-4 of a loss after 20.
STEPS = 16
KILLS = ((3, 2), (7, 0), (11, 3))  # step, process; 0 is the coordinator, and writes


def hosts(agents, folder, count, sizes):
    """Processes with two devices each."""
    port = free_port()
    return [start(agents, folder, sizes, STEPS, 2, i, count, port) for i in range(count)]


def losses(folder):
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {(row["series"], row["step"]): row["loss"] for row in rows}


@pytest.mark.slow
def test_four_hosts_are_lost_one_at_a_time_and_two_end_with_the_same_losses(tmp_path):
    agents, folder = tmp_path / "agents", tmp_path / "slices"
    training_worker.write_agents(agents)
    for step, victim in KILLS:
        workers = hosts(agents, folder, 4, (2, 4, 1))
        wait_until(lambda step=step: lines(folder / "metrics.jsonl") >= step, workers)
        workers[victim].kill()
        codes, outputs = ended(workers)
        assert 0 not in codes, outputs
        assert not (folder / "links.safetensors").exists()
    codes, outputs = ended(hosts(agents, folder, 2, (2, 2, 1)))
    assert codes == [0, 0], outputs

    whole = tmp_path / "whole"
    links = training_worker.train(agents, whole, (1, 1, 1), STEPS)
    ours, expected = losses(folder), losses(whole)
    assert len(ours) == lines(folder / "metrics.jsonl") == STEPS + 1  # each once; the validation
    assert ours.keys() == expected.keys()
    np.testing.assert_allclose([*ours.values()], [*expected.values()], rtol=1e-4)
    assert max(expected.values()) > min(expected.values()) + 0.1  # the batches differ
    begun = jax.tree.leaves(build_pattern("distillation").links)
    found = jax.tree.leaves(load_links(folder / "links.safetensors"))
    for ours, one in zip(found, jax.tree.leaves(links), strict=True):
        np.testing.assert_allclose(ours, one, atol=1e-4)
    assert max(np.abs(a - b).max() for a, b in zip(found, begun, strict=True)) > 0.01


@pytest.mark.long  # tests/runs/test_remote_run.py goes on from there in one process
def test_hosts_that_share_no_folder_go_on_from_object_storage(tmp_path, monkeypatch):
    """Two are stopped, and go on as one with other devices; each has its own copy."""
    monkeypatch.setenv(ROOT, str(tmp_path / "storage"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    agents, folder = tmp_path / "agents", tmp_path / "curves"
    training_worker.write_agents(agents)
    port = free_port()
    asked = ((), (5,))  # the second gets SIGTERM
    workers = [start(agents, folder, (2, 2, 1), STEPS, 2, i, 2, port, *asked[i]) for i in range(2)]
    codes, outputs = ended(workers)
    assert codes == [training_worker.PREEMPTED] * 2, outputs
    saved = [f.stem for f in (tmp_path / "storage/bucket/checkpoints").glob("[0-9]*")]
    assert max(map(int, saved)) >= 5 and not (folder / "checkpoints").exists()
    codes, outputs = ended([start(agents, folder, (1, 2, 1), STEPS, 2)])
    assert codes == [0], outputs
    assert not list((tmp_path / "cache/rmas_jax/storage").iterdir())  # the copies are gone
    monkeypatch.delenv(ROOT)
    training_worker.train(agents, tmp_path / "whole", (1, 1, 1), STEPS)
    ours, expected = losses(folder), losses(tmp_path / "whole")
    assert ours.keys() == expected.keys()
    np.testing.assert_allclose([*ours.values()], [*expected.values()], rtol=1e-4)
