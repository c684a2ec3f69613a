"""Mutations of valid files, as hypothesis strategies: of bytes, and of what JSON and YAML hold."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

BIG = 10**5
STRANGE = (  # JSON texts of every type, and of values that break what reads them
    "null",
    "true",
    "0",
    "-1",
    "1e400",
    "NaN",
    "-Infinity",
    "1.5",
    str(2**31),
    str(10**18),
    "1" * 5000,
    '""',
    '"x"',
    '"2024-13-01"',
    '"\\u0000"',
    '"\\ud800"',
    '"../../../../etc/passwd"',
    '"/dev/zero"',
    json.dumps("x" * 5000),
    json.dumps("x" * BIG),
    "[]",
    "[[]]",
    "{}",
    '{"a": {"b": [1, "c"]}}',
    "[" * BIG + "]" * BIG,
    '{"a":' * 2000 + "1" + "}" * 2000,
    "[" + "0," * BIG + "0]",
)


class Literal(str):
    """A text that stands in a JSON document as it is."""


def paths(value: Any) -> list[tuple[Any, ...]]:
    """The way to every value inside a JSON value, itself included."""
    found: list[tuple[Any, ...]] = [()]
    children = value.items() if isinstance(value, dict) else ()
    children = enumerate(value) if isinstance(value, list) else children
    for key, child in children:
        found += [(key, *rest) for rest in paths(child)]
    return found


def dumps(value: Any) -> str:
    """JSON with the literals in it as they are."""
    marks: list[str] = []

    def mark(value: Any) -> Any:
        if isinstance(value, Literal):
            marks.append(value)
            return f"\ue000{len(marks) - 1}\ue001"
        if isinstance(value, dict):
            return {key: mark(child) for key, child in value.items()}
        return [mark(child) for child in value] if isinstance(value, list) else value

    text = json.dumps(mark(value), ensure_ascii=False, indent=1)
    for i, literal in enumerate(marks):
        text = text.replace(f'"\ue000{i}\ue001"', literal)
    return text


@st.composite
def of_tree(draw: Any, value: Any, *, only: tuple[str, ...] = ()) -> str:
    """A JSON text like that of `value`, with one to three changes inside.

    With `only`, changes are made below these keys alone.
    """
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        ways = [way for way in paths(value) if way and (not only or way[0] in only)]
        if not ways:
            break
        *above, last = draw(st.sampled_from(ways))
        place = value
        for key in above:
            place = place[key]
        action = draw(st.sampled_from(["swap", "swap", "swap", "remove", "nest", "enlarge", "key"]))
        if action == "swap":
            place[last] = Literal(draw(st.sampled_from(STRANGE)))
        elif action == "remove":
            del place[last]
        elif action == "nest":
            place[last] = [place[last]] if draw(st.booleans()) else {"x": place[last]}
        elif action == "key" and isinstance(place, dict):
            key = draw(st.sampled_from(["", "x", "\x00", "x" * 5000, "__class__", "name"]))
            place[key] = place.pop(last)
        elif isinstance(place[last], list):
            place[last] = place[last] * 50
        elif isinstance(place[last], str) and not isinstance(place[last], Literal):
            place[last] = place[last] * draw(st.sampled_from([0, 2, 10_000]))
        elif type(place[last]) in (int, float):
            place[last] = place[last] * draw(st.sampled_from([-1, 0, 0.5, 10**6, 10**30]))
    return dumps(value)


@st.composite
def of_bytes(draw: Any, content: bytes) -> bytes:
    """Bytes like `content`: cut off, flipped, repeated, with a piece put in or taken out."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(0, len(content) - 1)))
        if draw(st.booleans()):  # most formats say at their start how the rest is to be read
            place = min(place, draw(st.integers(0, 64)))
        action = draw(
            st.sampled_from(["cut", "flip", "set", "repeat", "insert", "remove", "empty"])
        )
        if action == "cut":
            del content[place:]
        elif action == "flip" and content:
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif action == "set":
            ends = draw(st.sampled_from([b"\xff" * 8, b"\0" * 8, b"\0", b"\xff\xfe", b"\n", b"{["]))
            content[place : place + len(ends)] = ends
        elif action == "repeat":
            piece = content[place : place + 1000]
            content[place:place] = piece * draw(st.sampled_from([1, 3, 100]))
        elif action == "insert":
            content[place:place] = draw(st.binary(min_size=1, max_size=20))
        elif action == "remove":
            del content[place : place + draw(st.integers(1, 1000))]
        elif action == "empty" and draw(st.integers(0, 4)) == 0:
            content.clear()
    return bytes(content)
