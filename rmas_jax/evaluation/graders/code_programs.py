"""The sandbox of a program that is graded; runs in it, and only there.

The first message from here is {} when all is ready. Those from outside are

    {"program", "cpu_s", "input"}              runs a program on a standard input
    {"program", "cpu_s", "input", "function"}  runs its function on arguments: one per line, JSON
    {"program", "cpu_s"}                       loads it, then answers {"call", "args", "kwargs"}

The first two are one test each, and others may follow: the program runs in a new process that is a
copy of this one, in which no program has run, with the channel closed.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import importlib
import json
import os
import resource
import signal
import sys
import tempfile
import threading
import types
from collections.abc import Callable
from typing import IO, Any, NoReturn

from rmas_jax.evaluation.graders.code_values import MAX_OUTPUT, decode, encode, receive, send

MAX_FILE = MAX_OUTPUT + (1 << 20)
RECURSION = 50_000  # depth; upstream's
# Modules whose names every program has without an import, in upstream's order.
STARRED = (
    *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random"),
    *("statistics", "itertools", "functools", "operator", "io", "sys", "json"),
    *("builtins", "typing"),
)
NAMED = STARRED[:-2]  # those that are known themselves, too
FOLDER = "/sandbox"
STREAMS = ("stdin", "stdout", "stderr")


def add_known_names() -> None:
    """Makes the names that every program has without an import, as if they were built in.

    They are not among those that a program defines: without a function, it has none.
    """
    names: dict[str, Any] = {}
    for module in STARRED:
        exec(f"from {module} import *", names)
    for module in NAMED:
        names[module] = importlib.import_module(module)
    del names["__builtins__"]
    vars(builtins).update(names)


def load(program: str, name: str) -> dict[str, Any]:
    """Runs a program as a module of some name, and gives its names."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    sys.setrecursionlimit(RECURSION)
    try:
        code = compile(program, "<program>", "exec", dont_inherit=True)
    except (ValueError, OverflowError, RecursionError, MemoryError) as error:
        raise SyntaxError(type(error).__name__) from None
    exec(code, vars(module))
    return vars(module)


def use_streams(*files: IO[bytes] | None) -> None:
    """Makes files the standard streams of this process; None discards, and holds nothing."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for number, (name, file) in enumerate(zip(STREAMS, files, strict=True)):
        os.dup2(nothing if file is None else file.fileno(), number)
        stream = os.fdopen(number, "w" if number else "r", encoding="utf-8", closefd=False)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
        setattr(builtins, name, stream)  # from `from sys import *`
    os.close(nothing)


def limit(seconds: int) -> None:
    """Limits what this process may compute, and the size of each file, its output for one."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE, MAX_FILE))


def run_case(request: dict, report: IO[bytes]) -> NoReturn:
    """Runs one test of a program, then ends this process; reports a value or an error.

    It ends as an interpreter does, but for taking itself apart, which takes 15 ms.
    """
    code, message = 0, {}
    try:
        if (function := request.get("function")) is None:
            load(request["program"], "__main__")
        elif found := find_function(function, load(request["program"], "program")):
            arguments = map(json.loads, request["input"].split("\n"))
            message = {"value": encode(found(*arguments))}
        else:
            message = {"missing": function}
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException as error:
        code, message = 1, {"raised": type(error).__name__}
    try:
        report.seek(0)
        report.truncate()  # what the program has written there
        report.write(json.dumps(message).encode())
        report.flush()
        threading._shutdown()  # type: ignore[attr-defined] # waits for threads
        atexit._run_exitfuncs()
        sys.stdout.flush()
    finally:
        os._exit(code & 0xFF)


def find_function(name: str, names: dict[str, Any]) -> Callable | None:
    """A method of the program's class `Solution`, or a function of its own."""
    solution = names.get("Solution")
    if isinstance(solution, type) and hasattr(solution, name):
        return getattr(solution(), name)
    return names.get(name)


def run_alone(request: dict, channel: int) -> dict:
    """Runs one test in a copy of this process: how it ended, and whether anything is left of it."""
    is_function = "function" in request
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
        given, output, report = files
        if not is_function:
            given.write(request["input"].encode(errors="surrogatepass"))
            given.seek(0)
        if (child := os.fork()) == 0:
            stack.pop_all()  # keeps the files
            limit(request["cpu_s"])
            use_streams(*(None, None) if is_function else (given, output), None)
            for number in (channel, given.fileno(), output.fileno()):
                os.close(number)
            run_case(request, report)
        _, status = os.waitpid(child, 0)
        is_left = bool(os.listdir())
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)  # all in the sandbox but process 1 and this one
            is_left = True
        texts = {}
        for name, file in (("output", output), ("report", report)):
            file.seek(0)
            texts[name] = file.read(MAX_OUTPUT + 1).decode(errors="replace")
    return {"code": os.waitstatus_to_exitcode(status), "is_left": is_left, **texts}


def answer_calls(request: dict, channel: int) -> None:
    """Loads a program and answers calls of its functions, until the channel is closed."""
    limit(request["cpu_s"])
    use_streams(None, None, None)
    message: dict[str, Any] = {}
    found: dict[str, Any] = {}
    while True:
        try:
            if not message:
                found, reply = load(request["program"], "program"), {}
            elif message["call"] not in found:
                reply = {"missing": message["call"]}
            else:
                args, kwargs = decode(message["args"]), decode(message["kwargs"])
                reply = {"value": encode(found[message["call"]](*args, **kwargs))}
        except BaseException as error:  # of the program
            reply = {"raised": type(error).__name__}
        send(channel, reply)
        message = receive(channel)


def main() -> None:
    """Does what the messages ask for, until the channel is closed."""
    if os.getcwd() != FOLDER:
        sys.exit("this has to run in the sandbox, since it ends all processes that it may")
    channel = int(os.environ["CHANNEL"])
    add_known_names()
    send(channel, {})
    request = receive(channel)
    if "input" not in request:
        answer_calls(request, channel)
    while True:
        send(channel, run_alone(request, channel))
        request = receive(channel)
