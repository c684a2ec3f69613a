"""The report of an audit: what the messages carry, edge by edge and round by round."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rmas_jax.evaluation.effects import CONTENT, Effect, Place, effects
from rmas_jax.evaluation.rows import ItemRow, ResultRow, metric_of
from rmas_jax.host.atomic import write_atomic
from rmas_jax.host.reading import GIBIBYTE, decode_text, parse_json, read_bytes
from rmas_jax.reporting.results import (
    Results,
    Split,
    count_rounds,
    metric_label,
    points,
    split_of,
)
from rmas_jax.reporting.run_directory import RunFileError
from rmas_jax.reporting.table import Table
from rmas_jax.run_files import AuditFiles

MEANINGS = {
    "true": "the message that was sent",
    "none": "nothing: an empty slot",
    "zeros": "zeros",
    "noise": "noise with the true messages' mean and covariance at each position",
    "other": "another item's message: another question, another gold answer, the same M positions",
    "own": "the receiver's own M thoughts: equal compute",
}
FILE_LIMIT = 2 * GIBIBYTE


class Audit(NamedTuple):
    """A finished audit, as its files have it."""

    declared: Mapping[str, Any]  # the protocol
    digest: str  # its SHA-256
    rows: list[ResultRow]
    items: list[ItemRow]


def read_audit(directory: Path) -> Audit:
    """Reads the files of an audit.

    Raises:
      RunFileError: a file is missing or damaged.
    """
    files = AuditFiles(directory)
    text = _text(files.protocol)
    return Audit(
        parse_json(text, source=files.protocol, error=RunFileError),
        hashlib.sha256(text.encode()).hexdigest(),
        parse_json(_text(files.results), source=files.results, error=RunFileError),
        [
            parse_json(line, source=files.items, error=RunFileError)
            for line in _text(files.items).splitlines()
        ],
    )


def write_audit(directory: Path) -> Path:
    """Writes the report of an audit's files as Markdown; returns its path.

    Raises:
      RunFileError: a file is missing or damaged.
    """
    files, found = AuditFiles(directory), read_audit(directory)
    brief = dict(found.declared) | {"conditions": len(found.declared["conditions"])}
    parts = [
        "# Audit of the messages",
        *(part if isinstance(part, str) else part.to_markdown() for part in audit_parts(found)),
        "## Protocol",
        f"```json\n{json.dumps(brief, indent=1, sort_keys=True)}\n```",
    ]
    write_atomic(files.markdown, "\n\n".join(parts) + "\n")
    return files.markdown


def _text(path: Path) -> str:
    raw = read_bytes(path, at_most=FILE_LIMIT, error=RunFileError)
    return decode_text(raw, source=str(path), error=RunFileError)


def audit_parts(audit: Audit) -> Iterator[str | Table]:
    """Yields the paragraphs and tables of an audit: the question, then each split."""
    declared = audit.declared
    yield (
        f"{declared['question']} Messages are replaced at the receiver's boundary, in "
        f"{count_rounds(declared['rounds'])}; senders stay as they are. The protocol was written "
        f"before anything was measured (SHA-256 {audit.digest}); all of it is in the audit's "
        f"{AuditFiles.protocol}."
    )
    for split in dict.fromkeys(map(split_of, audit.rows)):
        rows = [row for row in audit.rows if split_of(row) == split]
        items = [item for item in audit.items if split_of(item) == split]
        found = effects(
            items, declared["conditions"], declared["confidence"], metric=metric_of(rows[0])
        )
        yield f"{split}: {decision(found, declared)}"
        tables = (
            _accuracies(split, rows, items, declared),
            overall_table(found),
            *place_tables(found),
            cell_table(found),
        )
        for table in filter(None, tables):
            yield dataclasses.replace(
                table, title=f"{split}: {table.title}", name=f"audit {table.name} {split}"
            )


def decision(found: Sequence[Effect], declared: Mapping[str, Any]) -> str:
    """The declared rule, applied."""
    of_all = {e.name: e for e in found if e.place.scope == "all"}
    if CONTENT not in of_all:
        return "Not decided: other items' messages on all edges were not measured."
    pair, margin = of_all[CONTENT].pair, declared["margin"]
    if pair.interval.low > margin:
        verdict = "Content is used"
    elif pair.interval.high < margin or pair.interval.low <= 0 <= pair.interval.high:
        verdict = "No use of content was found"
    else:
        verdict = "Content is used, by less than the declared margin"
    sentence = (
        f"{verdict}: the content-attributable gain is {points(pair)} points on {pair.items} "
        f"questions (rule: its interval lies above {100 * margin:.1f})."
    )
    if total := of_all.get("total effect"):
        parts = f" The total effect of {points(total.pair)}"
        if a_message := of_all.get("effect of a message"):
            parts += f" = {points(a_message.pair)} for a message + {points(pair)} for this one"
        sentence += f"{parts}."
    return sentence


def _accuracies(
    split: Split,
    rows: Sequence[ResultRow],
    items: Sequence[ItemRow],
    declared: Mapping[str, Any],
) -> Table:
    """Accuracy by message, where it arrives on all edges in all rounds."""
    conditions = declared["conditions"]
    names = {
        name: f"{c['message']}" for name, c in conditions.items() if not (c["edge"] or c["round"])
    }

    # Draws of other items are pooled as seeds are: repeated answers to a question.
    def pooled(row: Any) -> Any:
        draw = conditions[row["method"]]["draw"]
        return {**row, "method": names[row["method"]], "seed": row["seed"] * 1_000 + draw}

    results = Results(
        [pooled(row) for row in rows if row["method"] in names],
        [pooled(item) for item in items if item["method"] in names],
    )
    lines = []
    for message, meaning in MEANINGS.items():
        if result := results.get(split, message, declared["rounds"]):
            low, high = result.interval
            accuracy = f"{100 * result.accuracy:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
            lines.append((message, meaning, str(result.n), accuracy))
    return Table(
        f"{metric_label(rows[0])} by message, on all edges in all rounds",
        ("message", "meaning", "answers", f"{metric_label(rows[0])} in %"),
        tuple(lines),
        text_columns=2,
        name="messages",
    )


def overall_table(found: Sequence[Effect]) -> Table | None:
    """Effects on all edges in all rounds; None if not measured."""
    lines = []
    for effect in found:
        if effect.place.scope == "all":
            pair = effect.pair
            smallest = "-" if effect.smallest is None else f"{100 * effect.smallest:.1f}"
            p_value = f"{pair.p_value:.2g}"
            lines.append((effect.name, str(pair.items), points(pair), p_value, smallest))
    if not lines:
        return None
    return Table(
        "Effects on all edges in all rounds",
        ("effect", "questions", "points", "p", "smallest shown"),
        tuple(lines),
        note="Points are differences of that metric with paired intervals over questions; p is of "
        "no difference; the smallest difference is what so many questions, of which so many are "
        "answered differently, show with a power of 80 %.",
        name="effects",
    )


TITLES = {
    "edge": "Effects of messages on one edge, in points",
    "round": "Effects of messages that arrive in one round, in points",
}


def place_tables(found: Sequence[Effect]) -> list[Table]:
    """Places by effects: a table of edges and one of rounds."""
    tables = []
    for scope, title in TITLES.items():
        here = [effect for effect in found if effect.place.scope == scope]
        names = list(dict.fromkeys(effect.name for effect in here))
        by_place: dict[Place, dict[str, str]] = {}
        for effect in here:
            by_place.setdefault(effect.place, {})[effect.name] = _starred(effect)
        lines = [
            (_place(place), *(cells.get(name, "-") for name in names))
            for place, cells in by_place.items()
        ]
        if lines:
            tables.append(Table(title, ("where", *names), tuple(lines), note=STAR, name=scope))
    return tables


STAR = "* p at most 0.05, by Holm's correction over the places of a column."


def _starred(effect: Effect) -> str:
    return points(effect.pair) + "*" * (effect.adjusted <= 0.05)


def _place(place: Place) -> str:
    return place.edge or f"round {place.round}"


def cell_table(found: Sequence[Effect]) -> Table | None:
    """Content-attributable gain by edge and round of arrival; None if not measured."""
    cells = {e.place: e for e in found if e.place.scope == "cell" and e.name == CONTENT}
    if not cells:
        return None
    edges = list(dict.fromkeys(place.edge for place in cells))
    rounds = sorted({place.round for place in cells if place.round})
    lines = []
    for edge in edges:
        of_edge = [cells.get(Place(edge, number)) for number in rounds]
        lines.append((str(edge), *("-" if e is None else _starred(e) for e in of_edge)))
    return Table(
        "Content-attributable gain by edge and round of arrival, in points",
        ("edge", *(f"round {number}" for number in rounds)),
        tuple(lines),
        text_columns=1,
        note="* p at most 0.05, by Holm's correction over this table.",
        name="cells",
    )
