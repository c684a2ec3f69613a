"""Grades programs by tests, in the sandbox.

**The program** is the last finished block of Python in Markdown's fences, after the thinking:
models draft first and correct themselves later, and LiveCodeBench takes the last one, too.
Upstream takes the first one. Blocks marked as Python come before unmarked ones; a text without a
finished block has no program.

**What a program could cheat with is not there.** It runs in a sandbox that holds an input and
nothing else of a test: no expected result, no assertion, no comparison. What comes out of it is
its answer, and the verdict is made outside. So there is nothing in frames, files or memory to read,
nothing to patch, and nothing to forge: whoever takes over the sandbox can answer, and no more.

    style       in the program's sandbox          outside
    stdin       standard input of one test        compares lines (`code_runs.is_output`)
    functional  arguments of one test             compares values (`code_runs.is_value`)
    script      arguments of one call at a time   the script runs in a second sandbox

A script of assertions (MBPP+) holds its expected values, so it runs without the program: in its
sandbox the program's functions are stand-ins that send their arguments to the program's sandbox and
return the value that comes back. Values travel as JSON (`code_values.encode`) and are made anew, of
types of Python and numpy alone: objects with an `__eq__` of their own, and changes of an argument
that the script would see, do not come across. Of any script that can be run, nothing is changed or
left out, with two exceptions that are stricter: numpy's `allclose` wants equal shapes (upstream,
[] passes where 1.5 is expected), and a function `assertion` that computes `exact_match` and
forgets to assert it, as in three tasks of MBPP+, asserts it.

**A test is alone.** Each runs in a new process; it begins with a copy of an interpreter in which no
program has run. If a test leaves a process or a file behind, the next one gets a new sandbox.
The functions of a script run in one process, as upstream. The first failure ends the grading.

Names of the standard library that upstream imports with a star are known to all programs.
"""

from __future__ import annotations

import re
import textwrap

from rmas_jax.agents.thinking_tags import after_thinking
from rmas_jax.data.code_tests import read_code_tests
from rmas_jax.data.examples import Example
from rmas_jax.data.rows import DataError
from rmas_jax.evaluation.graders.code_runs import CodeLimits, run_tests
from rmas_jax.evaluation.graders.verdict import Outcome, Verdict

LIMITS = CodeLimits()
_OPENING = re.compile(r"\s*+(`{3,}+|~{3,}+)\s*+([\w.+-]*+)[^`]*+")
_PYTHON = re.compile(r"py(?:thon)?[23]?(?:\.\d+)?", re.IGNORECASE)


def program_of(text: str) -> str | None:
    """The program in a text, see the module; None if there is none."""
    blocks: dict[bool, str] = {}  # marked as Python? -> the last one
    fence, mark = "", ""
    lines: list[str] = []
    for line in (after_thinking(text) or "").split("\n"):
        opening = _OPENING.fullmatch(line)
        if opening and (not fence or (opening[2] and opening[1].startswith(fence))):
            fence, mark, lines = opening[1], opening[2], []  # another one, too: the last had no end
        elif opening and opening[1].startswith(fence):
            program = textwrap.dedent("\n".join(lines))
            if program.strip() and (not mark or _PYTHON.fullmatch(mark)):
                blocks[bool(mark)] = program
            fence = ""
        elif fence:
            lines.append(line)
    return blocks.get(True, blocks.get(False))


def grade_code(text: str, example: Example, limits: CodeLimits = LIMITS) -> Verdict:
    """Correct if the text's program passes all tests of the example.

    Raises:
      DataError: the example's tests are unusable.
      SandboxError: programs cannot be run safely here.
    """
    program = program_of(text)
    if program is None:
        return Verdict(None, Outcome.UNPARSED)
    failure = run_tests(program, read_code_tests(example.fields), limits)
    return Verdict(program, *(failure or (Outcome.CORRECT,)))


def has_tests(example: Example) -> bool:
    """Whether an example has tests that can be read."""
    try:
        tests = read_code_tests(example.fields)
    except DataError:
        return False
    return bool(tests.cases or tests.script)
