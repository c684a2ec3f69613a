"""An evaluation that is killed anywhere and started again ends as one that nobody disturbs."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from evaluation_worker import BEGUN, measure
from processes import environment

from rmas_jax.host.checksums import CRC32

WORKER = Path(__file__).parents[1] / "evaluation_worker.py"
OPERATIONS = 30  # the latest at which a process dies; a whole evaluation has about 100
LONGEST_S = 0.5  # from the start of an evaluation to a kill from outside


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The team's folder, and the content of the evaluation's files."""
    team, folder = tmp_path_factory.mktemp("team"), tmp_path_factory.mktemp("undisturbed")
    measure(team, folder)
    return team, contents(folder)


def contents(folder):
    """Names of the files; items; results without seconds, whose checksums differ with them."""
    rows = json.loads((folder / "results.json").read_text())
    for row in rows:
        assert row.pop("seconds_per_item") > 0 and row.pop(CRC32)
    names = sorted(path.name for path in folder.iterdir())
    return names, (folder / "items.jsonl").read_bytes(), rows


def start(team, folder, *options):
    command = [sys.executable, str(WORKER), str(team), str(folder), *map(str, options)]
    cache = Path(jax.config.jax_compilation_cache_dir)
    return subprocess.Popen(
        command, env=environment(cache=cache), stdout=subprocess.PIPE, text=True
    )


def killed(team, folder, rng):
    """Starts the evaluation and has it killed, by itself or from outside, unless it ends first."""
    if rng.random() < 0.5:
        process = start(team, folder, rng.randint(1, OPERATIONS), rng.random())
        process.communicate()
    else:
        process = start(team, folder)
        assert process.stdout.readline().strip() == BEGUN
        time.sleep(rng.uniform(0, LONGEST_S))
        process.kill()
        process.communicate()
    assert process.returncode in (0, -signal.SIGKILL)
    return process.returncode != 0


@pytest.mark.parametrize(
    ("kills", "seed"),
    [
        pytest.param(5, 0, marks=pytest.mark.slow),
        pytest.param(50, 1, marks=pytest.mark.long),
    ],
)
def test_killed_anywhere_it_ends_with_the_same_files(undisturbed, tmp_path, kills, seed):
    team, expected = undisturbed
    rng, happened, folder, resumed = random.Random(seed), 0, tmp_path / "0", 0
    while happened < kills:
        if killed(team, folder, rng):
            happened += 1
            under_way = folder / "under_way.jsonl"
            resumed += under_way.exists() and under_way.read_bytes().count(b"\n") > 1
        else:
            assert contents(folder) == expected
            folder = tmp_path / str(happened)
    assert resumed > 0  # some died in the midst of a measurement
    process = start(team, folder)
    process.communicate()
    assert process.returncode == 0
    assert contents(folder) == expected
    items = expected[1].splitlines()
    assert len(set(items)) == len(items) == 7 * 4  # rounds x seeds
