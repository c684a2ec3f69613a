"""The measurement under way on disk: a line for each rollout of an item, in the order they end.

An interrupted measurement resumes from these lines. The first line names the measurement and the
identity of its benchmark; lines of another one do not count. Every line has its checksum, and one
that is damaged or cut off is written again.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

from rmas_jax.evaluation.rows import ItemRow, Measurement
from rmas_jax.host.atomic import append, write_atomic
from rmas_jax.host.checksums import seal, unseal
from rmas_jax.host.errors import InputError
from rmas_jax.host.processes import broadcast_from_first
from rmas_jax.host.reading import GIBIBYTE, decode_text, parse_json, read_bytes

FILE_LIMIT: Final = 2 * GIBIBYTE


class Finished(NamedTuple):
    """A graded rollout of an item."""

    rollout: int  # from 0
    seconds: float  # its share of those of its batch
    item: ItemRow  # with this rollout as its answer


@dataclasses.dataclass
class UnderWay:
    """The finished rollouts of one measurement, by id of the item and rollout.

    The first process reads and writes; all processes have the same content.
    """

    path: Path
    finished: dict[tuple[str | int, int], Finished] = dataclasses.field(default_factory=dict)

    def add(self, fresh: Sequence[Finished]) -> None:
        """Adds rollouts; those that are there already do not count again."""
        new = [one for one in fresh if (one.item["id"], one.rollout) not in self.finished]
        self.finished |= {(one.item["id"], one.rollout): one for one in new}
        broadcast_from_first(lambda: append(self.path, "".join(map(_line, new))))


def open_under_way(path: Path, key: Measurement, identity: Mapping[str, str]) -> UnderWay:
    """The finished rollouts of a measurement; starts a new file if this one is of another."""
    header = {**key._asdict(), **identity}

    def read() -> list[Finished]:
        lines = list(_objects(path)) if path.exists() else []
        found = []
        if lines and lines[0] == header:
            found = [one for line in lines[1:] if (one := _finished(line, key)) is not None]
        write_atomic(path, _sealed(header) + "".join(map(_line, found)))
        return found

    found = broadcast_from_first(read)
    return UnderWay(path, {(one.item["id"], one.rollout): one for one in found})


def _objects(path: Path) -> Iterator[dict[str, Any] | None]:
    """The objects of a file's lines; None for a damaged one. The last line may be cut off."""
    raw = read_bytes(path, at_most=FILE_LIMIT, error=InputError)
    for line in raw.split(b"\n")[:-1]:
        try:
            text = decode_text(line, source=path, error=InputError)
            content = parse_json(text, source=path, error=InputError)
            is_row = isinstance(content, dict)
            yield unseal(content, source=str(path), error=InputError) if is_row else None
        except InputError:
            yield None


def _finished(line: dict[str, Any] | None, key: Measurement) -> Finished | None:
    match line:
        case {
            "rollout": int(rollout),
            "seconds": float(seconds),
            "item": {"id": _, **rest} as item,
        } if rollout >= 0 and math.isfinite(seconds):
            if all(rest.get(name) == value for name, value in key._asdict().items()):
                return Finished(rollout, seconds, cast(ItemRow, item))
    return None


def _line(one: Finished) -> str:
    return _sealed(one._asdict())


def _sealed(content: dict[str, Any]) -> str:
    return json.dumps(seal(content), ensure_ascii=False) + "\n"
