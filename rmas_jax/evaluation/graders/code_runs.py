"""Runs a program's tests in sandboxes, and compares results outside of them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import json
import math
import re
import signal
import struct
import time
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from types import ModuleType
from typing import Any, NamedTuple

from rmas_jax.data.code_tests import Case, CodeTests
from rmas_jax.data.rows import DataError
from rmas_jax.evaluation.graders import code_programs, code_script, code_values
from rmas_jax.evaluation.graders.code_values import MAX_MESSAGE, MAX_OUTPUT
from rmas_jax.evaluation.graders.verdict import Outcome
from rmas_jax.tools.sandbox import OpenProgram, PythonLimits, SandboxError, open_program

INSIDE = (code_values, code_programs, code_script)  # modules that run in the sandbox
START_S = 60.0  # until a sandbox is ready
WALL = 3  # seconds on the clock for one of computing: others compute on this machine, too
FILES = 64 << 20  # bytes of input, output and a program's own files
COMPILE_ERRORS = ("SyntaxError", "IndentationError", "TabError")


@dataclasses.dataclass(frozen=True)
class CodeLimits:
    """Limits of a program that is graded."""

    test_s: int = 10  # of computing, in one test, or in all calls of a script
    total_s: float = 300.0  # on the clock, for all tests
    memory_bytes: int = 1 << 30  # of all its processes together; address space of each


class Failure(NamedTuple):
    """Why a program fails; holds nothing of a test."""

    outcome: Outcome
    reason: str


WRONG = Failure(Outcome.WRONG, "wrong output")
TIME = Failure(Outcome.TIMEOUT, "time limit")
MEMORY = Failure(Outcome.CRASHED, "memory limit")
NO_TESTS = Failure(Outcome.CRASHED, "no tests")


def run_tests(program: str, tests: CodeTests, limits: CodeLimits) -> Failure | None:
    """Runs a program's tests up to the first failure; None if it passes all.

    Raises:
      DataError: a test is unusable.
      SandboxError: programs cannot be run safely here.
    """
    end = time.monotonic() + limits.total_s
    if tests.script:
        return _run_script(program, tests.script, limits, end)
    number = 0
    while number < len(tests.cases):  # in a new sandbox after a test that leaves something behind
        with _opened(limits, end) as side:
            is_left = False
            while number < len(tests.cases) and not is_left:
                case = tests.cases[number]
                number += 1
                failure, is_left = _run_case(side, program, case, tests.function, limits.test_s)
                if failure is not None:
                    return _numbered(failure, number)
    return None if tests.cases else NO_TESTS


def _run_case(
    side: _Side, program: str, case: Case, function: str | None, cpu_s: int
) -> tuple[Failure | None, bool]:
    """Why a program fails a test, if it does, and whether that has left something behind."""
    request = {"program": program, "cpu_s": cpu_s, "input": case.input}
    if function is not None:
        wanted = _expected_value(case)
        request["function"] = function
    try:
        reply = json.loads(side.ask(request))
    except _Failed as failed:
        return failed.args[0], True
    report = _report(reply["report"])
    failure = _failure(report, reply["code"])
    if failure is None and function is None:
        failure = None if is_output(reply["output"], case.output) else WRONG
    elif failure is None and "value" not in report:
        failure = _crashed("no value")
    elif failure is None:
        failure = None if is_value(report["value"], wanted) else WRONG
    return failure, reply["is_left"]


def _run_script(program: str, script: str, limits: CodeLimits, end: float) -> Failure | None:
    """Runs assertions in one sandbox, and the program that they call in another one."""
    number = 1
    checker_opened = _opened(limits, end, code_script, of="comparison: ")
    with checker_opened as checker, _opened(limits, end) as side:
        try:
            loaded = _report(side.ask({"program": program, "cpu_s": limits.test_s}))
            if (failure := _failure(loaded, 0)) is not None:
                return _numbered(failure, number)
            message = checker.ask({"script": script})
            while "call" in (found := json.loads(message)):
                message = checker.ask(side.ask(message))
                number += 1
        except _Failed as failed:
            return _numbered(failed.args[0], number)
    ending = found["ended"]
    if ending in ("no tests", "passed"):
        return NO_TESTS if ending == "no tests" else None
    if ending == "broken":
        raise DataError(f"test: must be a script of assertions; it raises {found['raised']}")
    failure = WRONG
    if ending == "program":
        failure = _failure(found["reply"], 0) or _crashed("no value")
    return _numbered(failure, number - 1)


def _numbered(failure: Failure, number: int) -> Failure:
    """A failure with the number of the test, from 1, unless all tests fail so."""
    if failure.reason.startswith(("compile error", "no ")):
        return failure
    return failure._replace(reason=f"test {number}: {failure.reason}")


# What a program's process says of its end. None of it is to be trusted, nor does it have to be.


def _report(text: str | bytes) -> dict:
    try:
        report = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return report if isinstance(report, dict) else {}


def _failure(report: Any, code: int) -> Failure | None:
    """Why a process failed, by its report and exit code (a negative signal)."""
    if code == -signal.SIGXCPU:
        return TIME
    match report:
        case {"missing": name}:
            return Failure(Outcome.CRASHED, f"no function {_name(name)}")
        case {"raised": name}:
            return _crashed(_name(name))
    if code < 0:
        return _crashed(signal.Signals(-code).name)
    return _crashed(f"exit code {code}") if code else None


def _crashed(how: str) -> Failure:
    if how in COMPILE_ERRORS:
        return Failure(Outcome.CRASHED, "compile error")
    return MEMORY if how == "MemoryError" else Failure(Outcome.CRASHED, f"runtime error: {how}")


def _name(name: Any) -> str:
    """A name that a program gives, if it is one."""
    is_name = isinstance(name, str) and re.fullmatch(r"[^\W\d]\w{,60}", name)
    return name if is_name else "unknown"


# Comparisons.


def is_output(given: str, wanted: str) -> bool:
    """Whether two outputs have the same lines, but for space around them; LiveCodeBench's rule.

    Two lines are also the same if all their words are numbers, and exactly equal.
    """
    lines, others = _lines(given), _lines(wanted)
    return (
        len(given) <= MAX_OUTPUT and len(lines) == len(others) and all(map(_is_line, lines, others))
    )


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().split("\n")]


def _is_line(given: str, wanted: str) -> bool:
    if given == wanted:
        return True
    try:
        return [*map(Decimal, given.split())] == [*map(Decimal, wanted.split())]
    except (InvalidOperation, ValueError):
        return False


def is_value(given: Any, wanted: Any) -> bool:
    """Whether a value, as `code_values.encode` gives it, is that of a JSON text.

    A tuple is a list; keys have to be texts. Numbers compare as in Python.
    """
    try:
        return _is_value(given, wanted)
    except (TypeError, ValueError, RecursionError):  # of a reply that `encode` did not make
        return False


def _is_value(given: Any, wanted: Any) -> bool:
    match given:
        case {"tuple": items}:
            given = items
        case {"int": text}:
            given = int(text, 16)
        case {"dict": pairs} | {"Counter": pairs} | {"OrderedDict": pairs}:
            if not isinstance(wanted, dict) or not all(isinstance(key, str) for key, _ in pairs):
                return False
            found = dict(pairs)
            return found.keys() == wanted.keys() and all(
                _is_value(found[key], wanted[key]) for key in wanted
            )
        case dict():
            return False
    if isinstance(given, list) and isinstance(wanted, list):
        return len(given) == len(wanted) and all(map(_is_value, given, wanted))
    return type(wanted) not in (list, dict) and given == wanted


def _expected_value(case: Case) -> Any:
    """The value that a function has to return; its arguments are checked, too."""
    try:
        for line in case.input.split("\n"):
            json.loads(line)
        return json.loads(case.output)
    except (ValueError, RecursionError):
        raise DataError(
            "a functional test must have arguments as lines of JSON, and a value as JSON"
        ) from None


# Sandboxes.


class _Failed(Exception):
    """A sandbox has ended, or takes too long; the argument is the failure."""


class _Side:
    """A sandbox that runs one of the modules `INSIDE`."""

    def __init__(self, opened: OpenProgram, wall_s: float, end: float, *, of: str) -> None:
        self.opened, self.wall_s, self.end, self.of = opened, wall_s, end, of
        self.is_ready = False

    def ask(self, message: Any) -> bytes:
        """The reply to a message, which is JSON already if it is bytes; both are JSON.

        Raises:
          _Failed: there is none.
        """
        if not self.is_ready:
            self._wait_until_ready()
        data = message if isinstance(message, bytes) else json.dumps(message).encode()
        end = min(time.monotonic() + self.wall_s, self.end)
        try:
            self._limit(end)
            self.opened.channel.sendall(struct.pack("<Q", len(data)) + data)
            return self._receive(end)
        except TimeoutError:
            failure = TIME
        except (EOFError, ConnectionError):
            failure = self._why_ended()
        raise _Failed(failure._replace(reason=self.of + failure.reason))

    def _wait_until_ready(self) -> None:
        try:
            self._receive(time.monotonic() + START_S)
        except TimeoutError:
            raise SandboxError(f"the sandbox must be ready in {START_S:g} s, and is not") from None
        except (EOFError, ConnectionError):
            why = self.opened.wait().stderr.strip().rpartition("\n")[2]
            raise SandboxError(f"Python ends in the sandbox before its work: {why}") from None
        self.is_ready = True

    def _receive(self, end: float) -> bytes:
        (size,) = struct.unpack("<Q", self._read(8, end))
        if size > MAX_MESSAGE:
            raise _Failed(WRONG)
        return self._read(size, end)

    def _read(self, size: int, end: float) -> bytes:
        data = bytearray()
        while len(data) < size:
            self._limit(end)
            if not (part := self.opened.channel.recv(min(size - len(data), 1 << 20))):
                raise EOFError
            data += part
        return bytes(data)

    def _limit(self, end: float) -> None:
        """Bounds the next use of the channel."""
        if (left_s := end - time.monotonic()) <= 0:
            raise TimeoutError
        self.opened.channel.settimeout(left_s)

    def _why_ended(self) -> Failure:
        ended = self.opened.wait()
        if ended.out_of_memory:
            return MEMORY
        code = ended.exit_code
        if code is None:
            return TIME
        return _failure({}, 128 - code if code > 128 else code) or _crashed("exit code 0")


@contextlib.contextmanager
def _opened(
    limits: CodeLimits, end: float, module: ModuleType = code_programs, *, of: str = ""
) -> Iterator[_Side]:
    """A sandbox that runs a module's `main` within limits; `of` begins its failures."""
    bounds = PythonLimits(
        wall_s=max(0.1, end - time.monotonic()) + START_S,
        cpu_s=math.ceil(limits.total_s),  # a program's processes have less
        memory_bytes=limits.memory_bytes,
        total_bytes=limits.memory_bytes,
        file_bytes=FILES,
    )
    with open_program(_source(module), bounds) as opened:
        yield _Side(opened, WALL * limits.test_s, end, of=of)


@functools.cache
def _source(main: ModuleType) -> str:
    """Code that makes the modules `INSIDE`, for which the sandbox has no files, and runs one."""
    lines = ["import sys, types"]
    for module in INSIDE:
        name, text = module.__name__, inspect.getsource(module)
        lines += [
            f"module = sys.modules[{name!r}] = types.ModuleType({name!r})",
            f"exec({text!r}, vars(module))",
        ]
    return "\n".join([*lines, f"sys.modules[{main.__name__!r}].main()"])
