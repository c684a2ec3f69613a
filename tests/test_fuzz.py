"""Every file that a user can name, mutated: exit code 0, or 2 with one message, within limits."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from fuzz_cases import CASES, ROOT, Case
from mutations import of_bytes

from rmas_jax.host.errors import MESSAGE_LIMIT

PEAK_MIB = 4096
MAY_WRITE = {
    *("runs", "released", "state.safetensors"),
    *("report.html", "report.md", "figures", "tables"),
}
EXAMPLES = {"ci": 200, "long": 2000}  # over all cases, by their weights


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


class Worker:
    """The process of `fuzz_worker.py`."""

    def __init__(self, folder: Path):
        self.folder = folder
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests/fuzz_worker.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path, "XLA_FLAGS": ""},
        )

    def run(self, target: str, arguments: list[str], stdin: bytes = b"") -> dict[str, Any]:
        request = {"target": target, "arguments": arguments, "folder": str(self.folder)}
        request["stdin"] = stdin.hex()
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def worker(tmp_path_factory) -> Iterator[Worker]:
    worker = Worker(tmp_path_factory.mktemp("worker"))
    yield worker
    worker.close()


def check(found: dict[str, Any]) -> None:
    """Exit code 0, or 2 with one message, in bounded time and memory."""
    errors = found["stderr"]
    assert found["code"] in (0, 2), errors[-3000:]
    assert "Traceback" not in errors, errors[-3000:]
    assert found["mib"] < PEAK_MIB
    messages = errors.count("error: ") if found["code"] else 0
    assert found["code"] == 0 or messages >= 1, errors
    if found["code"]:
        message = errors[errors.index("error: ") :]
        assert len(message) <= MESSAGE_LIMIT + len("error: \n"), len(message)


def write(case: Case, content: str | bytes) -> bytes:
    """Gives a case's file a content; returns its bytes."""
    raw = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    remove(case.file)
    case.file.write_bytes(raw)
    return raw


def run(worker: Worker, case: Case, stdin: bytes = b"") -> dict[str, Any]:
    """Runs a case's command, and clears away what it may write."""
    folder = case.file.parent
    before = {*folder.iterdir()}
    found = worker.run(case.target, case.arguments, stdin if case.on_stdin else b"")
    new = {path.name for path in folder.iterdir()} - {path.name for path in before}
    assert new <= MAY_WRITE, f"left behind: {new}"
    for name in MAY_WRITE & new:
        remove(folder / name)
    return found


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Callable[[str], Case]:
    """Function from a name in `CASES` to that case, whose files are made once."""
    return functools.cache(lambda name: CASES[name][0](tmp_path_factory.mktemp(name)))


def fuzz(name: str, worker: Worker, case: Case, scale: str) -> None:
    found = run(worker, case, write(case, case.valid))
    assert (found["code"], found["stderr"]) == (0, ""), found
    share = CASES[name][1]
    count = max(1, round(EXAMPLES[scale] * share / sum(share for _, share in CASES.values())))
    changed = of_bytes(case.valid) if case.changed is None else case.changed

    # Without an example database and without shrinking, the same examples come every time.
    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(changed)
    def ends_well(content):
        check(run(worker, case, write(case, content)))

    ends_well()


@pytest.mark.parametrize("name", CASES)
def test_mutated_files_end_in_one_message(name, worker, made):
    fuzz(name, worker, made(name), "ci")


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_two_thousand_mutations(name, worker, made):
    fuzz(name, worker, made(name), "long")


IRREGULAR: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "loop": lambda path: path.symlink_to(path),
    "dangling": lambda path: path.symlink_to("nowhere"),
    "empty": Path.touch,
}


@pytest.mark.parametrize("name", [name for name in CASES if name != "questions"])  # a stream
def test_what_is_no_regular_file(name, worker, made):
    case = made(name)
    for kind, make in IRREGULAR.items():
        remove(case.file)
        make(case.file)
        found = run(worker, case)
        assert found["seconds"] < 30, kind
        try:
            check(found)
        except AssertionError as error:
            raise AssertionError(f"{kind}: {error}") from error
