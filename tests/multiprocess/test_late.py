"""A process that is late, as one that compiles on a busy machine, is waited for."""

from __future__ import annotations

import subprocess
import sys

import mesh_worker
import pytest
from processes import ended, environment, free_port


@pytest.mark.long  # it waits longer than Gloo does, three times
def test_processes_of_a_mesh_wait_for_each_other(tmp_path):
    late_s = mesh_worker.GLOO_WAIT_S + 10

    def two_processes(*, is_connected):
        port = free_port()
        return [
            subprocess.Popen(
                [sys.executable, mesh_worker.__file__]
                + [str(x) for x in (process, port, late_s, int(is_connected))],
                env=environment(cache=tmp_path / "cache"),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for process in range(2)
        ]

    connected, control = two_processes(is_connected=True), two_processes(is_connected=False)
    codes, outputs = ended(connected)
    assert codes == [0, 0], outputs
    sums = [output.split("sum", 1)[1] for output in outputs]
    assert all("None 28.0" in found for found in sums), outputs
    codes, outputs = ended(control)
    assert codes != [0, 0]
    assert any("Gloo context initialization failed" in output for output in outputs), outputs
