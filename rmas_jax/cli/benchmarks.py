"""Lists the shipped benchmarks; shows one, and loads its questions."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from rmas_jax.cli.command import command_parser, exit_code_of
from rmas_jax.config import DEFAULT_ANSWERS, BenchmarkConfig
from rmas_jax.config.benchmark import PASS_AT_K
from rmas_jax.data.sources import LOCAL
from rmas_jax.evaluation.benchmarks import find_benchmark, grader_of, shipped
from rmas_jax.evaluation.benchmarks.loading import checksum_of, load_benchmark
from rmas_jax.evaluation.graders import check_golds
from rmas_jax.host.yaml_files import Dumper
from rmas_jax.reporting.table import Table

DESCRIPTION = f"""\
List the benchmarks that `evaluation.benchmarks` can name; or, with a name, print all of its
definition. With --load, read its questions: from a folder called as its source below ${LOCAL}, or
else from the hub; print their number and checksum, and the first one; and check that they are those
of the definition and that the grader can read the gold answers, as a run does.
"""
EXAMPLES = """\
rmas benchmarks
rmas benchmarks GPQA-Diamond
rmas benchmarks mine.yaml --load
"""
HEADER = ("name", "items", "grader", "metric", "tokens", "T", "top-p", "source", "licence")
WIDTH = 200  # of a line, so that no name is cut
NOTE = "* `rmas benchmarks NAME` says how to get the data. T: temperature of drawn answers."


def table() -> Table:
    """All shipped benchmarks."""
    rows = []
    for benchmark in shipped().values():
        sampling = benchmark.sampling.over(DEFAULT_ANSWERS)
        licence = (benchmark.licence or "-").partition(";")[0].partition(" (")[0]
        cells = (
            benchmark.name,
            " + ".join(map(str, (benchmark.items or {}).values())) or "-",
            benchmark.data.grader or "-",
            metric_of(benchmark),
            str(sampling.max_new_tokens),
            f"{sampling.temperature:g}",
            f"{sampling.top_p:g}",
            benchmark.data.dataset,
            licence + " *" * bool(benchmark.access),
        )
        rows.append(cells)
    return Table("Benchmarks", HEADER, tuple(rows), text_columns=len(HEADER))


def metric_of(benchmark: BenchmarkConfig) -> str:
    """The headline number of a benchmark, in words."""
    k = benchmark.sampling.rollouts
    return f"pass@{k}" if benchmark.metric == PASS_AT_K else benchmark.metric


def show(name: str, *, load: bool) -> None:
    """Prints a benchmark's definition; with `load`, its questions' number and checksum.

    Raises:
      InputError: there is no such benchmark, its questions cannot be had or are not those of its
        checksum, or its grader cannot be used or reads none of the gold answers of a split.
    """
    benchmark = find_benchmark(name, where="NAME")
    tree = _set(dataclasses.asdict(benchmark))
    print(yaml.dump(tree, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100), end="")
    if load:
        with tempfile.TemporaryDirectory() as folder:
            data = load_benchmark(benchmark, Path(folder))
            splits = {split: data.load(split) for split in benchmark.splits}
            for split, examples in splits.items():
                checksum, first = checksum_of(examples), min(examples, key=lambda item: item.id)
                compared = " as defined" if split in (benchmark.checksum or {}) else ""
                print(
                    f"\n{split}: {len(examples)} items, checksum {checksum}{compared}; the first:"
                )
                print(first.question, f"gold answer: {first.answer}", sep="\n")
        check_golds(grader_of(benchmark), splits)


def _set(tree: Any) -> Any:
    """A tree without unset values."""
    if not isinstance(tree, dict):
        return tree
    return {name: _set(value) for name, value in tree.items() if value not in (None, (), {})}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for bad input."""
    parser = command_parser("benchmarks", DESCRIPTION, examples=EXAMPLES)
    parser.add_argument(
        "name", metavar="NAME", nargs="?", help="a benchmark of the list, or a YAML file of one"
    )
    parser.add_argument("--load", action="store_true", help="read the questions of NAME")
    options = parser.parse_args(arguments)
    if options.load and options.name is None:
        parser.error("--load must follow a NAME")
    if options.name is None:
        return exit_code_of(lambda: print(table().to_text(WIDTH), NOTE, sep="\n\n"))
    return exit_code_of(lambda: show(options.name, load=options.load))
