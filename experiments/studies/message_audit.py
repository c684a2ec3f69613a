"""What do trained links carry? An audit over seeds, with two negative controls.

    python -m experiments.studies.message_audit --out docs/message-audit --seeds 0 1 2

Three teams are audited with each seed:

- trained: the positive control too. In the embedded task the answerer cannot know what earlier
  agents know.
- constant: the trained links with kernels of zero. What they send does not depend on what they
  read, so no message can carry anything; but nothing is answered either.
- lone: links trained likewise, and an answerer that needs no message
  (`experiments.embedded.lone_solver`). It answers well, and messages that carry content arrive.

With `--report-only`, finished audits are read as they are, and the report alone is written again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from experiments.embedded.lone_solver import ROLE, write_questions, write_solver
from rmas_jax.cli.run import exit_code
from rmas_jax.config import AuditConfig, BenchmarkChoice, ConfigError, RunConfig, load_config
from rmas_jax.evaluation.audit_protocol import protocol_text
from rmas_jax.evaluation.effects import CONTENT, effects, seed_effects
from rmas_jax.evaluation.rows import is_correct, metric_of
from rmas_jax.host.atomic import write_atomic
from rmas_jax.host.command_line import Parser
from rmas_jax.host.writing import check_output_folder
from rmas_jax.interop.link_files import save_links
from rmas_jax.links import Links
from rmas_jax.reporting.audit import AuditRecord, read_audit, render
from rmas_jax.reporting.results import points, split_of
from rmas_jax.reporting.table import Table
from rmas_jax.run_files import AuditFiles, RunFiles
from rmas_jax.runs.run import run

RUNS = Path("runs")
CLAIMS = {
    "trained": "is the positive control: a gain near its accuracy shows that the audit finds "
    "content where it is needed, as nobody here can answer without messages. It cannot show that "
    "the audit finds none where none is used.",
    "constant": "has messages that cannot differ: a gain around 0 shows that the audit finds none "
    "there. This team answers next to nothing, so an audit that takes any accuracy for content "
    "would pass, too.",
    "lone": "has an answerer that has learnt to answer from the question, beside messages with "
    "content: if its accuracy is high, a gain around 0 shows that accuracy is not taken for the "
    "use of messages; if it is low, nothing. It cannot show that a *partial* use would be found, "
    "and near 100 % messages have nothing left to add.",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Audits all teams with all seeds and writes their reports; returns the exit code of a run."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets the reports")
    parser.add_argument("--config", default="quickstart", metavar="FILE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="changes a field, as in run"
    )
    parser.add_argument(
        "--lone-steps", type=int, default=1000, metavar="N", help="training of the lone answerer"
    )
    parser.add_argument(
        "--lone-split", default="test", metavar="SPLIT", help="its questions: test, or test[:N]"
    )
    parser.add_argument(
        "--report-only", action="store_true", help="read the finished audits, and run nothing"
    )
    args = parser.parse_args(arguments)

    def work() -> None:
        check_output_folder(args.out, option="--out", error=ConfigError)
        study = args.out.name
        if not args.report_only:
            config = load_config(args.config, args.set)
            alone = with_lone_answerer(
                config,
                RUNS / f"{study}-lone-solver-{args.lone_steps}",
                steps=args.lone_steps,
                split=args.lone_split,
            )
            for seed in args.seeds:
                audit_teams(config, alone, study, seed)
        records = {
            team: [
                read_audit(RunFiles(RUNS / run_name(study, team, seed)).audit)
                for seed in args.seeds
            ]
            for team in CLAIMS
        }
        for name, of_team in records.items():
            write(of_team, args.out / name)
        write_atomic(args.out / "README.md", summary(records))
        print(f"report: {args.out / 'README.md'}")

    return exit_code(work)


def run_name(study: str, team: str, seed: int) -> str:
    """The name of the run of a team with one seed."""
    return f"{study}-{team}-{seed}"


def audit_teams(config: RunConfig, alone: RunConfig, study: str, seed: int) -> None:
    """Runs the three teams with one seed; finished runs are reused."""
    names = {team: run_name(study, team, seed) for team in CLAIMS}
    trained = run(audited(config, names["trained"], seed))
    path = RUNS / f"{names['constant']}.safetensors"
    save_links(path, constant_links(trained.links))
    run(untrained(trained.config, path, names["constant"]))
    run(audited(alone, names["lone"], seed))


def audited(config: RunConfig, name: str, seed: int) -> RunConfig:
    """A run with an audit."""
    evaluation = config.evaluation
    if evaluation.audit is None:
        evaluation = dataclasses.replace(evaluation, audit=AuditConfig())
    return dataclasses.replace(
        config, name=name, seed=seed, output_dir=str(RUNS), evaluation=evaluation
    )


def untrained(config: RunConfig, links: Path, name: str) -> RunConfig:
    """The same run with given links and no training."""
    return dataclasses.replace(
        config,
        name=name,
        system=dataclasses.replace(config.system, links=str(links)),
        inner=dataclasses.replace(config.inner, steps=0),
        outer=dataclasses.replace(config.outer, phases=()),
    )


def with_lone_answerer(config: RunConfig, folder: Path, *, steps: int, split: str) -> RunConfig:
    """The same team and training with the lone answerer and its questions, made in `folder`."""
    questions = write_questions(folder / "questions")
    share = write_solver(folder / ROLE, steps=steps)
    print(f"lone answerer: {share:.1%} of validation prompts exactly")
    return dataclasses.replace(
        config,
        system=dataclasses.replace(
            config.system, agents={**config.system.agents, ROLE: str(folder / ROLE)}
        ),
        data=dataclasses.replace(config.data, dataset=f"./{questions}", grader="relay"),
        evaluation=dataclasses.replace(
            config.evaluation, benchmarks=(BenchmarkChoice(name="data", splits=(split,)),)
        ),
    )


def constant_links(links: Links) -> Links:
    """Outer links whose kernels are zero: their output is the same for every input."""

    def zeroed(path: tuple[jax.tree_util.KeyEntry, ...], leaf: jax.Array) -> jax.Array:
        return jnp.zeros_like(leaf) if "kernel" in jax.tree_util.keystr(path) else leaf

    return links.replace(outer=jax.tree_util.tree_map_with_path(zeroed, links.outer))


def write(records: Sequence[AuditRecord], out: Path) -> None:
    """Writes the pooled report of a team, its protocols and its results; items stay in the runs."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "README.md", render(records))
    for record in records:
        write_atomic(
            out / f"protocol-{record.rows[0]['seed']}.json", protocol_text(record.declared)
        )
    rows = [row for record in records for row in record.rows]
    write_atomic(AuditFiles(out).results, json.dumps(rows, indent=1) + "\n")


def summary(records: dict[str, list[AuditRecord]]) -> str:
    """All teams in one table, and what each can show."""
    lines = [line for name, of_team in records.items() for line in summary_lines(name, of_team)]
    table = Table(
        "Accuracy with the true messages, and effects on all edges in all rounds",
        ("team", "questions", "seeds", "accuracy in %", "total effect", CONTENT),
        tuple(lines),
        text_columns=2,
        note="Effects in points, with intervals over questions and, from three seeds on, seeds.",
    )
    claims = "\n".join(f"- [{name}]({name}/README.md) {text}" for name, text in CLAIMS.items())
    return (
        f"# Three teams under the same audit\n\n{table.to_markdown()}\n\n{claims}\n\n"
        "A team's folder has the protocol of each seed, protocol-SEED.json, as it was declared "
        "before the training; its SHA-256 is in the team's report.\n"
    )


def summary_lines(name: str, records: Sequence[AuditRecord]) -> list[tuple[str, ...]]:
    """A line of the summary for each split of a team."""
    declared = records[0].declared
    rows = [row for record in records for row in record.rows]
    items = [item for record in records for item in record.items]
    lines = []
    for split in dict.fromkeys(map(split_of, rows)):
        own = [item for item in items if split_of(item) == split]
        metric = metric_of(next(row for row in rows if split_of(row) == split))
        arguments = own, declared["conditions"], declared["confidence"]
        found = {
            effect.name: effect.pair
            for effect in effects(*arguments, metric=metric)
            if effect.place.scope == "all"
        } | seed_effects(*arguments, metric=metric)
        true = [is_correct(item, metric) for item in own if item["method"] == "true"]
        cells = [points(found[e]) if e in found else "-" for e in ("total effect", CONTENT)]
        accuracy = f"{100 * sum(true) / len(true):.1f}"
        seeds = str(len({item["seed"] for item in own}))
        lines.append((name, str(split), seeds, accuracy, *cells))
    return lines


if __name__ == "__main__":
    sys.exit(main())
