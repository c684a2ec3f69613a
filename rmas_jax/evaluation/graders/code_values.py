"""Values and messages between the grader and its sandboxes; runs in both.

A value is JSON, in which a list is a list, and {TYPE: content} a value of another type. A message
is JSON behind its length in eight bytes, on the descriptor in the environment's `CHANNEL`.
"""

from __future__ import annotations

import collections
import decimal
import fractions
import importlib
import itertools
import json
import os
import struct
import sys
from collections.abc import Callable
from typing import Any

MAX_OUTPUT = 16 << 20  # bytes of a program's output, or of a value
MAX_MESSAGE = 64 << 20
MAX_ITEMS = 1 << 20  # of an iterator
LONG = 1 << 1000  # from here on integers are written in hexadecimal
SEQUENCES: dict[str, Any] = {
    "tuple": tuple,
    "set": (set, collections.abc.KeysView, collections.abc.ItemsView),
    "frozenset": frozenset,
    "deque": collections.deque,
}


class Opaque:
    """A value of a type that is not passed on; equal to nothing else, and true."""


def encode(value: Any) -> Any:
    """A value as JSON; only its content counts, no method of its class is called on it later."""
    match value:
        case None | bool() | float() | str():
            return value
        case int():
            return int(value) if abs(value) < LONG else {"int": hex(value)}
        case complex():
            return {"complex": [value.real, value.imag]}
        case bytes() | bytearray():
            return {"bytes": bytes(value).hex()}
        case decimal.Decimal() | fractions.Fraction():
            return {type(value).__name__: str(value)}
        case range():
            return {"range": [value.start, value.stop, value.step]}
        case list():
            return [encode(item) for item in value]
        case dict():
            kind = type(value).__name__
            pairs = [[encode(key), encode(item)] for key, item in value.items()]
            return {kind if kind in ("Counter", "OrderedDict") else "dict": pairs}
        case collections.abc.Iterator() | collections.abc.ValuesView():
            return {"iterator": [encode(item) for item in itertools.islice(value, MAX_ITEMS)]}
    for kind, types_ in SEQUENCES.items():
        if isinstance(value, types_):
            return {kind: [encode(item) for item in value]}
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic):
        return encode(value.item()) if value.dtype.kind in "biufcU" else {"object": ""}
    if numpy is not None and isinstance(value, numpy.ndarray) and value.dtype.kind in "biufcU":
        return {"array": [value.dtype.str, list(value.shape), encode(value.ravel().tolist())]}
    return {"object": ""}


def decode(plain: Any) -> Any:
    """The value of `encode`'s JSON, of types that Python or numpy defines."""
    if isinstance(plain, list):
        return [decode(item) for item in plain]
    if not isinstance(plain, dict):
        return plain
    ((kind, content),) = plain.items()
    if kind == "array":
        numpy = importlib.import_module("numpy")
        return numpy.array(decode(content[2]), numpy.dtype(content[0])).reshape(content[1])
    make: dict[str, Callable[[Any], Any]] = {
        "int": lambda text: int(text, 16),
        "complex": lambda parts: complex(*parts),
        "bytes": bytes.fromhex,
        "Decimal": decimal.Decimal,
        "Fraction": fractions.Fraction,
        "range": lambda parts: range(*parts),
        "tuple": lambda items: tuple(decode(items)),
        "set": lambda items: set(decode(items)),
        "frozenset": lambda items: frozenset(decode(items)),
        "deque": lambda items: collections.deque(decode(items)),
        "iterator": lambda items: iter(decode(items)),
        "dict": lambda pairs: dict(decode(pairs)),
        "OrderedDict": lambda pairs: collections.OrderedDict(decode(pairs)),
        "Counter": lambda pairs: collections.Counter(dict(decode(pairs))),
        "object": lambda _: Opaque(),
    }
    return make[kind](content)


def send(channel: int, message: Any) -> None:
    """Sends one message."""
    data = json.dumps(message).encode()
    with open(channel, "wb", closefd=False) as file:
        file.write(struct.pack("<Q", len(data)) + data)


def receive(channel: int) -> Any:
    """The next message; ends this process where the other side has closed the channel."""
    return json.loads(_read(channel, *struct.unpack("<Q", _read(channel, 8))))


def _read(channel: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        if not (part := os.read(channel, size - len(data))):
            sys.exit()
        data += part
    return bytes(data)
