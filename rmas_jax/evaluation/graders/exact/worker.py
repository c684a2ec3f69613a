"""A process that compares answers: a JSON object per line in, one out.

Request: `gold`, `given` (null: only read the gold answer), and `wall_s`, after which the process
ends itself should its parent be gone. Reply: `outcome` (a `verdict.Outcome`) and `reason`. The
first line says that the process has started.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import signal
import sys
from typing import Any

from .equality import Comparison
from .library import is_calculus, read_calculus
from .notation import tokens_of
from .reader import read
from .values import TooLargeError, UnreadableError, Value, Words

MOST_GOLD_WORDS = 4  # of an answer in words; a longer text is no short answer
RECURSION = 10_000  # calls in each other; the text's length and brackets are bounded before


def reply_to(gold: str, given: str | None) -> dict[str, str]:
    """The outcome of a comparison, or whether a gold answer is readable."""
    try:
        wanted = _value_of(gold)
    except UnreadableError as error:
        if given is not None and _same_tokens(gold, given):
            return _reply("correct", "the same signs; no value")
        return _reply("wrong", f"the gold answer cannot be read: {error}")
    except TooLargeError as error:
        if given is None or _same_tokens(gold, given):
            return _reply("correct", "the same signs; no value")
        return _reply("timeout", f"gold answer: {error}")
    if given is None:
        is_long = isinstance(wanted, Words) and len(wanted.text.split()) > MOST_GOLD_WORDS
        return _reply("wrong", "a text, no short answer") if is_long else _reply("correct")
    try:
        found = _value_of(given)
    except UnreadableError as error:
        return _reply("unparsed", f"cannot be read: {error}")
    except TooLargeError as error:
        return _reply("timeout", str(error))
    comparison = Comparison()
    if comparison.equal(wanted, found):
        return _reply("correct")
    return _reply("wrong", comparison.doubts[0] if comparison.doubts else "")


def _reply(outcome: str, reason: str = "") -> dict[str, str]:
    return {"outcome": outcome, "reason": reason}


def _value_of(text: str) -> Value:
    try:
        return read(text)
    except UnreadableError:
        if not is_calculus(text):
            raise
    return read_calculus(text)


def _same_tokens(gold: str, given: str) -> bool:
    try:
        a, b = ([(token.kind, token.text) for token in tokens_of(text)] for text in (gold, given))
    except (UnreadableError, TooLargeError):
        return False
    return a == b


def main(limit_bytes: int) -> None:
    """Answers requests until standard input ends."""
    requests, replies = sys.stdin, os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no reply
    logging.disable()
    sys.setrecursionlimit(RECURSION)
    with contextlib.suppress(OSError, ValueError):  # not every system limits it
        resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
    _answer(replies, {"outcome": "started", "reason": ""})
    for line in requests:
        request = json.loads(line)
        signal.alarm(request["wall_s"])
        try:
            reply = reply_to(request["gold"], request["given"])
        except MemoryError:
            os._exit(1)  # what is left of this process cannot be trusted
        except Exception as error:  # of sympy, on input that nobody has thought of
            reply = _reply("crashed", f"{type(error).__name__}: {str(error)[:200]}")
        signal.alarm(0)
        _answer(replies, reply)


def _answer(replies: Any, reply: dict[str, str]) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()
