"""Renders chat templates in a separate process, within limits.

jinja's sandbox hides Python from a template, but does not prevent it from filling the memory
(`'x' * 10**10`, also during compilation) or from running forever (nested loops, recursive macros).
A process has external limits, independent of the template, which also work in a program with
threads. It takes about 50 ms and renders all conversations of a call.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

CHILD = Path(__file__).with_name("render_child.py")
LIMITS = {"bytes": 2**29, "s": 3, "characters": 2**22}  # address space, processor time, output
LONGEST_WAIT_S = 60  # wall time, on a busy machine
TOO_MUCH = f"it does not end within {LIMITS['s']} s and {LIMITS['bytes'] // 2**20} MiB"


class Outcome(NamedTuple):
    """Result of one conversation: a text or an error; the other is None."""

    text: str | None
    error: str | None


def today() -> str:
    """The default date of templates: YYYY-MM-DD."""
    return datetime.date.today().isoformat()


def render(
    template: str,
    conversations: Sequence[Mapping[str, Any]],
    *,
    variables: Mapping[str, Any],
    date: str,
) -> list[Outcome]:
    """Renders conversations as transformers does, on a given date.

    Args:
      template: jinja source.
      conversations: variables of each: `messages`, `add_generation_prompt`.
      variables: of all conversations.
      date: YYYY-MM-DD, for `strftime_now`.
    """
    request = {
        "template": template,
        "conversations": list(conversations),
        "variables": {"tools": None, "documents": None, **variables},
        "date": date,
        "limits": LIMITS,
    }
    # Python's option -I would ignore the fixed hash seed; its other variables are removed here.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    try:
        done = subprocess.run(
            [sys.executable, "-s", "-P", "-B", str(CHILD)],
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=LONGEST_WAIT_S,
            env=environment | {"PYTHONHASHSEED": "0"},
            check=False,
        )
        failure = _failure(done)
    except subprocess.TimeoutExpired:
        failure = TOO_MUCH
    if failure is not None:
        return [Outcome(None, failure)] * len(request["conversations"])
    return [Outcome(answer.get("text"), answer.get("error")) for answer in json.loads(done.stdout)]


def _failure(done: subprocess.CompletedProcess[bytes]) -> str | None:
    """The reason why a process has no results; None if it has."""
    if done.returncode < 0:  # a signal: time limit, or stack overflow
        return TOO_MUCH
    last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
    return f"its process ended with {last!r}" if done.returncode else None
