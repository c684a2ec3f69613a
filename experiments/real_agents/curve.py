"""The capacity curve on many questions: what M thoughts hold, against as many tokens of text.

    python -m experiments.real_agents.curve --out docs/real-agents/curve \\
        --links SEED_0/links/aligned.safetensors SEED_1/links/aligned.safetensors \\
        --set system.agents.planner=DIR --set system.agents.solver=DIR

For every M: text cut to M tokens, aligned links, and the links that a training of `trials` makes of
them; each with its own message, another item's, moment-matched noise; no message and zeros. Beside
them what M vectors could be, without a sender: the mean embeddings of M parts of the text, and M
positions of a text that the solver reads whole. The solver is asked about every person of a
message, and prompts are read once for all M. --links has the aligned links of each seed, from
folders of runs that differ in it. Questions are those of the test split.

    OUT/curve.json   every answer; rows that are there already, with the same settings, are kept,
                     so that further M, seeds and a training can follow
    OUT/README.md    figure and tables

The answer is right if greedy decoding would write it exactly; `capacity` measures one M in a whole
run, with answers that are written.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.real_agents.capacity import CONFIG, with_steps
from experiments.real_agents.curve_page import (
    ALIGNED,
    FIGURE,
    KEPT,
    MEANS,
    NOISE,
    NONE,
    NOTHING,
    OTHER,
    OWN,
    TEXT,
    TRAINED,
    ZEROS,
    figure,
    page,
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
from experiments.real_agents.text_states import part_means, right_of_kept
from experiments.real_agents.trials import TRIALS, trained
from rmas_jax.agents.nearest_tokens import nearest_texts
from rmas_jax.cli.run import exit_code
from rmas_jax.config import ConfigError, load_config
from rmas_jax.data import evidence
from rmas_jax.host.atomic import write_atomic
from rmas_jax.host.command_line import Parser
from rmas_jax.host.writing import check_output_folder
from rmas_jax.links import Links
from rmas_jax.rounds.messages import noise_messages
from rmas_jax.team import Team, load_links_for, load_team

REPORT = "curve.json"
LONG = ("answers", "crossed")  # entries of a row
SHOWN = 10  # messages
WITHOUT_LINKS = (TEXT, NOTHING, MEANS, KEPT)


class Key(NamedTuple):
    """What a row measures."""

    latent_steps: int  # M
    kind: str  # what sends
    seed: int | None  # of the links; None: there are none
    message: str  # what arrives


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What all rows have in common."""

    team: Team  # with any M
    known: Mapping[str, Known]  # messages of training and those to measure, by split
    split: str  # the latter
    training: str | None  # of `TRIALS`

    def rows(self, key: Key, params: Params | None) -> Iterator[tuple[Key, np.ndarray]]:
        """Answers with each message: whether they are right, [n, persons].

        Args:
          key: M, what sends, and the seed.
          params: of the links; None where there are none.
        """
        team, known = with_count(self.team, key.latent_steps), self.known[self.split]
        batches = known.batches(team)
        if key.kind == KEPT:
            yield key, right_of_kept(team, known, key.latent_steps)
            return
        if key.kind == MEANS:
            vectors = part_means(team, known.asked, key.latent_steps)
        elif key.kind in (TEXT, NOTHING):
            vectors = np.asarray(message_vectors(team, known.asked, key.latent_steps))
        else:
            assert params is not None
            vectors = sent(team, params, batches)
        if key.kind == NOTHING:
            yield key._replace(message=NONE), right(team, vectors, batches, is_there=False)
            yield key._replace(message=ZEROS), right(team, np.zeros_like(vectors), batches)
            return
        yield key._replace(message=OWN), right(team, vectors, batches)
        yield key._replace(message=OTHER), right(team, np.roll(vectors, 1, axis=0), batches)
        if key.kind in (ALIGNED, TRAINED):
            noise = noise_messages({EDGE: vectors[None]}, seed=key.seed or 0)[EDGE][0]
            yield key._replace(message=NOISE), right(team, noise.astype(vectors.dtype), batches)

    def crossed(self, key: Key, params: Params) -> list[dict[str, Any]]:
        """Of some messages the text, and the token nearest to each vector that is sent."""
        team, known = with_count(self.team, key.latent_steps), self.known[self.split]
        items, draws, persons = known.asked.shape
        batches = known.batches(team)
        enough = -(-SHOWN * len(batches) // items)
        vectors = sent(team, params, batches[:enough])[:SHOWN]
        examples = known.asked.examples[:: draws * persons]
        member = team.members[evidence.SOLVER]
        return [
            {
                "message": example.fields["message"],
                "nearest": [text for [(text, _)] in nearest_texts(member, own, count=1)],
            }
            for example, own in zip(examples, vectors, strict=False)
        ]

    def params(self, key: Key, of_seeds: Sequence[Links]) -> Params | None:
        """The links of a row: aligned ones, or trained from these."""
        if key.seed is None:
            return None
        links = of_seeds[key.seed]
        if key.kind == ALIGNED:
            return Params(links)
        assert self.training is not None
        params, _ = trained(
            self.team,
            TRIALS[self.training],
            links,
            self.known["train"],
            count=key.latent_steps,
            seed=key.seed,
        )
        return params


def keys(counts: Sequence[int], seeds: int, training: str | None) -> list[Key]:
    """What is measured: first without links, then aligned ones, then trained ones, seed by seed."""
    out = [Key(count, kind, None, OWN) for count in counts for kind in WITHOUT_LINKS]
    for kind in (ALIGNED, *([TRAINED] if training else [])):
        out += [Key(count, kind, seed, OWN) for seed in range(seeds) for count in counts]
    return out


def measure(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Adds the rows that are missing, and writes report and page after each."""
    config = load_config(args.config, args.set)
    dials = config.data.evidence
    if dials is None:
        raise ConfigError(f"{args.config}: data.evidence must be set, got nothing")
    there = {(row["latent_steps"], row["kind"], row["seed"]) for row in rows}
    missing = [
        key for key in keys(args.steps, len(args.links), args.training) if key[:3] not in there
    ]
    if not missing:
        return
    team = load_team(with_steps(config, max(args.steps)).system)
    links = [
        load_links_for(team, dataclasses.replace(config.system, links=path)) for path in args.links
    ]
    splits = {args.split: args.messages}
    if any(key.kind == TRAINED for key in missing):
        splits["train"] = args.items
    known = {
        split: read_all(
            team, questions(dials, seed=args.seed, items=items, split=split), items // args.batch
        )
        for split, items in splits.items()
    }
    measurement = Measurement(team, known, args.split, args.training)
    for key in missing:
        params = measurement.params(key, links)
        for found, exact in measurement.rows(key, params):
            answers = ["".join("01"[int(x)] for x in of) for of in exact]
            row = {**found._asdict(), **summary(exact), "answers": answers}
            if key.kind == TRAINED:
                row["trial"] = trial_of(args)
            if params is not None and found.message == OWN:
                row["crossed"] = measurement.crossed(key, params)
            rows.append(row)
            print(json.dumps({k: v for k, v in row.items() if k not in LONG}), flush=True)
        keep(args, rows)


def keep(args: argparse.Namespace, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes the report, the figure and the page."""
    args.out.mkdir(parents=True, exist_ok=True)
    report = {"settings": settings_of(args), "rows": rows}
    write_atomic(args.out / REPORT, json.dumps(report, indent=1) + "\n")
    figure(rows).savefig(args.out / FIGURE, metadata={"Software": None})
    write_atomic(args.out / "README.md", page(report))


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What all rows have in common."""
    names = ("config", "set", "split", "messages", "items", "batch", "seed")
    out = {name: getattr(args, name) for name in names}
    out["links"] = [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in args.links]
    return out


def trial_of(args: argparse.Namespace) -> dict[str, Any] | None:
    """How links are trained, as a report has it."""
    return json.loads(json.dumps(TRIALS[args.training]._asdict())) if args.training else None


def rows_there(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of an earlier report, which may have fewer seeds, fewer M or no training.

    Raises:
      ConfigError: it was made with other settings.
    """
    path, new = args.out / REPORT, settings_of(args)
    if not path.is_file():
        return []
    report = json.loads(path.read_text())
    old, trial = report["settings"], trial_of(args)
    if new["links"][: len(old["links"])] == old["links"]:
        new = {**new, "links": old["links"]}
    if others := [name for name in new if new[name] != old[name]]:
        raise ConfigError(
            f"{path}: made with other {', '.join(others)}; --out must be another folder, or these "
            "the same (of links, further ones may follow)"
        )
    # With another training, the trained links are others.
    return [row for row in report["rows"] if trial in (None, row.get("trial", trial))]


def parser() -> Parser:
    """The command line."""
    out = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--out", type=Path, required=True, metavar="DIR")
    out.add_argument("--links", nargs="+", required=True, metavar="FILE", help="of each seed")
    out.add_argument("--config", default=CONFIG, metavar="FILE")
    out.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    out.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8, 11], metavar="M")
    trials = [name for name, trial in TRIALS.items() if trial.steps]
    out.add_argument("--training", choices=trials, help="of `trials`; default: aligned links alone")
    out.add_argument("--split", choices=("validation", "test"), default="test")
    for name, default, what in (
        ("messages", 64, "of the split, with all questions about each"),
        ("items", 480, "messages of training"),
        ("batch", 8, "messages at once, a divisor of both numbers"),
        ("seed", 0, "of the messages"),
    ):
        out.add_argument(f"--{name}", type=int, default=default, help=f"{what} (%(default)s)")
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures the curve and writes its page; returns the exit code of a run."""
    args = parser().parse_args(arguments)
    if min(args.steps) < 1:
        parser().error(f"--steps must be at least 1, got {min(args.steps)}")
    for name in ("messages", "items"):
        number = getattr(args, name)
        if args.batch < 1 or number < 2 or number % args.batch:
            parser().error(f"--batch must divide --{name} ({number}), got {args.batch}")

    def work() -> None:
        check_output_folder(args.out, option="--out", error=ConfigError)
        rows = rows_there(args)
        measure(args, rows)
        keep(args, rows)

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
