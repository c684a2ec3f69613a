"""Runs commands on hostile files, each in a process forked off this one, within limits.

    python tests/fuzz_worker.py

A line of JSON on standard input (`target`, `arguments`, `folder`, `stdin`) gives one on standard
output: the exit code (or None where the time was up), standard error, seconds and peak memory. The
parent has imported everything and rendered the prompts of the shipped teams, and has started
nothing: a fork takes milliseconds, and no child sees what another one did.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import matplotlib.figure  # noqa: F401 (all that is slow to import, before the fork)
import pyarrow.compute
import pyarrow.parquet  # noqa: F401
import tensorflow_datasets.core.data_sources.array_record  # noqa: F401
import tree  # noqa: F401
from begun import go_on, keep_texts, read_questions, read_run, replay
from jax._src import xla_bridge
from transformers import AutoTokenizer, PreTrainedTokenizerFast  # noqa: F401

import rmas_jax.cli.convert
import rmas_jax.cli.model
import rmas_jax.cli.report
import rmas_jax.cli.topology
from rmas_jax.config import load_config
from rmas_jax.evaluation.benchmarks import shipped
from rmas_jax.team_texts import load_team_texts

ROOT = Path(__file__).parent.parent
ADDRESSES = 4 * 2**30  # bytes that a child may map, beside what this process has
SECONDS = 60


TARGETS = {
    **{made.__name__: made for made in (read_run, go_on, read_questions, keep_texts, replay)},
    "model": rmas_jax.cli.model.main,
    "topology": rmas_jax.cli.topology.main,
    "convert": rmas_jax.cli.convert.main,
    "report": rmas_jax.cli.report.main,
}


def mapped() -> int:
    """Bytes of addresses that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def in_child(request: dict, folder: Path) -> None:
    """Runs one command; ends the process."""
    code = 1
    try:
        limit = mapped() + ADDRESSES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.setsid()
        for stream, name, flags in (
            (0, "stdin", os.O_RDONLY),
            (1, "stdout", os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
            (2, "stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        ):
            os.dup2(os.open(folder / name, flags, 0o600), stream)
        jax.config.update("jax_disable_most_optimizations", True)
        code = TARGETS[request["target"]](request["arguments"])
    except SystemExit as end:  # argparse
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(request: dict) -> dict:
    """Forks, waits, and tells how it went."""
    folder = Path(request["folder"])
    (folder / "stdin").write_bytes(bytes.fromhex(request.get("stdin", "")))
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        in_child(request, folder)
    status = None
    while status is None:
        done, found, usage = os.wait4(child, os.WNOHANG)
        if done:
            status = found
        elif time.monotonic() - started > SECONDS:
            os.killpg(child, signal.SIGKILL)
            _, _, usage = os.wait4(child, 0)
            break
        else:
            time.sleep(0.005)
    return {
        "code": None if status is None else os.waitstatus_to_exitcode(status),
        "stderr": (folder / "stderr").read_bytes().decode(errors="replace"),
        "seconds": time.monotonic() - started,
        "mib": usage.ru_maxrss / 1024,
    }


def prepare() -> None:
    """What every child would do alike: a process for each prompt, a file for each benchmark."""
    shipped()
    load_team_texts(load_config(ROOT / "experiments/configs/custom_team/run.yaml").system)
    assert not xla_bridge.backends_are_initialized()  # its threads do not live on in a child


def main() -> None:
    prepare()
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
