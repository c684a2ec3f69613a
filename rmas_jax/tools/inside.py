"""The script that runs in the sandbox: sets its limits, then runs the code.

Standard input is JSON: `limits` (name of a resource limit -> [soft, hard]) and `code`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import linecache
import re
import resource
import sys
import traceback
import types

PRELUDE = ("fractions", "functools", "itertools", "math", "statistics")  # imported for the code
NAME = "<python>"  # of the code, in tracebacks


def restrict(kind: int, soft: int, hard: int) -> None:
    """Sets a resource limit, unless a stricter one is set."""
    present = resource.getrlimit(kind)[1]
    if present != resource.RLIM_INFINITY:
        soft, hard = min(soft, present), min(hard, present)
    resource.setrlimit(kind, (soft, hard))


def show(
    kind: type[BaseException], error: BaseException, trace: types.TracebackType | None
) -> None:
    """Prints an exception as a direct run of the code does."""
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    traceback.print_exception(kind, error, trace)


def main() -> None:
    """Runs the code as `__main__`."""
    request = json.load(sys.stdin)
    for name, limit in request["limits"].items():
        restrict(getattr(resource, name), *limit)
    code = request["code"]
    linecache.cache[NAME] = (len(code), None, code.splitlines(keepends=True), NAME)
    sys.excepthook = show
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    for name in PRELUDE:
        setattr(module, name, importlib.import_module(name))
    if re.search(r"\b(sp|sympy)\b", code):  # takes half a second
        with contextlib.suppress(ImportError):  # the code then fails at its use of sympy
            sympy = importlib.import_module("sympy")
            vars(module).update(sp=sympy, sympy=sympy)
    exec(compile(code, NAME, "exec", dont_inherit=True), vars(module))


if __name__ == "__main__":
    main()
