"""Training in processes of its own: killed, stopped, and two of them as one."""

from __future__ import annotations

import random
import signal

import jax
import numpy as np
import pytest
import training_worker
from processes import ended, free_port, wait_until
from systems import build_pattern
from training_worker import lines, start

from rmas_jax.interop.link_files import load_links


@pytest.fixture(scope="module")
def agents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("agents")
    training_worker.write_agents(folder)
    return folder


def kill_at(step, folder, workers):
    """Ends processes at once, when the curves have come to a step."""
    wait_until(lambda: lines(folder / "metrics.jsonl") >= step, workers)
    for worker in workers:
        worker.kill()
    for worker in workers:
        assert worker.wait() == -signal.SIGKILL
        worker.stdout.close()
    assert not (folder / "links.safetensors").exists()


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param((1, 1, 1), id="one_device", marks=pytest.mark.slow),
        pytest.param((4, 2, 1), id="eight_devices", marks=pytest.mark.long),
    ],
)
def test_a_killed_run_goes_on_to_the_same_bits(agents, tmp_path, sizes):
    steps, killed_at = 80, random.randrange(5, 50)
    broken = tmp_path / "broken"
    worker = start(agents, broken, sizes, steps, 8)
    kill_at(killed_at, broken, [worker])
    whole = training_worker.train(agents, tmp_path / "whole", sizes, steps)
    resumed = training_worker.train(agents, broken, sizes, steps)
    for ours, expected in zip(*map(jax.tree.leaves, (resumed, whole)), strict=True):
        np.testing.assert_array_equal(ours, expected)
    assert lines(broken / "metrics.jsonl") == steps + 1  # each step once, and the validation
    assert list((broken / "checkpoints").glob("*tmp*")) == []


def two_processes(agents, folder, sizes, steps, ask=()):
    """Two processes with four devices each; the second may get `ask`."""
    port = free_port()
    return [
        start(agents, folder, sizes, steps, 4, 0, 2, port),
        start(agents, folder, sizes, steps, 4, 1, 2, port, *ask),
    ]


@pytest.mark.long
def test_two_processes_stop_together_are_killed_go_on_and_equal_one(agents, tmp_path):
    sizes, steps, two = (4, 2, 1), 20, tmp_path / "two"
    codes, outputs = ended(
        two_processes(agents, two, sizes, steps, ask=(3,))
    )  # to the second alone
    assert codes == [training_worker.PREEMPTED] * 2, outputs
    saved = [int(step.name) for step in (two / "checkpoints").iterdir() if step.name.isdigit()]
    assert 3 < max(saved) < steps
    assert not (two / "links.safetensors").exists()
    killed = two_processes(agents, two, sizes, steps)
    kill_at(random.randrange(max(saved) + 1, steps), two, killed)
    codes, outputs = ended(two_processes(agents, two, sizes, steps))
    assert codes == [0, 0], outputs
    assert lines(two / "metrics.jsonl") == steps + 1  # one process writes
    whole = tmp_path / "whole"
    codes, outputs = ended(two_processes(agents, whole, sizes, steps))
    assert codes == [0, 0], outputs
    names = [folder / "links.safetensors" for folder in (two, whole)]
    for ours, expected in zip(*(jax.tree.leaves(load_links(name)) for name in names), strict=True):
        np.testing.assert_array_equal(ours, expected)

    one = training_worker.train(agents, tmp_path / "one", sizes, steps)
    moved = load_links(two / "links.safetensors")
    before = build_pattern("distillation").links
    training = []
    for ours, expected, begun in zip(*map(jax.tree.leaves, (moved, one, before)), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5)
        training.append(np.abs(expected - begun).max())
    assert max(training) > 0.01  # much more than the tolerance


def test_two_processes_go_back_together_where_the_part_of_one_is_damaged(agents, tmp_path):
    codes, outputs = ended(two_processes(agents, tmp_path / "checkpoints", (1, 8, 1), 0))
    assert codes == [0, 0], outputs
    for output in outputs:
        assert "checkpoint 2 cannot be read" in output
        assert "went back to 1: {'rows': True}, then (1, 3)" in output, outputs
