"""Reads the pickle in a torch.save file without running it.

A pickle is a program for a small stack machine, which can import and call anything. This machine
has only the instructions for tensors by name, imports nothing and calls nothing: a function becomes
its name, a tensor the description of a view of a storage. The result is never larger than the
pickle; every other instruction and name raises an error.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from rmas_jax.host.errors import clipped, shown
from rmas_jax.models import CheckpointError

STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(jnp.bfloat16),
}
MAX_DIMENSIONS = 32
MAX_KEY = 100  # characters of a storage's name


class Name(NamedTuple):
    """A function or class, by its name alone."""

    module: str
    name: str


ORDERED = Name("collections", "OrderedDict")
TENSOR = Name("torch._utils", "_rebuild_tensor_v2")
PARAMETER = Name("torch._utils", "_rebuild_parameter")
KNOWN = {ORDERED, TENSOR, PARAMETER, *(Name("torch", name) for name in STORAGES)}


class Storage(NamedTuple):
    """A sequence of numbers in its own file."""

    dtype: np.dtype
    key: str


class TensorView(NamedTuple):
    """A tensor: numbers of a storage at an offset, by shape and strides in numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    is_negated: bool  # the stored numbers are the negated values


class _Refused(Exception):
    """The refused part of a pickle."""


def read_pickle(raw: bytes, *, source: str) -> Any:
    """The value of a pickle: dicts, lists, tuples, text, numbers, and `TensorView`.

    Raises:
      CheckpointError: the pickle is damaged, or holds other values; names `source`.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(raw):
            if opcode.name == "STOP":
                return machine.pop()
            run = _INSTRUCTIONS.get(opcode.name)
            if run is None:
                raise _Refused(f"the instruction {opcode.name}")
            run(machine, argument)
        raise ValueError("no end")
    except _Refused as refusal:
        found = clipped(str(refusal), 400)
        raise CheckpointError(
            f"{source}: its pickle must hold tensors by name alone, got {found}"
        ) from None
    except Exception as error:  # damage makes pickletools and the stack raise almost anything
        reason = clipped(str(error), 200)
        raise CheckpointError(f"{source}: data.pkl is damaged: {reason}") from None


class _Machine:
    """Stack, its marks, and memo of reused values."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        at = self.marks.pop()
        values = self.stack[at:]
        del self.stack[at:]
        return values

    def tuple_of(self, count: int) -> None:
        values = tuple(self.pop() for _ in range(count))[::-1]
        self.push(values)

    def name(self, module: Any, name: Any) -> None:
        found = Name(module, name)
        if found not in KNOWN:
            where = f"{clipped(str(module), 80)}.{clipped(str(name), 80)}"
            raise _Refused(f"{where}, which is not run")
        self.push(found)

    def name_from_stack(self) -> None:
        name, module = self.pop(), self.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise _Refused(f"the function {shown((module, name))}")
        self.name(module, name)

    def put(self, pairs: list[Any]) -> None:
        """Sets pairs in the dict on top of the stack."""
        target = self.stack[-1]
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, str) or not isinstance(target, dict):
                raise _Refused(f"the key {shown(key)} in a {type(target).__name__}")
            target[key] = value

    def append(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise _Refused(f"items appended to {shown(target)}")
        target += values

    def build(self) -> None:
        """Drops the attributes of an object, such as versions of modules; they hold no arrays."""
        self.pop()
        if not isinstance(self.stack[-1], dict):
            raise _Refused(f"attributes of {shown(self.stack[-1])}")

    def storage(self) -> None:
        match self.pop():
            case ("storage", Name(name=kind), str(key), *_) if (
                kind in STORAGES and len(key) <= MAX_KEY
            ):
                self.push(Storage(STORAGES[kind], key))
            case other:
                raise _Refused(f"the reference {shown(other, 120)}")

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        match function, arguments:
            case (_, ()) if function == ORDERED:
                self.push({})
            case (_, (TensorView() as tensor, *_)) if function == PARAMETER:
                self.push(tensor)
            case (_, (Storage() as storage, offset, shape, strides, _, _, *metadata)) if (
                function == TENSOR
            ):
                self.push(_tensor(storage, offset, shape, strides, *metadata))
            case _:
                raise _Refused(f"a call of {shown(function)} with {shown(arguments)}")


def _tensor(
    storage: Storage, offset: Any, shape: Any, strides: Any, metadata: Any = None
) -> TensorView:
    """A tensor of a real dtype; its conjugate bit has no effect."""
    sizes = (shape, strides)
    if (
        type(offset) is not int
        or not all(isinstance(x, tuple) and len(x) <= MAX_DIMENSIONS for x in sizes)
        or not all(type(n) is int for x in sizes for n in x)
        or len(shape) != len(strides)
        or offset < 0
        or not all(n > 0 for n in shape)
        or not all(step >= 0 for step in strides)
    ):
        raise _Refused(
            f"a tensor of shape {shown(shape)} and strides {shown(strides)} at {shown(offset)} "
            "(sizes must be positive)"
        )
    bits = {} if metadata is None else metadata
    if not isinstance(bits, dict) or not bits.keys() <= {"neg", "conj"}:
        raise _Refused(f"a tensor with the bits {shown(bits)} (neg and conj are allowed)")
    return TensorView(storage, offset, shape, strides, bool(bits.get("neg")))


Instruction = Callable[[_Machine, Any], None]
_INSTRUCTIONS: dict[str, Instruction] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda m, x: None),
    **dict.fromkeys(
        (
            *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
            *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
        ),
        lambda m, x: m.push(x),
    ),
    "NONE": lambda m, x: m.push(None),
    "NEWTRUE": lambda m, x: m.push(True),
    "NEWFALSE": lambda m, x: m.push(False),
    "MARK": lambda m, x: m.marks.append(len(m.stack)),
    "EMPTY_TUPLE": lambda m, x: m.push(()),
    "TUPLE": lambda m, x: m.push(tuple(m.pop_to_mark())),
    "TUPLE1": lambda m, x: m.tuple_of(1),
    "TUPLE2": lambda m, x: m.tuple_of(2),
    "TUPLE3": lambda m, x: m.tuple_of(3),
    "EMPTY_LIST": lambda m, x: m.push([]),
    "APPEND": lambda m, x: m.append([m.pop()]),
    "APPENDS": lambda m, x: m.append(m.pop_to_mark()),
    "EMPTY_DICT": lambda m, x: m.push({}),
    "SETITEM": lambda m, x: m.put([m.pop(), m.pop()][::-1]),
    "SETITEMS": lambda m, x: m.put(m.pop_to_mark()),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), lambda m, x: m.memo.update({x: m.stack[-1]})),
    "MEMOIZE": lambda m, x: m.memo.update({len(m.memo): m.stack[-1]}),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda m, x: m.push(m.memo[x])),
    "GLOBAL": lambda m, x: m.name(*x.split(" ", 1)),
    "STACK_GLOBAL": lambda m, x: m.name_from_stack(),
    "BINPERSID": lambda m, x: m.storage(),
    "REDUCE": lambda m, x: m.call(),
    "BUILD": lambda m, x: m.build(),
}
