"""The tests of a programming task, from the columns of MBPP+ and LiveCodeBench."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import pickletools
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from rmas_jax.data.rows import DataError
from rmas_jax.host.errors import clipped, shown

MAX_BYTES = 256 << 20  # of private tests, decompressed
STDIN, FUNCTIONAL = "stdin", "functional"  # kinds of tests
_NO_EFFECT = {"PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT"}  # on a pickle of one text
_TEXT = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}


class Case(NamedTuple):
    """One test: an input and the expected output."""

    input: str  # standard input; of a function, one argument in JSON per line
    output: str  # standard output; of a function, the value in JSON


@dataclasses.dataclass(frozen=True)
class CodeTests:
    """The tests of a program: either cases or a script."""

    cases: tuple[Case, ...] = ()
    function: str | None = None  # the cases' function; None: they are of the whole program
    script: str = ""  # assertions on the program's functions


def read_code_tests(fields: Mapping[str, str]) -> CodeTests:
    """The tests in an example's fields; without any where no field has some.

    LiveCodeBench: `public_test_cases` and `private_test_cases`, with the function's name in
    `metadata`. MBPP+: the script `test`; without it the assertions `test_list`, after
    `test_imports`.

    Raises:
      DataError: a field is unusable.
    """
    if "public_test_cases" in fields or "private_test_cases" in fields:
        public = _json(fields, "public_test_cases", [])
        private = read_private_tests(fields.get("private_test_cases", ""))
        metadata = _json(fields, "metadata", {})
        function = metadata.get("func_name") if isinstance(metadata, dict) else None
        if not isinstance(function, str | None):
            raise DataError(f"metadata: func_name must be text, got {shown(function)}")
        cases = (*_cases(public, "public_test_cases"), *_cases(private, "private_test_cases"))
        if function is None and any(kind == FUNCTIONAL for _, kind in cases):
            raise DataError("metadata: must have func_name for functional tests, got none")
        return CodeTests(tuple(case for case, _ in cases), function)
    lines = [fields.get("test", "")]
    if not lines[0].strip():
        lines = [
            line
            for field in ("test_imports", "test_list")
            for line in _texts(_json(fields, field, []), field)
        ]
    return CodeTests(script="\n".join(lines))


def read_private_tests(text: str) -> Any:
    """The value of LiveCodeBench's `private_test_cases`: JSON, or a compressed pickle of JSON.

    The pickle is not run: it may hold one text and nothing else.

    Raises:
      DataError: neither, or larger than `MAX_BYTES`.
    """
    if not text.strip() or text.lstrip().startswith("["):
        return _json({"private_test_cases": text}, "private_test_cases", [])
    try:
        raw = _decompressed(base64.b64decode(text, validate=True))
    except (binascii.Error, zlib.error, ValueError) as error:
        raise DataError(f"private_test_cases: must be base64 of zlib data, got {error}") from None
    return _json({"private_test_cases": pickled_text(raw)}, "private_test_cases", [])


def _decompressed(raw: bytes) -> bytes:
    machine = zlib.decompressobj()
    data = machine.decompress(raw, MAX_BYTES)
    if not machine.eof:
        problem = "is cut off" if not machine.unconsumed_tail else f"is above {MAX_BYTES} bytes"
        raise ValueError(f"data that {problem}")
    return data


def pickled_text(raw: bytes) -> str:
    """The text in a pickle of one text; no other instruction is read.

    Raises:
      DataError: the pickle is damaged, or holds anything else.
    """
    texts: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(raw):
            if opcode.name == "STOP":
                break
            if opcode.name in _TEXT:
                texts.append(str(argument))
            elif opcode.name not in _NO_EFFECT:
                raise ValueError(f"the instruction {opcode.name}")
        if len(texts) != 1:
            raise ValueError(f"{len(texts)} texts")
        texts[0].encode()  # a pickle may hold halves of pairs, which UTF-8 cannot
    except Exception as error:  # damage makes pickletools raise almost anything
        reason = clipped(str(error), 200)
        raise DataError(
            f"private_test_cases: must be the pickle of one text, got {reason}"
        ) from None
    return texts[0]


def _json(fields: Mapping[str, str], field: str, default: Any) -> Any:
    text = fields.get(field, "")
    if not text.strip():
        return default
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{field}: must be JSON, got {clipped(str(error), 200)}") from None


def _texts(value: Any, field: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise DataError(f"{field}: must be a list of texts")
    return value


def _cases(value: Any, field: str) -> list[tuple[Case, str]]:
    """Cases and their kinds; errors show none of them, since they may reach a report."""
    cases: list[tuple[Case, str]] = []
    for test in value if isinstance(value, list) else [value]:
        match test:
            case {"input": str(given), "output": str(wanted)}:
                kind = test.get("testtype", STDIN)
            case _:
                kind = None
        if kind not in (STDIN, FUNCTIONAL):
            raise DataError(
                f"{field}: test {len(cases) + 1} must have input and output, as texts, and "
                f"testtype, {STDIN} or {FUNCTIONAL}"
            )
        cases.append((Case(given, wanted), kind))
    return cases
