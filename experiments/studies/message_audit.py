"""What do trained links carry? An audit, with a team of constant links as negative control.

    python -m experiments.studies.message_audit --out docs/message-audit

The trained team is the positive control too: in the embedded task the answerer cannot know what
earlier agents know. The links of the other team are the trained ones with kernels of zero: what
they send does not depend on what they read, so no message can carry anything.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from rmas_jax.cli.run import exit_code
from rmas_jax.config import AuditConfig, ConfigError, RunConfig, load_config
from rmas_jax.host.atomic import write_atomic
from rmas_jax.host.command_line import Parser
from rmas_jax.host.writing import check_output_folder
from rmas_jax.interop.link_files import save_links
from rmas_jax.links import Links
from rmas_jax.run_files import AuditFiles
from rmas_jax.runs.run import FinishedRun, run

RUNS = Path("runs")


def main(arguments: Sequence[str] | None = None) -> int:
    """Audits both teams and writes their reports; returns the exit code of a run."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets the reports")
    parser.add_argument("--config", default="quickstart", metavar="FILE")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="changes a field, as in run"
    )
    args = parser.parse_args(arguments)

    def work() -> None:
        check_output_folder(args.out, option="--out", error=ConfigError)
        trained = run(audited(load_config(args.config, args.set), f"{args.out.name}-trained"))
        path = RUNS / f"{args.out.name}-constant.safetensors"
        save_links(path, constant_links(trained.links))
        constant = run(untrained(trained.config, path, f"{args.out.name}-constant"))
        for finished, name in ((trained, "trained"), (constant, "constant")):
            write(finished, args.out / name)

    return exit_code(work)


def audited(config: RunConfig, name: str) -> RunConfig:
    """A run with an audit."""
    evaluation = config.evaluation
    if evaluation.audit is None:
        evaluation = dataclasses.replace(evaluation, audit=AuditConfig())
    return dataclasses.replace(config, name=name, output_dir=str(RUNS), evaluation=evaluation)


def untrained(config: RunConfig, links: Path, name: str) -> RunConfig:
    """The same run with given links and no training."""
    return dataclasses.replace(
        config,
        name=name,
        system=dataclasses.replace(config.system, links=str(links)),
        inner=dataclasses.replace(config.inner, steps=0),
        outer=dataclasses.replace(config.outer, phases=()),
    )


def constant_links(links: Links) -> Links:
    """Outer links whose kernels are zero: their output is the same for every input."""

    def zeroed(path: tuple[jax.tree_util.KeyEntry, ...], leaf: jax.Array) -> jax.Array:
        return jnp.zeros_like(leaf) if "kernel" in jax.tree_util.keystr(path) else leaf

    return links.replace(outer=jax.tree_util.tree_map_with_path(zeroed, links.outer))


def write(finished: FinishedRun, out: Path) -> None:
    """Copies the report of an audit, its protocol and its results; items stay in the run."""
    files, copied = AuditFiles(finished.files.audit), AuditFiles(out)
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(files.markdown, out / "README.md")
    shutil.copy(files.protocol, copied.protocol)
    rows = json.loads(files.results.read_text(encoding="utf-8"))
    write_atomic(copied.results, json.dumps(rows, indent=1) + "\n")
    print(f"report: {out / 'README.md'}")


if __name__ == "__main__":
    sys.exit(main())
