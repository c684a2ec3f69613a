"""Questions from a command line or standard input; an unusable one does not affect the others."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import BinaryIO

from rmas_jax.host.errors import InputError, shown
from rmas_jax.host.reading import MEBIBYTE, size

MAX_BYTES = MEBIBYTE  # of one question
BOM = "\ufeff"


class QuestionError(InputError):
    """An unusable question."""


def check_question(text: str, *, where: str) -> str:
    """A question without outer whitespace and byte order mark.

    Raises:
      QuestionError: the question is empty or cannot be encoded as UTF-8.
    """
    question = text.removeprefix(BOM).strip()
    if not question:
        raise QuestionError(f"{where} must be a question, got {shown(text)}")
    try:
        raw = question.encode()
    except UnicodeEncodeError:  # a byte of the command line that is not UTF-8
        raise QuestionError(f"{where} must be text in UTF-8, got {shown(text)}") from None
    if "\0" in question:
        raise QuestionError(f"{where} must be text, got a NUL in {shown(text)}")
    if len(raw) > MAX_BYTES:
        raise QuestionError(f"{where} must be at most {size(MAX_BYTES)}, got {size(len(raw))}")
    return question


def read_questions(stream: BinaryIO, *, name: str) -> Iterator[str | QuestionError]:
    """Yields a question per line, as soon as it is read; its error if unusable.

    Lines end at line feeds alone; skips empty ones.

    Args:
      stream: bytes.
      name: of the stream, for messages.

    Raises:
      QuestionError: the stream cannot be read, is UTF-16 or has too long a line.
    """
    number = 0
    while True:
        try:
            line = stream.readline(MAX_BYTES + 1)
        except OSError as reason:
            raise QuestionError(f"{name} cannot be read ({reason.strerror})") from None
        number += 1
        if not line:
            return
        where = f"line {number} of {name}"
        if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise QuestionError(f"{name} must be text in UTF-8, got UTF-16")
        if len(line) > MAX_BYTES:
            raise QuestionError(f"{where} must be at most {size(MAX_BYTES)}, got more")
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            if text:
                yield check_question(text, where=where)
        except UnicodeDecodeError as reason:
            place = f"{reason.reason} at byte {reason.start}"
            yield QuestionError(f"{where} must be text in UTF-8, got {place}")
        except QuestionError as error:
            yield error
