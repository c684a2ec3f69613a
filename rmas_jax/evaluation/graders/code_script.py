"""The sandbox of a script of assertions; the program whose functions it calls is in another one.

The first message from here is {} when all is ready. To {"script"} come calls, {"call", "args",
"kwargs"}, each answered by {"value"}, or else by something that says why there is none; and in the
end {"ended": "passed", "wrong", "program", "broken" or "no tests"}.
"""

from __future__ import annotations

import ast
import builtins
import functools
import importlib
import os
import re
import sys
from collections.abc import Callable
from typing import Any

from rmas_jax.evaluation.graders.code_programs import add_known_names
from rmas_jax.evaluation.graders.code_values import decode, encode, receive, send

BUILT_IN = {*dir(builtins)}


class ProgramError(Exception):
    """The program raised an error, or has no such function; the argument is the reply."""


def called_names(tree: ast.Module) -> set[str]:
    """The names of the program's functions in a script.

    They are those that the script calls and does not define. A function of the program may have
    the name of one that is known anyway; this counts only where there is no other.
    """
    nodes = list(ast.walk(tree))
    names = [node for node in nodes if isinstance(node, ast.Name)]
    own = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    own |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.alias):
            own.add((node.asname or node.name).partition(".")[0])
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    called = {name for call in calls if (name := called_name(call))} - own
    starred = [called_name(call) for call in calls if any(map(is_starred, call.args))]
    tests = [node.test for node in nodes if isinstance(node, ast.Assert)]
    asserted = [called_name(node) for test in tests for node in ast.walk(test)]
    first = [name for name in starred + asserted if name in called]
    return (
        called - {*dir(builtins)}
        or called - BUILT_IN
        or {node.id for node in names} - own - {*dir(builtins)}
        or {*first[:1]}
    )


def called_name(node: ast.AST) -> str | None:
    """The name of the function in a call by name."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return node.func.id
    return None


def is_starred(node: ast.expr) -> bool:
    """Whether an argument of a call is `*values`."""
    return isinstance(node, ast.Starred)


def can_fail(node: ast.AST) -> bool:
    """Whether a part of a script is an assertion."""
    is_method = isinstance(node, ast.Attribute) and node.attr.startswith("assert")
    return is_method or isinstance(node, ast.Assert | ast.Raise)


def with_its_assertion(tree: ast.Module) -> ast.Module:
    """A script whose function `assertion` compares and forgets to assert, as three of MBPP+ do."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == "assertion":
            inside = list(ast.walk(node))
            stored = {name.id for name in inside if isinstance(name, ast.Name)}
            if "exact_match" in stored and not any(isinstance(n, ast.Assert) for n in inside):
                node.body += ast.parse("assert exact_match").body
    return ast.fix_missing_locations(tree)


def compare_shapes() -> None:
    """Makes numpy's comparisons refuse two shapes: [] is not close to 1.5, nor [2, 2] to 2."""
    numpy: Any = importlib.import_module("numpy")

    def strict(compare: Callable) -> Callable:
        @functools.wraps(compare)
        def comparison(given: Any, wanted: Any, *args: Any, **kwargs: Any) -> Any:
            assert numpy.shape(given) == numpy.shape(wanted)
            return compare(given, wanted, *args, **kwargs)

        return comparison

    numpy.allclose = strict(numpy.allclose)
    numpy.testing.assert_allclose = strict(numpy.testing.assert_allclose)


def run_script(script: str, channel: int) -> dict:
    """Runs assertions on the functions of a program that runs elsewhere."""
    calls = 0

    def stand_in(name: str) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            message = {"call": name, "args": encode(args), "kwargs": encode(kwargs)}
            send(channel, message)
            reply = receive(channel)
            if "value" not in reply:
                raise ProgramError(reply)
            return decode(reply["value"])

        return call

    sys.set_int_max_str_digits(0)  # scripts hold longer integers
    names: dict[str, Any] = {"__name__": "__main__"}
    try:
        tree = with_its_assertion(ast.parse(script))
        names |= {name: stand_in(name) for name in called_names(tree)}
        if re.search(r"\bnumpy\b", script):
            compare_shapes()
        if not any(map(can_fail, ast.walk(tree))):
            return {"ended": "no tests"}
        exec(compile(tree, "<tests>", "exec", dont_inherit=True), names)
    except ProgramError as error:
        return {"ended": "program", "reply": error.args[0]}
    except BaseException as error:
        return {"ended": "wrong" if calls else "broken", "raised": type(error).__name__}
    return {"ended": "passed" if calls else "no tests"}


def main() -> None:
    """Runs one script."""
    channel = int(os.environ["CHANNEL"])
    add_known_names()
    send(channel, {})
    send(channel, run_script(receive(channel)["script"], channel))
