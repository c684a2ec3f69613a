"""Makes role texts for questions and answers: the texts of a team that solves the questions."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from rmas_jax.agents.answers import write_texts
from rmas_jax.agents.sampling import GREEDY, row_keys
from rmas_jax.cli.command import command_parser, exit_code_of
from rmas_jax.cli.options import add_config_options, check_limits
from rmas_jax.cli.sampling_options import SAMPLING_LIMITS, add_sampling_options, chosen_sampling
from rmas_jax.config import ConfigError, RunConfig, SystemConfig, load_config
from rmas_jax.config.limits import MAX_BATCH
from rmas_jax.config.paths import relative_paths
from rmas_jax.data.examples import Example
from rmas_jax.data.files import files_of_one_split
from rmas_jax.data.role_texts import read_files
from rmas_jax.data.rows import PARTS, choose_columns, names_of, to_example
from rmas_jax.evaluation.graders import Grader, check_golds, default_grader, find_grader
from rmas_jax.host.atomic import write_atomic
from rmas_jax.host.checksums import is_sealed_well, read_sealed, seal, write_sealed
from rmas_jax.host.json_rows import (
    FILE_LIMIT,
    append_line,
    drop_half_line,
    json_line,
    parse_line,
)
from rmas_jax.host.reading import open_regular
from rmas_jax.host.writing import check_output_file
from rmas_jax.models.generation import SamplingConfig
from rmas_jax.prompts import check_columns, take
from rmas_jax.rounds import text_channel
from rmas_jax.runs.folder import value_at, with_date
from rmas_jax.runs.identity import agent_sources, weights_digest
from rmas_jax.runs.resources import load_run_team
from rmas_jax.team import Team
from rmas_jax.team_texts import load_team_texts

DESCRIPTION = """\
Make role texts for questions and answers: the texts of a team that solves the questions.

The team of a run's configuration works on every question with messages in text, for the run's
number of training rounds, and the output of each role in each round becomes its role text. The
resulting file is training data without further settings: `data.dataset: my_role_texts.jsonl`.

The agents do not see the given answer: plans written with knowledge of the answer tend to contain
it, and links trained on such plans learn to send information that no agent has. Instead, an item is
kept if the team's answer is correct (rejection sampling), and tried again with other random numbers
if not, up to --attempts times. Items without a correct attempt are left out, so hard questions
become rarer; the last line reports the number of kept items. With --accept any, for answers that
cannot be compared, every item is kept, and the answerer's text is the given answer. An attempt with
an empty text, or a text without an end within --max-tokens, always fails.

The same command resumes an interrupted one: finished items are kept, and the others get the same
random numbers as without the interruption. The file --out has a line per kept item, --out.missed a
line per failed attempt, and --out.settings the settings of both.
"""
EXAMPLES = """\
rmas role-texts --config quickstart --questions my_questions.jsonl --out my_texts.jsonl \\
    --attempts 4 --temperature 0.7
"""
# Option -> minimum and maximum.
LIMITS = {
    "attempts": (1, 1_000_000),
    "batch_size": (1, MAX_BATCH),
    **SAMPLING_LIMITS,
}


def parser() -> argparse.ArgumentParser:
    """The command line; its `--help` is the manual."""
    out = command_parser("role-texts", DESCRIPTION, examples=EXAMPLES)
    add_config_options(out)
    out.add_argument(
        "--questions",
        required=True,
        type=Path,
        metavar="FILE",
        help="JSON, JSON lines or parquet, with a question and an answer per row",
    )
    out.add_argument("--out", required=True, type=Path, metavar="FILE.jsonl", help="output file")
    out.add_argument(
        "--accept",
        choices=("correct", "any"),
        default="correct",
        help="items to keep: those with a correct answer (by data.grader), or any (correct)",
    )
    out.add_argument("--attempts", type=int, default=1, metavar="N", help="most per item (1)")
    out.add_argument(
        "--batch-size",
        type=int,
        default=8,
        metavar="N",
        help="items per batch (8); no effect on texts",
    )
    out.add_argument("--quiet", action="store_true", help="no progress bar")
    add_sampling_options(out, max_tokens=512)
    return out


class Attempt(NamedTuple):
    """A team's texts on one item."""

    texts: dict[str, list[str]]  # role -> one per round; the answerer's last is the answer
    opening: str  # of the answer, see `answers.Texts`
    longest: int  # tokens of the longest text, including its end token


def _settings_of(path: Path) -> Path:
    """The file of the texts' settings."""
    return path.with_name(f"{path.name}.settings")


def _settings_before(path: Path) -> dict[str, Any]:
    """The settings of existing texts; empty if there are none.

    Raises:
      ConfigError: their file is damaged; the message names the remedy.
    """
    try:
        return read_sealed(_settings_of(path), error=ConfigError, way_out=_way_out(path))
    except ConfigError as error:
        raise ConfigError(f"--out {path}: {error}") from None


def _missed_of(path: Path) -> Path:
    """The file of failed attempts."""
    return path.with_name(f"{path.name}.missed")


def _way_out(path: Path) -> str:
    files = f"{_missed_of(path).name} and {_settings_of(path).name}"
    return f"choose another file, or remove it, {files}"


def dated(config: RunConfig, path: Path) -> RunConfig:
    """The configuration with a date for chat templates: its own, the first start's, or today."""
    return with_date(config, value_at(_settings_before(path), "system", "date"))


@dataclasses.dataclass(frozen=True)
class Progress:
    """The results so far, on disk: kept items and failed attempts."""

    kept_path: Path
    missed_path: Path
    kept: set[str]  # ids
    failed: collections.Counter[str]  # attempts by id

    def keep(self, row: Mapping[str, Any]) -> None:
        """Records a kept item."""
        append_line(self.kept_path, seal(row))
        self.kept.add(row["id"])

    def miss(self, name: str, reason: str) -> None:
        """Records a failed attempt at an item."""
        self.failed[name] += 1
        line = {"id": name, "attempt": self.failed[name], "reason": reason}
        append_line(self.missed_path, seal(line))


def open_progress(path: Path, settings: Mapping[str, Any]) -> Progress:
    """Opens the results of an earlier start, or makes the file of their settings.

    Raises:
      ConfigError: a file is another command's, has other settings, or is damaged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not os.path.lexists(_settings_of(path))
    before = _settings_before(path)
    if is_new and os.path.lexists(path):
        raise ConfigError(f"--out must be a new file or one of this command, got {path}")
    if not is_new and before != settings:
        differ = [name for name in settings if before.get(name) != settings[name]]
        raise ConfigError(
            f"{', '.join(differ)} must be as in {_settings_of(path)}, got other settings; "
            f"{_way_out(path)}"
        )
    if is_new:
        write_sealed(_settings_of(path), dict(settings))
    kept = {row["id"] for row in _whole_rows(path, ("id",))}
    failed: collections.Counter[str] = collections.Counter()
    for row in _whole_rows(_missed_of(path), ("id", "attempt")):
        failed[row["id"]] = max(failed[row["id"]], int(row["attempt"]))
    return Progress(path, _missed_of(path), kept, failed)


def _whole_rows(path: Path, key: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of a file of this command, one per key.

    Removes an incomplete last line from the file and, with a warning, damaged or repeated lines.
    Their items are then made again, with the same results.
    """
    if not os.path.lexists(path):
        return []
    drop_half_line(path, error=ConfigError)
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    damaged = []
    with open_regular(path, at_most=FILE_LIMIT, error=ConfigError) as file:
        for number, line in enumerate(file, start=1):
            row = parse_line(line)
            values = tuple(row.get(name) for name in key) if isinstance(row, dict) else ()
            is_whole = [type(value) for value in values] == [str, int][: len(key)]
            if is_whole and values not in rows and is_sealed_well(row):
                rows[values] = row
            else:
                damaged.append(number)
    if damaged:
        write_atomic(path, b"".join(map(json_line, rows.values())))
        print(
            f"{path}: removed {len(damaged)} damaged or repeated lines, the first: line "
            f"{damaged[0]}",
            file=sys.stderr,
        )
    return list(rows.values())


def solve(
    team: Team, prompts: Any, *, rounds: int, max_tokens: int, sampling: SamplingConfig, keys: Any
) -> list[Attempt]:
    """An attempt at each of B items."""
    topology = team.system.topology
    prompt, messages = text_channel.listen(
        topology,
        team.members,
        prompts,
        rounds=rounds,
        max_tokens=max_tokens,
        sampling=sampling,
        keys=keys,
    )
    answer = write_texts(
        team.members[topology.answerer],
        prompt,
        max_tokens=max_tokens,
        sampling=sampling,
        keys=None if keys is None else text_channel.stage_keys(keys, len(messages)),
        stage=f"round {rounds}: answer",
    )
    by_role: dict[str, list[list[str]]] = {role: [] for role in topology.order}
    for message in messages:
        by_role[message.role].append(message.texts)
    by_role[topology.answerer].append(answer.texts)
    lengths = [answer.tokens, *(message.tokens for message in messages)]
    return [
        Attempt(
            {role: [texts[i] for texts in written] for role, written in by_role.items()},
            answer.opening,
            longest,
        )
        for i, longest in enumerate(np.max(lengths, axis=0).tolist())
    ]


def judged(
    item: Example,
    attempt: Attempt,
    roles: Sequence[str],
    grade: Grader,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """The row to keep, with each text in its field of training data.

    Raises:
      ValueError: the attempt failed; the message is the reason.
    """
    texts, answerer = attempt.texts, roles[-1]
    if attempt.longest >= options.max_tokens:
        raise ValueError(f"a text must end within {options.max_tokens} tokens, got more")
    if options.accept == "any":
        texts = {role: texts[role] for role in roles if role != answerer}
    elif not grade(attempt.opening + texts[answerer][-1], item).correct:
        raise ValueError(f"answered {texts[answerer][-1]!r}")
    written = {names_of(role)[0]: by_round for role, by_round in texts.items()}
    row = {**item.fields, **{part: getattr(item, part) for part in PARTS}, **written}
    columns = choose_columns(row.keys(), roles, {}, where="the agents' texts")
    to_example(row, columns, place=item.id, rounds=1)  # checks that training can read the row
    return row


def digest_of(items: Sequence[Example]) -> str:
    """A digest of the items' ids, questions and answers, and of the columns of prompts."""
    contents = [
        [item.id, item.question, item.answer, *sorted(item.fields.items())] for item in items
    ]
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()[:16]


def batches(items: Sequence[int], size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Indices [size] of each batch and its number of items; its first item pads the last batch."""
    for start in range(0, len(items), size):
        part = items[start : start + size]
        yield np.array([*part, *[part[0]] * (size - len(part))]), len(part)


def make(options: argparse.Namespace, config: RunConfig) -> str:
    """Makes all missing texts; returns a summary line."""
    check_limits(options, LIMITS)
    check_output_file(options.out, option="--out", error=ConfigError, makes_folder=True)
    config = dated(config, options.out)
    try:
        sampling = chosen_sampling(options, GREEDY)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if options.attempts > 1 and not sampling.temperature:
        raise ConfigError(
            f"--attempts must be 1 without --temperature (greedy attempts are equal), got "
            f"{options.attempts}"
        )
    fields = {part: f for part, f in (config.data.columns or {}).items() if part in PARTS}
    files = files_of_one_split(options.questions)
    texts = load_team_texts(config.system)
    columns = sorted({name for prompt in texts.templates.values() for name in prompt.columns})
    written = {names_of(role)[0]: role for role in texts.topology.order}
    if clash := written.keys() & set(columns):
        name = min(clash)
        raise ConfigError(
            f"{config.system.prompts} must have columns of other names than the texts of roles in "
            f"--out, got {{{name}}}, where those of {written[name]} are written"
        )
    reads, bad, _ = read_files(files, roles=(), fields=fields, rounds=1, prompted=columns)
    items = [read.example for read in reads]
    rows = ((f"{options.questions}: row {item.id}", item.inputs) for item in items)
    check_columns(texts.templates, rows, source=config.system.prompts)
    names = [item.id for item in items]
    if repeated := [name for name, count in collections.Counter(names).items() if count > 1]:
        raise ConfigError(
            f"--questions {options.questions}: ids must be unique, got {repeated[0]!r} repeatedly"
        )
    name = config.data.grader or default_grader("files", config.system.task_type)
    grade = find_grader(name, where="data.grader")
    if options.accept == "correct":
        check_golds(grade, {str(options.questions): items})
    team = load_run_team(config, texts)
    progress = open_progress(
        options.out,
        {
            "questions": digest_of(items),
            "system": relative_paths(dataclasses.asdict(config.system), SystemConfig),
            "weights": weights_digest(agent_sources(config), None),
            "grader": grade.name,
            "accept": options.accept,
            "max_tokens": options.max_tokens,
            "sampling": dataclasses.asdict(sampling),
            "seed": options.seed,
        },
    )
    roles, rounds = team.system.topology.order, config.system.rounds
    prompts = team.encode([item.inputs for item in items], slot_width=options.max_tokens)

    def is_open(name: str) -> bool:
        return name not in progress.kept and progress.failed[name] < options.attempts

    bar = tqdm(
        total=len(items),
        initial=sum(not is_open(name) for name in names),
        unit="item",
        disable=options.quiet,
    )
    key = jax.random.key(options.seed)
    while pending := [i for i, name in enumerate(names) if is_open(name)]:
        for batch, count in batches(pending, options.batch_size):
            keys = None
            if sampling.temperature:  # by item and attempt, independently of the batch
                attempts = np.array([progress.failed[names[i]] for i in batch])
                keys = jax.vmap(jax.random.fold_in)(row_keys(key, batch), attempts)
            attempts_made = solve(
                team,
                take(prompts, batch),
                rounds=rounds,
                max_tokens=options.max_tokens,
                sampling=sampling,
                keys=keys,
            )
            for i, attempt in zip(batch[:count], attempts_made, strict=False):
                try:
                    progress.keep(judged(items[i], attempt, roles, grade, options))
                except ValueError as error:
                    progress.miss(names[i], str(error))
                bar.update(not is_open(names[i]))
            bar.set_postfix(kept=len(progress.kept))
    bar.close()
    left_out = f"; {len(bad)} bad rows left out, the first: {bad[0]}" if bad else ""
    kept = sum(name in progress.kept for name in names)
    return f"{options.out}: {kept} of {len(items)} items kept{left_out}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for bad input."""
    options = parser().parse_args(arguments)
    return exit_code_of(
        lambda: print(make(options, load_config(options.config, options.overrides)))
    )
