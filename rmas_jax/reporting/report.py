"""The report of a run: what is in it, in which order, and its files."""

from __future__ import annotations

import functools
import io
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from rmas_jax.config.benchmark import ACCURACY
from rmas_jax.evaluation import methods
from rmas_jax.evaluation.gradients import COMPARED
from rmas_jax.evaluation.rows import ItemRow, ResultRow
from rmas_jax.host.atomic import write_atomic
from rmas_jax.reporting import figures, paired, tables
from rmas_jax.reporting.audit import audit_parts, read_audit
from rmas_jax.reporting.claims import check_claims
from rmas_jax.reporting.items import crossing_tables, item_table, shown_items
from rmas_jax.reporting.judged import judge_table
from rmas_jax.reporting.page import (
    Block,
    Bullets,
    Claims,
    Code,
    Items,
    Picture,
    Section,
    TableBlock,
    Text,
    render_html,
    render_markdown,
)
from rmas_jax.reporting.results import (
    Result,
    Results,
    Split,
    count_rounds,
    three_digits,
)
from rmas_jax.reporting.run_directory import GradientRow, Run, read_run
from rmas_jax.reporting.table import Table
from rmas_jax.rounds.channels import CHANNELS
from rmas_jax.run_files import RunFiles

STEP = "report"  # of a run; its time is not reported


def write_report(run_dir: str | Path) -> Path:
    """Writes `report.html`, `report.md`, `figures/*.png` and `tables/*.csv` into a run directory.

    Names parts whose files are missing. Renders everything before it writes.

    Returns:
        The path of `report.html`.

    Raises:
        RunFileError: a file of the run cannot be read; see `read_run`.
    """
    return write(read_run(run_dir))


def write(run: Run) -> Path:
    """`write_report` of a loaded run; writes only changed files."""
    title = f"Run {run.directory.resolve().name}"
    sections = build_sections(run)
    page, markdown = render_html(title, sections), render_markdown(title, sections)

    pictures = [b for section in sections for b in section.blocks if isinstance(b, Picture)]
    files = RunFiles(run.directory)
    if pictures:
        files.figures.mkdir(exist_ok=True)
    for picture in pictures:
        _put(files.figure(picture.name), picture.png)
    blocks = [block for section in sections for block in section.blocks]
    tables = [block.table for block in blocks if isinstance(block, TableBlock | Items)]
    if tables:
        files.tables.mkdir(exist_ok=True)
    for name, table in _named(tables).items():
        _put(files.table(name), table.to_csv().encode())
    _put(files.markdown, markdown.encode())
    _put(files.report, page.encode())
    return files.report


def _named(tables: Sequence[Table]) -> dict[str, Table]:
    """Tables by the stem of their files; equal stems are numbered."""
    named: dict[str, Table] = {}
    for table in tables:
        names = itertools.chain([table.stem], (f"{table.stem}-{n}" for n in itertools.count(2)))
        named[next(name for name in names if name not in named)] = table
    return named


def _put(path: Path, content: bytes) -> None:
    """Writes a file if its content differs: a finished run may be on a read-only disk."""
    if not (path.is_file() and path.read_bytes() == content):
        write_atomic(path, content)


def headline(results: Results) -> list[str]:
    """One sentence per split: accuracy of both channels over rounds, and the latent cost."""
    return [_headline(results, split) for split in results.splits]


def build_sections(run: Run) -> list[Section]:
    """The content of a report, in order, for both renderings."""
    rows, items = run.results, run.items
    results = Results(rows, items)
    sections = [
        Section("Result", [Text(sentence) for sentence in headline(results)]),
        Section("What holds", _claims(results)),
        Section("Accuracy", _accuracy(rows, items, results)),
        Section("Cost", _cost(rows)),
        Section("Scores", list(map(TableBlock, paired.score_tables(results)))),
        Section("Item by item", list(map(TableBlock, paired.paired_tables(results)))),
        Section("What the messages carry", _audit(run.audits)),
        Section("What crosses the edges", list(map(TableBlock, crossing_tables(items)))),
        Section("Difficulty", _difficulty(results, items)),
        Section("Seeds", _table(functools.partial(tables.seed_table, results), rows)),
        Section("Training", _picture("training", figures.training_figure, run.metrics)),
        Section("Gradients", _gradients(run.gradients)),
        Section("Items", [Items(item_table(items), shown_items(items))] if items else []),
        Section("Environment", _mapping("Environment", run.environment)),
        Section("Configuration", _code(RunFiles.config, run.config)),
        Section("Timings", _timings(run.timings)),
    ]
    if run.notes:
        sections.insert(0, Section("Not in this report", [Bullets(tuple(run.notes))]))
    return [section for section in sections if section.blocks]


def _headline(results: Results, split: Split) -> str:
    latent = results.over_rounds(split, methods.LATENT)
    text = results.over_rounds(split, methods.TEXT)
    curves = [
        f"{label} {_curve(curve)}"
        for label, curve in (("latent thoughts", latent), ("text", text))
        if curve
    ]
    if not curves:
        return f"On {split}, neither the latent nor the text channel was measured."
    metric = results.metric(split)
    tried = "" if metric == ACCURACY else f" in one of several tries ({metric})"
    sentence = f"On {split}, agents answer correctly{tried} with {'; with '.join(curves)}."
    shared = [rounds for rounds in latent if rounds in text]
    if not shared:
        return sentence
    ours, theirs = latent[shared[-1]], text[shared[-1]]
    ratios = [
        f"{cost / base:.2f}x the {what} ({three_digits(cost)} against {three_digits(base)}{unit})"
        for what, unit, cost, base in (
            ("generated tokens", "", ours.tokens, theirs.tokens),
            ("time", " s", ours.seconds, theirs.seconds),
        )
        if base
    ]
    if not ratios:
        return sentence
    at = count_rounds(shared[-1])
    return f"{sentence} Per item, latent at {at} needs {' and '.join(ratios)} of text."


def _curve(curve: dict[int, Result]) -> str:
    points = (
        f"{100 * r.accuracy:.1f} % [{100 * r.interval.low:.1f}, {100 * r.interval.high:.1f}]"
        for r in curve.values()
    )
    return f"{' → '.join(points)} at {count_rounds(*curve)}"


def _claims(results: Results) -> list[Block]:
    if not results.splits:
        return []
    claims = check_claims(results)
    blocks: list[Block] = []
    if measured := tuple(claim for claim in claims if claim.is_measured):
        rule = (
            "Verdicts compare point estimates. If two methods are compared by item, these data "
            "settle their order where the 95 % interval of the difference excludes 0. Otherwise "
            "disjoint intervals of the two accuracies settle it; overlapping ones leave it open."
        )
        blocks += [Claims(measured), Text(rule)]
    if others := [claim for claim in claims if not claim.is_measured]:
        why = tuple(f"{claim.statement} ({claim.findings[0].numbers})" for claim in others)
        blocks += [Text("Not measured:"), Bullets(why)]
    return blocks


def _accuracy(rows: Sequence[ResultRow], items: Sequence[ItemRow], results: Results) -> list[Block]:
    if not rows:
        return []
    return [
        *_picture("accuracy", figures.accuracy_figure, results),
        *map(TableBlock, tables.accuracy_tables(results)),
        *_table(functools.partial(tables.rollout_table, results), rows),
        *_table(functools.partial(judge_table, rows), items),
        TableBlock(tables.benchmark_table(rows)),
        TableBlock(tables.method_table(rows)),
    ]


def _cost(rows: Sequence[ResultRow]) -> list[Block]:
    drawn = [r for r in rows if r["method"] in (methods.LATENT, methods.TEXT, methods.TRUNCATED)]
    picture = _picture("cost", figures.cost_figure, Results(drawn)) if drawn else []
    return [*picture, *map(TableBlock, tables.cost_tables(Results(rows)))]


def _audit(directories: Sequence[Path]) -> list[Block]:
    """The audit of a run, or of several that are pooled."""
    if not directories:
        return []
    parts = audit_parts([read_audit(directory) for directory in directories])
    return [Text(part) if isinstance(part, str) else TableBlock(part) for part in parts]


def _difficulty(results: Results, items: Sequence[ItemRow]) -> list[Block]:
    """Empty if all items are equally difficult, as in data without difficulties."""
    if len({item["difficulty"] for item in items}) < 2:
        return []
    drawn = [item for item in items if item["method"] in (methods.LATENT, methods.TEXT)]
    picture = _picture("difficulty", figures.difficulty_figure, drawn)
    return [*picture, *map(TableBlock, tables.difficulty_tables(results, items))]


def _gradients(gradients: Sequence[GradientRow]) -> list[Block]:
    return _picture("gradients", figures.gradient_figure, gradients)


_CAPTIONS = {
    "accuracy": "Accuracy (or pass@k) against rounds, with 95 % Wilson intervals.",
    "cost": "Cost per item against rounds, mean over all items of all benchmarks and splits.",
    "difficulty": "Accuracy by difficulty: "
    f"{methods.describe(methods.LATENT).label} and {methods.describe(methods.TEXT).label}.",
    "training": "Training curves.",
    "gradients": "Gradient norm of each link by round, over two channels (log scale): "
    + "; ".join(f"{name}, {CHANNELS[name].meaning}" for name in COMPARED)
    + ".",
}


def _picture(name: str, draw: Callable[[Any], Figure], data: Any) -> list[Block]:
    if not data:
        return []
    figure = draw(data)
    svg, png = io.BytesIO(), io.BytesIO()
    # Without a salt and a date two reports of the same run would differ.
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(svg, format="svg", metadata={"Date": None})
    figure.set_layout_engine("none")  # keeps the layout: computing it is slow
    figure.savefig(png, format="png")
    return [Picture(name, _CAPTIONS[name], svg.getvalue(), png.getvalue())]


def _table(build: Callable[[Any], Table | None], data: Any) -> list[Block]:
    table = build(data)
    return [TableBlock(table)] if table else []


def _mapping(title: str, mapping: dict[str, Any]) -> list[Block]:
    if not mapping:
        return []
    lines = tuple(
        (str(key), value if isinstance(value, str) else json.dumps(value))
        for key, value in mapping.items()
    )
    return [TableBlock(Table(title, ("name", "value"), lines, text_columns=2, name=title))]


def _code(title: str, text: str) -> list[Block]:
    return [Code(title, text, "yaml")] if text.strip() else []


def _timings(timings: dict[str, float]) -> list[Block]:
    timings = {step: seconds for step, seconds in timings.items() if step != STEP}
    if not timings:
        return []
    lines = [(step, three_digits(seconds)) for step, seconds in timings.items()]
    lines.append(("sum", three_digits(sum(timings.values()))))
    table = Table("Wall time per step", ("step", "seconds"), tuple(lines), name="timings")
    return [TableBlock(table)]
