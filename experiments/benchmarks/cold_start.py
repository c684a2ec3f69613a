"""From a fresh process to the first answer of `rmas ask`, and of `rmas serve`, in parts.

    python -m experiments.benchmarks.cold_start --out runs/cold_start

Fresh processes run in turn:

    jax         imports jax
    import      imports the command `rmas ask`, and jax
    load        imports it, and loads the quickstart's team of embedded agents
    warm        `rmas ask` with one question, with the compiled programs of an earlier process
    cold        the same with an empty compilation cache
    ready       `rmas serve` with all defaults, until all its programs are compiled and it listens
    served      the same, until it has answered one question

Links are random: they cost what trained ones do. The server's programs are those of an earlier
process, too. Answers end after at most --max-tokens tokens.
Writes cold_start.json and cold_start.md into --out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.benchmarks import harness, processes
from experiments.benchmarks.harness import Number
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
NUMBERS = {
    "repeats": Number(5, "measured, after one to warm up"),
    "max-tokens": Number(32, "of the answer"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints the table and writes it; returns the exit code."""
    args = harness.command_line("cold_start", __doc__, NUMBERS).parse_args(arguments)
    setting = harness.machine() | harness.settings(args)
    with tempfile.TemporaryDirectory() as folder:
        contenders = _contenders(Path(folder), args.max_tokens)
        seconds = harness.in_turn(contenders, repeats=args.repeats)
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


def _contenders(folder: Path, max_tokens: int) -> dict[str, Callable[[], Any]]:
    config = load_config(CONFIG)
    links = start_links(
        load_team(config.system), start="torch_default", key=jax.random.key(config.seed)
    )
    links_file = str(folder / "links.safetensors")
    save_links(links_file, to_host(links))
    ask = [
        "-m", "rmas_jax.cli", "ask", "--config", CONFIG, "--greedy",
        "--links", links_file, "--max-tokens", str(max_tokens), QUESTION,
    ]  # fmt: skip

    def asked(cache: str) -> None:
        processes.run(ask, {"XDG_CACHE_HOME": cache})

    def cold() -> None:
        with tempfile.TemporaryDirectory() as empty:
            asked(empty)

    def snippet(code: str) -> Callable[[], Any]:
        return lambda: processes.run(["-c", code])

    def served(tokens: int | None) -> None:
        """A server, until it listens, or has written so many tokens."""
        command = [sys.executable, "-m", "rmas_jax.cli", "serve", "--config", CONFIG, "--port", "0"]
        with subprocess.Popen(
            [*command, "--links", links_file],
            env=os.environ | {"XDG_CACHE_HOME": str(folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process:
            try:
                assert process.stdout is not None
                url = process.stdout.readline().split()[-1]
                if tokens:
                    _answer(url, tokens)
            finally:
                process.kill()

    parts = {name: snippet(code) for name, code in SNIPPETS.items()}
    return {
        **parts,
        "warm": lambda: asked(str(folder)),
        "cold": cold,
        "ready": lambda: served(None),
        "served": lambda: served(max_tokens),
    }


def _answer(url: str, max_tokens: int) -> None:
    """Asks a server one question."""
    messages = [{"role": "user", "content": QUESTION}]
    body = {"model": CONFIG, "messages": messages, "max_tokens": max_tokens, "temperature": 0}
    headers = {"Content-Type": "application/json"}
    path = f"{url}/v1/chat/completions"
    request = urllib.request.Request(path, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as reply:
        json.load(reply)


if __name__ == "__main__":
    sys.exit(main())
