"""From a fresh process to the first answer of `rmas ask`, in parts.

    python -m experiments.benchmarks.cold_start --out runs/cold_start

Fresh processes run in turn:

    jax         imports jax
    import      imports the command `rmas ask`, and jax
    load        imports it, and loads the quickstart's team of embedded agents
    warm        `rmas ask` with one question, with the compiled programs of an earlier process
    cold        the same with an empty compilation cache

Links are random: they cost what trained ones do. Answers end after at most --max-tokens tokens.
Writes cold_start.json and cold_start.md into --out.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from experiments.benchmarks import harness
from rmas_jax.config import load_config
from rmas_jax.interop.link_files import save_links
from rmas_jax.sharding import to_host
from rmas_jax.team import load_team, start_links

CONFIG = "quickstart"
QUESTION = (
    "The pass phrase Gagul Suvor goes through eight gates, red, green and blue in turn. "
    "What does it read then?"
)
LOAD = """
from rmas_jax.cli import ask
from rmas_jax.config import load_config
from rmas_jax.runs.resources import load_run_team
load_run_team(load_config("quickstart"))
"""
SNIPPETS = {"jax": "import jax", "import": "import rmas_jax.cli.ask", "load": LOAD}


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints the table and writes it; returns the exit code."""
    out = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.cold_start",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    out.add_argument("--repeats", type=int, default=5, metavar="N", help="measured (5)")
    out.add_argument("--max-tokens", type=int, default=32, metavar="N", help="of the answer (32)")
    out.add_argument("--out", type=Path, required=True, help="folder for the report")
    args = out.parse_args(arguments)
    if min(args.repeats, args.max_tokens) < 1:
        print("error: --repeats and --max-tokens must be at least 1", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        contenders = _contenders(Path(folder), args.max_tokens)
        seconds = harness.in_turn(contenders, repeats=args.repeats)
    setting = harness.machine() | {"max_tokens": args.max_tokens, "repeats": args.repeats}
    report: dict[str, Any] = {"setting": setting, "seconds": seconds}
    page = markdown(report)
    harness.write_report(args.out, "cold_start", report, page)
    print(page)
    return 0


def markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    setting = report["setting"]
    rows = []
    for name, of in report["seconds"].items():
        times = harness.summary(of)
        rows.append((name, f"{times.median:.2f}", f"{times.low:.2f} to {times.high:.2f}"))
    lines = [
        f"# Cold start, {setting['cores']} cores, {setting['device']}",
        "",
        f"{setting['repeats']} interleaved repeats; jax {setting['jax']}, load "
        f"{setting['load_before']:.1f} before the start; answers of up to {setting['max_tokens']} "
        "tokens.",
        "",
        *harness.markdown_table(("process", "median s", "range"), rows),
        "",
    ]
    return "\n".join(lines)


def _contenders(folder: Path, max_tokens: int) -> dict[str, Callable[[], None]]:
    config = load_config(CONFIG)
    links = start_links(
        load_team(config.system), start="torch_default", key=jax.random.key(config.seed)
    )
    save_links(folder / "links.safetensors", to_host(links))
    ask = [
        sys.executable, "-m", "rmas_jax.cli", "ask", "--config", CONFIG, "--greedy",
        "--links", str(folder / "links.safetensors"), "--max-tokens", str(max_tokens), QUESTION,
    ]  # fmt: skip

    def asked(cache: str) -> None:
        _run(ask, {"XDG_CACHE_HOME": cache})

    def cold() -> None:
        with tempfile.TemporaryDirectory() as empty:
            asked(empty)

    def snippet(code: str) -> Callable[[], None]:
        return lambda: _run([sys.executable, "-c", code])

    parts = {name: snippet(code) for name, code in SNIPPETS.items()}
    return {**parts, "warm": lambda: asked(str(folder)), "cold": cold}


def _run(command: list[str], environment: dict[str, str] | None = None) -> None:
    subprocess.run(
        command, check=True, env=os.environ | (environment or {}), capture_output=True, text=True
    )


if __name__ == "__main__":
    sys.exit(main())
