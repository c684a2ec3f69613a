"""Answers one by one: all of them in a file, a part of bounded size in the page."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rmas_jax.evaluation import methods
from rmas_jax.evaluation.rows import ItemRow, Measurement, measurement, rollouts_of
from rmas_jax.reporting.table import Table

OF_QUESTION = ("benchmark", "split", "method", "rounds", "seed", "id", "rollout", "question")
OF_ANSWER = ("prompt hash", "crossed", "output", "parsed answer", "gold", "verdict", "reason")
HEADER = OF_QUESTION + OF_ANSWER
MAX_CELL = 4_000  # characters of a cell in the file; of longer ones, so many of both ends
MAX_SHOWN = 300  # answers in the page
MAX_SHOWN_CELL = 400  # characters of a cell there
CROSSINGS = 10  # questions in a table of what crossed the edges
LINKED = (methods.LATENT, methods.ALIGNED)  # of these, the first one's crossings are shown


def item_table(items: Sequence[ItemRow]) -> Table:
    """All answers, a line per rollout."""
    lines = (line for item in items for line in _lines(item))
    return _table(tuple(_ends(cell, MAX_CELL) for cell in line) for line in lines)


def shown_items(items: Sequence[ItemRow]) -> Table:
    """At most MAX_SHOWN answers: of each measurement the first questions, all rollouts of each."""
    by_measurement: dict[Measurement, list[ItemRow]] = {}
    for item in items:
        by_measurement.setdefault(measurement(item), []).append(item)
    share = max(MAX_SHOWN // max(len(by_measurement), 1), 1)
    chosen = itertools.chain.from_iterable(
        itertools.islice((line for item in own for line in _lines(item)), share)
        for own in by_measurement.values()
    )
    return _table(
        tuple(_ends(cell, MAX_SHOWN_CELL) for cell in line)
        for line in itertools.islice(chosen, MAX_SHOWN)
    )


def crossing_tables(items: Sequence[ItemRow]) -> Iterator[Table]:
    """Yields what crossed each edge in the most rounds, of a split's first questions.

    Of trained links, or else of aligned ones, with the first seed; nothing where it was not
    recorded.
    """
    recorded = [item for item in items if item.get("crossed") and item["method"] in LINKED]
    for split in dict.fromkeys(map(_split_of, recorded)):
        by_measurement: dict[Measurement, list[ItemRow]] = {}
        for item in recorded:
            if _split_of(item) == split:
                by_measurement.setdefault(measurement(item), []).append(item)
        best = min(by_measurement, key=lambda m: (LINKED.index(m.method), -m.rounds, m.seed))
        shown = by_measurement[best][:CROSSINGS]
        places = [(edge, number) for edge, of in shown[0]["crossed"].items() for number in of]
        header = (
            "question",
            "gold",
            "answer",
            *(f"{edge}, round {number}" for edge, number in places),
        )
        rows = tuple(
            tuple(
                _ends(" ".join(cell.split()), MAX_SHOWN_CELL)
                for cell in (
                    item.get("question", ""),
                    item.get("gold", ""),
                    item.get("text", ""),
                    *(_nearest(item["crossed"].get(edge, {}).get(n, ())) for edge, n in places),
                )
            )
            for item in shown
        )
        yield Table(
            f"{' '.join(split)}: what crossed the edges, {methods.describe(best.method).label}",
            header,
            rows,
            text_columns=len(header),
            note=(
                "Of each vector in turn the nearest token of the receiver's vocabulary, between "
                f"quotes. The first questions, seed {best.seed}."
            ),
            name=f"crossings {' '.join(split)}",
        )


def _split_of(item: ItemRow) -> tuple[str, str]:
    return item["benchmark"], item["split"]


def _nearest(positions: Sequence[Sequence[str]]) -> str:
    """The nearest token of each vector."""
    return " ".join(json.dumps(nearest[0], ensure_ascii=False) for nearest in positions)


def _table(lines: Iterator[tuple[str, ...]]) -> Table:
    return Table("Answers", HEADER, tuple(lines), text_columns=len(HEADER), name="items")


def _lines(item: ItemRow) -> Iterator[tuple[str, ...]]:
    """The cells of an item's answers; columns that the run did not record are empty."""
    known: Mapping[str, Any] = {**item}
    method, rounds, benchmark, split, seed = map(str, measurement(item))
    for number, rollout in enumerate(rollouts_of(item), 1):
        answer: Mapping[str, Any] = {**rollout}
        verdict = "correct" if answer["correct"] else "wrong"
        yield (
            benchmark,
            split,
            method,
            rounds,
            seed,
            str(item["id"]),
            str(number),
            known.get("question", ""),
            known.get("prompt_hash", ""),
            _crossed(known.get("crossed") or {}),
            answer.get("text", ""),
            answer.get("prediction") or "",
            known.get("gold", ""),
            answer.get("outcome") or verdict,
            answer.get("reason", ""),
        )


def _crossed(crossed: Mapping[str, Mapping[str, Sequence[Sequence[str]]]]) -> str:
    """What crossed each edge: per position its nearest tokens, the nearest first."""
    return "; ".join(
        f"{edge}, round {number}: {' '.join('/'.join(nearest) for nearest in positions)}"
        for edge, by_round in crossed.items()
        for number, positions in by_round.items()
    )


def _ends(text: str, limit: int) -> str:
    """A text that can be encoded, or both of its ends: answers stand at the end."""
    text = text.encode(errors="replace").decode()
    if len(text) <= limit:
        return text
    head = limit // 4
    left_out = f" [... {len(text) - limit:,} characters ...] "
    return text[:head] + left_out + text[len(text) - (limit - head) :]
