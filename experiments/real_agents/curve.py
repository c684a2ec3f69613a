"""The capacity curve: what M thoughts hold, against as many tokens of text.

    python -m experiments.real_agents.curve --out docs/real-agents/curve \\
        --links SEED_0/links/aligned.safetensors SEED_1/links/aligned.safetensors \\
        --set system.agents.planner=DIR --set system.agents.solver=DIR --training states answers

For every M: text cut to M tokens, aligned links, and the links that trainings of `trials` make of
them; each with its own message, another item's, moment-matched noise; no message and zeros. Beside
them what M vectors could be, without a sender: the mean embeddings of M parts of the text, the
first tokens of its first M words, and M positions of a text that the solver reads whole. The solver
is asked about every person of a message, and prompts are read once for all M. --links has the
aligned links of each seed, from folders of runs of experiments/configs/real_agents/curve.yaml that
differ in it. Questions are those of the test split.

    OUT/curve.json   every answer; rows that are there already, with the same settings, are kept,
                     so that further M, seeds and trainings can follow
    OUT/README.md    figure and tables, also of `free_vectors`, `probe` and `trials`, if their
                     reports are in OUT, and of the agents' skills

The answer is right if greedy decoding would write it exactly. With --report-only, the page is made
anew from the reports alone, without agents and links.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.real_agents import free_vectors, probe, trials
from experiments.real_agents.curve_page import FIGURE, Beside, figure, page
from experiments.real_agents.curve_rows import (
    ALIGNED,
    FIRST,
    KEPT,
    MEANS,
    NOISE,
    NONE,
    NOTHING,
    OTHER,
    OWN,
    WITHOUT_LINKS,
    ZEROS,
    trainings_of,
)
from experiments.real_agents.free_vectors import message_vectors, questions
from experiments.real_agents.messages import (
    EDGE,
    Known,
    Params,
    read_all,
    right,
    sent,
    summary,
    with_count,
)
from experiments.real_agents.options import (
    add_numbers,
    at_least,
    check_batch,
    configured,
    digests,
    links_of_seeds,
    measurement_parser,
    read_report,
    rows_of_earlier,
    settings_of,
    skills_of,
    with_steps,
    write_report,
)
from experiments.real_agents.text_states import first_tokens, part_means, right_of_kept
from experiments.real_agents.trials import TRIALS, defined, definition, trained
from rmas_jax.agents.nearest_tokens import nearest_texts
from rmas_jax.cli.run import exit_code
from rmas_jax.config import ConfigError, RunConfig
from rmas_jax.data import evidence
from rmas_jax.host.atomic import write_atomic
from rmas_jax.host.command_line import Parser
from rmas_jax.host.writing import check_output_folder
from rmas_jax.links import Links
from rmas_jax.rounds.messages import noise_messages
from rmas_jax.team import Team, load_team

log = logging.getLogger(__name__)
REPORT = "curve.json"
LONG = ("answers", "crossed")  # entries of a row
SHOWN = 10  # messages


class Key(NamedTuple):
    """What a row measures."""

    latent_steps: int  # M
    kind: str  # what sends; the name of a training of `TRIALS` where it made the links
    seed: int | None  # of the links; None: there are none
    message: str = OWN  # what arrives


class Answered(NamedTuple):
    """What came of one kind of message."""

    key: Key
    exact: np.ndarray  # [n, persons], whether answers are right
    vectors: np.ndarray | None = None  # [n, M, D], own messages of links


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What all rows have in common."""

    team: Team  # with any M
    known: Mapping[str, Known]  # messages of training and those to measure, by split
    split: str  # the latter
    links: Sequence[Links]  # aligned ones, by seed

    def rows(self, key: Key) -> Iterator[dict[str, Any]]:
        """The rows of an M, what sends, and a seed: one for each message that arrives."""
        for found, exact, vectors in self.answers(key):
            marks = ["".join("01"[int(x)] for x in of) for of in exact]
            row = {**found._asdict(), **summary(exact), "answers": marks}
            if key.kind not in (*WITHOUT_LINKS, ALIGNED):
                row["trial"] = definition(key.kind)
            if vectors is not None:
                row["crossed"] = self.crossed(vectors)
            yield row

    def answers(self, key: Key) -> Iterator[Answered]:
        """Answers with each message that arrives."""
        team, known = with_count(self.team, key.latent_steps), self.known[self.split]
        batches = known.batches(team)
        if key.kind == KEPT:
            yield Answered(key, right_of_kept(team, known, key.latent_steps))
            return
        if key.seed is not None:
            vectors = sent(team, self.params(key), batches)
        elif key.kind == MEANS:
            vectors = part_means(team, known.asked, key.latent_steps)
        elif key.kind == FIRST:
            vectors = first_tokens(team, known.asked, key.latent_steps)
        else:
            vectors = np.asarray(message_vectors(team, known.asked, key.latent_steps))
        if key.kind == NOTHING:
            absent = right(team, vectors, batches, is_there=False)
            yield Answered(key._replace(message=NONE), absent)
            zeros = right(team, np.zeros_like(vectors), batches)
            yield Answered(key._replace(message=ZEROS), zeros)
            return
        own = right(team, vectors, batches)
        yield Answered(key, own, None if key.seed is None else vectors)
        other = right(team, np.roll(vectors, 1, axis=0), batches)
        yield Answered(key._replace(message=OTHER), other)
        if key.seed is not None:
            noise = noise_messages({EDGE: vectors[None]}, seed=key.seed)[EDGE][0]
            of_noise = right(team, noise.astype(vectors.dtype), batches)
            yield Answered(key._replace(message=NOISE), of_noise)

    def crossed(self, vectors: np.ndarray) -> list[dict[str, Any]]:
        """Of some messages the text, and the token nearest to each vector that was sent."""
        asked = self.known[self.split].asked
        _, draws, persons = asked.shape
        member = self.team.members[evidence.SOLVER]
        return [
            {
                "message": example.fields["message"],
                "nearest": [text for [(text, _)] in nearest_texts(member, own, count=1)],
            }
            for example, own in zip(
                asked.examples[:: draws * persons], vectors[:SHOWN], strict=False
            )
        ]

    def params(self, key: Key) -> Params:
        """The links of a row: aligned ones, or trained from these."""
        assert key.seed is not None
        links = self.links[key.seed]
        if key.kind == ALIGNED:
            return Params(links)
        trial, known = TRIALS[key.kind], self.known["train"]
        return trained(self.team, trial, links, known, count=key.latent_steps, seed=key.seed)[0]


def keys(args: argparse.Namespace) -> list[Key]:
    """What is measured: first without links, then aligned ones, then training by training."""
    seeds = range(len(args.links))
    out = [Key(count, kind, None) for count in args.steps for kind in WITHOUT_LINKS]
    out += [Key(count, ALIGNED, seed) for seed in seeds for count in args.steps]
    counts = args.trained_steps or args.steps
    out += [Key(count, name, seed) for name in args.training for seed in seeds for count in counts]
    return [*dict.fromkeys(out)]


def measure(args: argparse.Namespace) -> None:
    """Adds the rows that are missing, and writes report and page after those of each key."""
    config, dials = configured(args)
    rows = rows_there(args, config)
    report = {"settings": own_settings(args, config), "skills": skills_of(config), "rows": rows}
    there = {(row["latent_steps"], row["kind"], row["seed"]) for row in rows}
    missing = [key for key in keys(args) if key[:3] not in there]
    if not missing:
        keep(args.out, report)
        return
    team = load_team(with_steps(config, max(args.steps)).system)
    links = links_of_seeds(team, config, args.links)
    splits = {args.split: args.messages}
    if any(key.kind in args.training for key in missing):
        splits["train"] = args.items
    known = {
        split: read_all(
            team, questions(dials, seed=args.seed, items=items, split=split), items // args.batch
        )
        for split, items in splits.items()
    }
    measurement = Measurement(team, known, args.split, links)
    for key in missing:
        for row in measurement.rows(key):
            rows.append(row)
            print(json.dumps({k: v for k, v in row.items() if k not in LONG}), flush=True)
        keep(args.out, report)


def keep(out: Path, report: Mapping[str, Any]) -> None:
    """Writes a report and its page."""
    write_report(out / REPORT, report)
    write_page(out, report)


def write_page(out: Path, report: Mapping[str, Any]) -> None:
    """Writes the figure and the page of a report, with what lies beside it."""
    own = report["settings"].get("agents")

    def beside_it(name: str) -> dict[str, Any] | None:
        found = read_report(out / name)
        if found and found["settings"].get("agents") != own:
            log.warning("%s is of other agents, and not on the page", out / name)
            return None
        return found

    beside = Beside(
        bound=(beside_it(free_vectors.REPORT) or {}).get("rows", ()),
        probe=(beside_it(probe.REPORT) or {}).get("rows", ()),
        trials=beside_it(trials.REPORT),
    )
    drawn, text = io.BytesIO(), page(report, beside)
    figure(report["rows"], beside.bound).savefig(drawn, metadata={"Software": None})
    write_atomic(out / FIGURE, drawn.getvalue())
    write_atomic(out / "README.md", text)


def own_settings(args: argparse.Namespace, config: RunConfig) -> dict[str, Any]:
    """What all rows have in common."""
    of_options = settings_of(args, config, "split", "messages", "items", "batch", "seed")
    return {**of_options, "links": digests(args.links)}


def rows_there(args: argparse.Namespace, config: RunConfig) -> list[dict[str, Any]]:
    """The rows of an earlier report, which may have fewer seeds, fewer M or other trainings.

    Rows of a training that is wanted, but had another definition, are left out.

    Raises:
      ConfigError: it was made with other settings.
    """
    path, settings = args.out / REPORT, own_settings(args, config)
    if (report := read_report(path)) is None:
        return []
    old = report["settings"]["links"]
    if settings["links"][: len(old)] == old:
        settings["links"] = old
    rows = rows_of_earlier(path, settings, but="of links, further ones may follow")
    changed = {
        name
        for name, trial in trainings_of(rows).items()
        if name in args.training and defined(trial) != TRIALS[name]
    }
    return [row for row in rows if row["kind"] not in changed]


def parser() -> Parser:
    """The command line."""
    out = measurement_parser(__doc__)
    out.add_argument("--links", nargs="+", default=[], metavar="FILE", help="of each seed")
    counts = [1, 2, 4, 8, 11]
    out.add_argument("--steps", type=at_least(1), nargs="+", default=counts, metavar="M")
    out.add_argument(
        "--training",
        nargs="+",
        choices=[name for name, trial in TRIALS.items() if trial.steps],
        default=[],
        help="of `trials`; default: aligned links alone",
    )
    out.add_argument(
        "--trained-steps", type=int, nargs="+", metavar="M", help="of --steps; default: all"
    )
    out.add_argument("--split", choices=("validation", "test"), default="test")
    add_numbers(
        out,
        ("messages", 64, "of the split, with all questions about each"),
        ("items", 480, "messages of training"),
        ("batch", 16, "messages at once, a divisor of both numbers"),
        ("seed", 0, "of the messages"),
    )
    out.add_argument("--report-only", action="store_true", help="make the page anew")
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures the curve and writes its page; returns the exit code of a run."""
    args = parser().parse_args(arguments)
    check(args)

    def work() -> None:
        check_output_folder(args.out, option="--out", error=ConfigError)
        if not args.report_only:
            measure(args)
        elif (report := read_report(args.out / REPORT)) and report["rows"]:
            write_page(args.out, report)
        else:
            raise ConfigError(
                f"--out must have a {REPORT} with rows for --report-only, got {args.out}"
            )

    return exit_code(work)


def check(args: argparse.Namespace) -> None:
    """Ends with an error where options do not fit each other."""
    if not args.links and not args.report_only:
        parser().error("--links must name a file for each seed, got none")
    if further := {*(args.trained_steps or ())} - {*args.steps}:
        parser().error(f"--trained-steps must be of --steps, got {sorted(further)}")
    check_batch(parser(), args, "messages", "items")


if __name__ == "__main__":
    sys.exit(main())
