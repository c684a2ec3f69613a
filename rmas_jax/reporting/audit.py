"""The report of an audit: what the messages carry, edge by edge and round by round."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rmas_jax.evaluation.comparisons import MIN_SEEDS, SeedEffect
from rmas_jax.evaluation.effects import CONTENT, EFFECTS, Effect, Place, effects, seed_effects
from rmas_jax.evaluation.metrics import PairedDifference, repeated_interval
from rmas_jax.evaluation.rows import ItemRow, ResultRow, is_correct, metric_of
from rmas_jax.host.atomic import write_atomic
from rmas_jax.host.reading import GIBIBYTE, decode_text, parse_json, read_bytes
from rmas_jax.reporting.results import (
    count_rounds,
    metric_label,
    points,
    split_of,
    three_digits,
)
from rmas_jax.reporting.run_directory import RunFileError
from rmas_jax.reporting.table import Table
from rmas_jax.reporting.tables import ENDINGS
from rmas_jax.run_files import AuditFiles

MEANINGS = {
    "true": "the message that was sent",
    "none": "nothing: an empty slot",
    "zeros": "zeros",
    "noise": "noise with the true messages' mean and covariance at each position",
    "other": "another item's message: another question, another gold answer, the same M positions",
    "own": "the receiver's own M thoughts: the compute of one message",
}
FILE_LIMIT = 2 * GIBIBYTE


@dataclasses.dataclass(frozen=True)
class AuditRecord:
    """The content of an audit's files."""

    declared: Mapping[str, Any]  # the protocol
    digest: str  # of its text
    links: str  # digest of the links that were measured
    rows: Sequence[ResultRow]
    items: Sequence[ItemRow]


def write_audit(directory: Path) -> Path:
    """Writes the report of an audit's files as Markdown; returns its path.

    Raises:
      RunFileError: a file is missing or damaged.
    """
    path = AuditFiles(directory).markdown
    write_atomic(path, render([read_audit(directory)]))
    return path


def read_audit(directory: Path) -> AuditRecord:
    """Reads an audit's files.

    Raises:
      RunFileError: a file is missing or damaged.
    """
    files = AuditFiles(directory)
    declared_text = _text(files.protocol)
    declared = parse_json(declared_text, source=files.protocol, error=RunFileError)
    rows: list[ResultRow] = parse_json(
        _text(files.results), source=files.results, error=RunFileError
    )
    items: list[ItemRow] = [
        parse_json(line, source=files.items, error=RunFileError)
        for line in _text(files.items).splitlines()
    ]
    digest = hashlib.sha256(declared_text.encode()).hexdigest()
    return AuditRecord(declared, digest, _text(files.links).strip(), rows, items)


def _text(path: Path) -> str:
    raw = read_bytes(path, at_most=FILE_LIMIT, error=RunFileError)
    return decode_text(raw, source=str(path), error=RunFileError)


OF_A_TRAINING = ("seeds", "links_from")  # parts of a protocol in which pooled audits differ


def render(records: Sequence[AuditRecord]) -> str:
    """The report of an audit, or of the same one of several trainings, as Markdown.

    Raises:
      ValueError: see `audit_parts`.
    """
    declared = records[0].declared
    brief = dict(declared) | {"conditions": len(declared["conditions"])}
    brief |= {name: [record.declared[name] for record in records] for name in OF_A_TRAINING}
    parts = [
        "# Audit of the messages",
        *(part if isinstance(part, str) else part.to_markdown() for part in audit_parts(records)),
        "## Protocol",
        f"```json\n{json.dumps(brief, indent=1, sort_keys=True)}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def audit_parts(records: Sequence[AuditRecord]) -> Iterator[str | Table]:
    """Yields the paragraphs and tables of audits: the question, then each split.

    Raises:
      ValueError: the audits differ in more than seeds and trainings, or share a seed.
    """
    common = [{k: v for k, v in r.declared.items() if k not in OF_A_TRAINING} for r in records]
    if any(other != common[0] for other in common[1:]):
        raise ValueError("audits to pool must declare the same, but for seeds and trainings")
    for benchmark in common[0]["benchmarks"]:
        seeds = [seed for record in records for seed in record.declared["seeds"][benchmark]]
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"audits to pool must have seeds of their own, got {seeds}")
    declared = records[0].declared
    rows = [row for record in records for row in record.rows]
    items = [item for record in records for item in record.items]
    digests = "; ".join(f"{record.digest}, of the links {record.links}" for record in records)
    yield (
        f"{declared['question']} Messages are replaced at the receiver's boundary, in "
        f"{count_rounds(declared['rounds'])}; senders stay as they are. The protocol was written "
        "before anything of the run was trained or measured, and all of it is in the audit's "
        f"{AuditFiles.protocol} (SHA-256 {digests})."
    )
    for split in dict.fromkeys(map(split_of, rows)):
        own_rows = [row for row in rows if split_of(row) == split]
        own_items = [item for item in items if split_of(item) == split]
        measured = own_items, declared["conditions"], declared["confidence"]
        found = effects(*measured, metric=metric_of(own_rows[0]))
        of_seeds = seed_effects(*measured, metric=metric_of(own_rows[0]))
        seeds = sorted({item["seed"] for item in own_items})
        yield f"{split}: {decision(found, declared, of_seeds)} {_seeds(seeds)}"
        tables = (
            messages_table(own_items, declared, own_rows[0]),
            overall_table(found),
            seed_table(of_seeds, seeds),
            *place_tables(found),
            *cell_tables(found),
            ending_table(own_items, declared),
        )
        for table in filter(None, tables):
            yield dataclasses.replace(
                table, title=f"{split}: {table.title}", name=f"audit {table.name} {split}"
            )


def _seeds(seeds: Sequence[int]) -> str:
    """The seeds of a split, and what its intervals are over."""
    if len(seeds) >= MIN_SEEDS:
        return f"Seeds {', '.join(map(str, seeds))} are a random effect."
    return (
        f"Seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}: intervals are over questions; "
        f"seeds are a random effect from {MIN_SEEDS} on, and greedy answers of one training are "
        "alike for all."
    )


def decision(
    found: Sequence[Effect], declared: Mapping[str, Any], of_seeds: Mapping[str, SeedEffect]
) -> str:
    """The declared rule, applied; with the intervals over seeds, where there are some."""
    questions = {e.name: e.pair.items for e in found if e.place.scope == "all"}
    of_all: dict[str, PairedDifference | SeedEffect] = {
        e.name: e.pair for e in found if e.place.scope == "all"
    }
    of_all.update(of_seeds)
    if CONTENT not in of_all:
        return "Not decided: other items' messages on all edges were not measured."
    pair, margin = of_all[CONTENT], declared["margin"]
    if pair.interval.low > margin:
        verdict = "Content is used"
    elif pair.interval.high < margin or pair.interval.low <= 0 <= pair.interval.high:
        verdict = "No use of content was found"
    else:
        verdict = "Content is used, by less than the declared margin"
    over = f" and {of_seeds[CONTENT].seeds} seeds" if CONTENT in of_seeds else ""
    sentence = (
        f"{verdict}: the content-attributable gain is {points(pair)} points on "
        f"{questions[CONTENT]} questions{over} (rule: its interval lies above {100 * margin:.1f})."
    )
    if total := of_all.get("total effect"):
        parts = f" The total effect of {points(total)}"
        if a_message := of_all.get("effect of a message"):
            parts += f" = {points(a_message)} for a message + {points(pair)} for this one"
        sentence += f"{parts}."
    return sentence


def messages_table(items: Sequence[ItemRow], declared: Mapping[str, Any], row: ResultRow) -> Table:
    """Accuracy, endings and cost by message, where it arrives on all edges in all rounds.

    Args:
      items: of one split.
      declared: the protocol.
      row: one of the split's, for its metric.
    """
    answers = {
        message: found
        for (place, message), found in _by_condition(items, declared).items()
        if place.scope == "all"
    }
    lines = []
    for message, meaning in MEANINGS.items():
        if found := answers.get(message):
            # Draws of other items, and seeds, are repeated answers to a question.
            given: dict[str | int, list[bool]] = {}
            for item in found:
                given.setdefault(item["id"], []).append(is_correct(item, metric_of(row)))
            right, counts = map(sum, given.values()), map(len, given.values())
            low, high = repeated_interval([*right], [*counts], declared["confidence"])
            share = fmean(is_right for of_item in given.values() for is_right in of_item)
            accuracy = f"{100 * share:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
            steps = three_digits(fmean(item["steps"] for item in found))
            gigaflops = three_digits(fmean(item["flops"] / 1e9 for item in found))
            cells = (str(len(found)), accuracy, *_endings(found), steps, gigaflops)
            lines.append((message, meaning, *cells))
    label = metric_label(row)
    return Table(
        f"{label.capitalize()} by message, on all edges in all rounds",
        ("message", "meaning", "answers", f"{label} in %", *ENDINGS.values(), "steps", "GFLOP"),
        tuple(lines),
        text_columns=2,
        note="Endings are of all rollouts. Steps and GFLOP are per item, of all that the answer "
        "depends on: another item's message costs what the true one does, zeros and noise nothing, "
        "and the receiver's own thoughts those of one message, without the senders before it.",
        name="messages",
    )


def ending_table(items: Sequence[ItemRow], declared: Mapping[str, Any]) -> Table | None:
    """How answers ended where messages arrived at single places; None if all ended well."""
    lines = []
    for (place, message), found in _by_condition(items, declared).items():
        counts = _endings(found)
        if place.scope != "all" and set(counts) != {"0"}:
            lines.append((_place(place), message, str(len(found)), *counts))
    if not lines:
        return None
    return Table(
        "How answers ended with messages at single places",
        ("where", "message", "answers", *ENDINGS.values()),
        tuple(lines),
        text_columns=2,
        note="Endings are of all rollouts. Places and messages that are not listed have none.",
        name="endings",
    )


def _by_condition(
    items: Sequence[ItemRow], declared: Mapping[str, Any]
) -> dict[tuple[Place, str], list[ItemRow]]:
    """Items by place and message: all draws and seeds."""
    found: dict[tuple[Place, str], list[ItemRow]] = {}
    for item in items:
        condition = declared["conditions"][item["method"]]
        place = Place(condition["edge"], condition["round"])
        found.setdefault((place, condition["message"]), []).append(item)
    return found


def _endings(items: Sequence[ItemRow]) -> list[str]:
    """For each of `ENDINGS`, the number of rollouts that ended so."""
    given: list[Mapping[str, Any]] = [r for item in items for r in item.get("rollouts", [item])]
    return [str(sum(bool(r.get(name, r["outcome"] == name)) for r in given)) for name in ENDINGS]


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


def seed_table(found: Mapping[str, SeedEffect], seeds: Sequence[int]) -> Table | None:
    """Effects on all edges in all rounds, by seed and over seeds; None with too few of them."""
    if not found:
        return None
    return Table(
        "The same, with seeds as a random effect",
        ("effect", *(f"seed {seed}" for seed in seeds), "all", "deviation between seeds"),
        tuple(
            (
                name,
                *(f"{100 * of_seed:+.1f}" for of_seed in effect.by_seed),
                points(effect),
                f"{100 * effect.seed_deviation:.1f}",
            )
            for name, effect in found.items()
        ),
        note="In points. The interval covers new questions and new seeds.",
        name="seeds",
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
STAR_OF_CELLS = "* p at most 0.05, by Holm's correction over this table."


def _starred(effect: Effect) -> str:
    return points(effect.pair) + "*" * (effect.adjusted <= 0.05)


def _place(place: Place) -> str:
    parts = [place.edge] if place.edge else []
    parts += [f"round {place.round}"] if place.round else []
    return " ".join(parts)


def cell_tables(found: Sequence[Effect]) -> list[Table]:
    """For each effect, a table of edges by rounds of arrival."""
    tables = []
    for name in EFFECTS:
        cells = {e.place: e for e in found if e.place.scope == "cell" and e.name == name}
        edges = list(dict.fromkeys(place.edge for place in cells))
        rounds = sorted({place.round for place in cells if place.round})
        lines = []
        for edge in edges:
            of_edge = [cells.get(Place(edge, number)) for number in rounds]
            lines.append((str(edge), *("-" if e is None else _starred(e) for e in of_edge)))
        if lines:
            title = f"{name[0].upper()}{name[1:]} by edge and round of arrival, in points"
            header = ("edge", *(f"round {number}" for number in rounds))
            tables.append(
                Table(title, header, tuple(lines), note=STAR_OF_CELLS, name=f"cells {name}")
            )
    return tables
