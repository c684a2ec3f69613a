"""Runs a model's Python code: in a separate process, within limits, in a sandbox."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from rmas_jax.host.errors import InputError
from rmas_jax.tools.call_filter import ARCHITECTURES, call_filter, call_numbers
from rmas_jax.tools.cgroup import memory_group

ISOLATION = Path(__file__).with_name("isolation.py")
INSIDE = Path(__file__).with_name("inside.py")
PROBE = Path(__file__).with_name("probe.py")
SYSTEM = ("/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache")  # libraries of an interpreter
ENVIRONMENT = {
    "LANG": "C.UTF-8",
    "MALLOC_ARENA_MAX": "1",  # further arenas reserve 64 MiB of address space per thread
    "OMP_NUM_THREADS": "1",  # numpy starts a thread per core, and threads count as processes
    "OPENBLAS_NUM_THREADS": "1",
    "PATH": "/usr/bin:/bin",
}
FOLDER = "/sandbox"  # the program's own, in the sandbox
CHANNEL = "CHANNEL"  # environment variable: the descriptor of an open program's socket
OPEN_FILES = 64  # pipes and sockets hold memory of their own: up to 0.3 MiB each
SIGNALS = 256  # pending signals and timers
CALLS_TO_PROBE = ("inotify_init1", "memfd_secret", "userfaultfd")  # succeed without arguments
REQUIREMENTS = (
    "The sandbox needs Linux 5.14 or newer on x86_64 or aarch64, /proc, and user namespaces: on "
    "Ubuntu 24.04 or newer `sysctl kernel.apparmor_restrict_unprivileged_userns=0`; in a container "
    "`docker run --privileged`, or a seccomp profile that allows namespaces and mounts. "
    "Code that you trust can run without a sandbox: unsafe_without_sandbox=True."
)


class SandboxError(InputError):
    """Code cannot run safely here; names the missing part and the remedy."""


@dataclasses.dataclass(frozen=True)
class PythonLimits:
    """Resource limits of a program.

    Without a cgroup, the sum is sampled every 20 ms: in between, memory can grow up to `processes`
    times `memory_bytes`, by default 3.9 GiB, and page tables. Without a sandbox, `total_bytes`,
    `processes` and `files` are not enforced.
    """

    wall_s: float = 10.0
    cpu_s: int = 10  # of each process
    memory_bytes: int = 400 << 20  # address space of each process
    total_bytes: int = 1 << 30  # memory of all its processes together; files come on top
    processes: int = 10  # of all its processes, threads included
    file_bytes: int = 16 << 20  # of all its files together; of stdout; of stderr
    files: int = 4096  # number, folders and links included
    output_bytes: int = 64 << 10  # kept part of stdout and of stderr

    def __post_init__(self) -> None:
        """Raises ValueError for an impossible limit."""
        for name, limit in dataclasses.asdict(self).items():
            if limit <= 0:
                raise ValueError(f"PythonLimits.{name} must be above 0, got {limit}")


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a program ended."""

    stdout: str
    stderr: str
    exit_code: int | None  # 128 + signal after a signal; None at the limit on time or total memory
    out_of_memory: bool = False  # all its processes together exceeded their limit


@dataclasses.dataclass(frozen=True)
class Streams:
    """A program's standard streams: unnamed files, bounded by the kernel."""

    stdin: IO[bytes]
    stdout: IO[bytes]
    stderr: IO[bytes]


def run_program(code: str, limits: PythonLimits, *, sandboxed: bool = True) -> Ended:
    """Runs Python code, and ends all processes that it started.

    Without a sandbox the code has the caller's rights to files, processes and network; time, memory
    and sizes of files are still limited.

    Raises:
      SandboxError: the sandbox cannot be set up or is not secure; the code was not run.
    """
    if sandboxed:
        check_sandbox()
    return _run(code, limits, sandboxed=sandboxed)


class OpenProgram(NamedTuple):
    """A program in the sandbox that exchanges messages with its caller."""

    channel: socket.socket  # at its end when the program and all that it started have ended
    wait: Callable[[], Ended]  # until then, or a limit


@contextlib.contextmanager
def open_program(code: str, limits: PythonLimits) -> Iterator[OpenProgram]:
    """Starts Python code in the sandbox with one end of a socket pair; ends it on leaving.

    The code finds the descriptor of its end in the environment variable `CHANNEL`.

    Raises:
      SandboxError: see `run_program`; `OpenProgram.wait` raises it, too.
    """
    check_sandbox()
    with contextlib.ExitStack() as stack:
        ours, theirs = (stack.enter_context(end) for end in socket.socketpair())
        streams = stack.enter_context(_streams(code, limits, sandboxed=True))
        wait = stack.enter_context(_isolated(limits, streams, theirs.fileno()))
        theirs.close()  # the end of the channel is then that of all inside
        yield OpenProgram(ours, lambda: _ended(wait(), limits, streams))


def _run(code: str, limits: PythonLimits, *, sandboxed: bool) -> Ended:
    with _streams(code, limits, sandboxed=sandboxed) as streams:
        if not sandboxed:
            return _ended(_run_with_all_rights(limits, streams), limits, streams)
        with _isolated(limits, streams) as wait:
            return _ended(wait(), limits, streams)


@contextlib.contextmanager
def _streams(code: str, limits: PythonLimits, *, sandboxed: bool) -> Iterator[Streams]:
    """The streams of a program; the first holds the request to `inside`."""
    resources = {  # limit -> soft and hard
        "RLIMIT_AS": (limits.memory_bytes, limits.memory_bytes),
        "RLIMIT_CORE": (0, 0),
        "RLIMIT_CPU": (limits.cpu_s, limits.cpu_s + 1),  # the soft limit has its own signal
        "RLIMIT_FSIZE": (limits.file_bytes, limits.file_bytes),
        "RLIMIT_NOFILE": (OPEN_FILES, OPEN_FILES),
    }
    if sandboxed:  # elsewhere these would count all processes and signals of the user
        count = limits.processes + (1 if os.geteuid() == 0 else 2)  # init; the guard, unless root
        resources["RLIMIT_NPROC"] = (count, count)
        resources["RLIMIT_SIGPENDING"] = (SIGNALS, SIGNALS)
    with contextlib.ExitStack() as stack:
        streams = Streams(*(stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)))
        streams.stdin.write(json.dumps({"limits": resources, "code": code}).encode())
        streams.stdin.seek(0)
        yield streams


def _ended(outcome: int | str, limits: PythonLimits, streams: Streams) -> Ended:
    return Ended(
        _kept(streams.stdout, limits),
        _kept(streams.stderr, limits),
        outcome if isinstance(outcome, int) else None,
        outcome == "memory",
    )


def _kept(stream: IO[bytes], limits: PythonLimits) -> str:
    """The start of the output, with a note if it is cut."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    text = stream.read(limits.output_bytes).decode(errors="replace")
    if size > limits.output_bytes:
        text += f"\n[the first {limits.output_bytes} of {size} bytes]"
    return text


@contextlib.contextmanager
def _isolated(
    limits: PythonLimits, streams: Streams, channel: int | None = None
) -> Iterator[Callable[[], int | str]]:
    """Starts `inside` in its own namespaces (`isolation`); ends them on leaving.

    Gives a function that waits for the exit code, or the limit reached.
    """
    machine = _machine()
    report, report_end = os.pipe()
    # The group is removed after guard and init have ended, which leaves it empty.
    with open(report, encoding="utf-8") as reader, memory_group(limits.total_bytes) as group:
        request = {
            "report": report_end,
            "wall_s": limits.wall_s,
            "total_bytes": limits.total_bytes,
            "folder": FOLDER,
            "folder_bytes": limits.file_bytes,
            "folder_files": limits.files,
            "visible": _visible(),
            "calls": call_filter(machine).hex(),
            "kcmp": call_numbers(machine)["kcmp"],
            "group": None if group is None else str(group),
            "command": [*_interpreter(), "/inside.py"],
        }
        command = [sys.executable, "-I", "-S", str(ISOLATION), json.dumps(request)]
        environment = ENVIRONMENT | {"HOME": FOLDER, "TMPDIR": FOLDER}
        passed = [report_end]
        if channel is not None:
            environment[CHANNEL] = str(channel)
            passed.append(channel)
        try:
            guard = _start(command, streams, env=environment, pass_fds=passed)
        finally:
            os.close(report_end)
        with _ending(guard):
            try:
                yield lambda: _outcome(reader.read(), streams, limits)
            finally:
                os.kill(guard.pid, signal.SIGTERM)  # it ends all below it before itself
                reader.read()  # until then


def _outcome(report: str, streams: Streams, limits: PythonLimits) -> int | str:
    """The exit code in the guard's report, or the limit reached."""
    if report in ("timeout", "memory"):
        return report
    if match := re.fullmatch(r"exit (\d+)", report):
        return int(match[1])
    why = report.partition("\n")[0] or _kept(streams.stderr, limits).strip() or "it was killed"
    raise SandboxError(f"the sandbox cannot be set up: {why}. {REQUIREMENTS}")


def _run_with_all_rights(limits: PythonLimits, streams: Streams) -> int | str:
    """Runs `inside` as an ordinary child in an empty folder; exit code, or the limit reached."""
    with tempfile.TemporaryDirectory(prefix="python-tool-") as folder:
        environment = ENVIRONMENT | {"HOME": folder, "TMPDIR": folder}
        program = _start([*_interpreter(), str(INSIDE)], streams, env=environment, cwd=folder)
        with _ending(program):
            try:
                code = program.wait(limits.wall_s)
            except subprocess.TimeoutExpired:
                return "timeout"
    return code if code >= 0 else 128 - code


def _machine() -> str:
    """The CPU architecture, which determines the numbers of system calls."""
    if (machine := os.uname().machine) in ARCHITECTURES:
        return machine
    why = f"the machine must be one of {', '.join(ARCHITECTURES)}, got {machine}"
    raise SandboxError(f"the sandbox cannot be set up: {why}. {REQUIREMENTS}")


def _interpreter() -> list[str]:
    return [sys.executable, "-I", "-B", "-X", "utf8"]


def _visible() -> dict[str, str]:
    """Path inside -> path outside: the interpreter, its libraries and its packages."""
    prefixes = [Path(prefix) for prefix in (sys.base_prefix, sys.prefix)]
    seen: list[Path] = []
    for path in [*map(Path, SYSTEM), *prefixes, *(prefix.resolve() for prefix in prefixes)]:
        if path.exists() and not any(path.is_relative_to(other) for other in seen):
            seen.append(path)
    return {str(path): str(path.resolve()) for path in seen} | {"/inside.py": str(INSIDE.resolve())}


def _start(command: Sequence[str], streams: Streams, **options: Any) -> subprocess.Popen:
    """Starts a command in its own session."""
    return subprocess.Popen(
        command,
        stdin=streams.stdin,
        stdout=streams.stdout,
        stderr=streams.stderr,
        start_new_session=True,
        **options,
    )


@contextlib.contextmanager
def _ending(process: subprocess.Popen) -> Iterator[None]:
    """Kills a process and its session on exit."""
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@functools.cache
def check_sandbox() -> None:
    """Tests once that the sandbox works here and is secure.

    Raises:
      SandboxError: it is not; names the failing part.
    """
    probe = PROBE.read_text(encoding="utf-8")
    numbers = call_numbers(_machine())
    limits = PythonLimits(memory_bytes=256 << 20, processes=6, files=64)
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        (Path(folder) / "secret").write_text("seen")
        facts = (
            folder,
            server.getsockname()[1],
            limits.processes,
            limits.memory_bytes,
            limits.files,
            {name: numbers[name] for name in CALLS_TO_PROBE},
        )
        ended = _run(f"{probe}\nprint(*holes{facts}, sep=', ')", limits, sandboxed=True)
    if ended.exit_code != 0:
        why = f"exit code {ended.exit_code}, {ended.stderr.strip() or 'no error message'}"
        raise SandboxError(f"Python does not run in the sandbox: {why}. {REQUIREMENTS}")
    if ended.stdout.strip():
        raise SandboxError(f"code in the sandbox {ended.stdout.strip()}. {REQUIREMENTS}")
    limits = PythonLimits(wall_s=60, total_bytes=64 << 20)
    ended = _run(f"{probe}\nexceed_total({limits.total_bytes})", limits, sandboxed=True)
    if not ended.out_of_memory and ended.exit_code != 128 + signal.SIGKILL:
        hole = "exceeds its limit on the memory of all processes"
        raise SandboxError(f"code in the sandbox {hole}. {REQUIREMENTS}")
