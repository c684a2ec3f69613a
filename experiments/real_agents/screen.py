"""Screens the generators of `reasoning-gym`: the share of questions that an agent alone answers.

    python -m experiments.real_agents.screen --model FILE --out DIR

Questions are those of the validation split, answers are greedy, and only the verifier's full score
counts as right. Generators whose prompts are longer than --max-prompt-tokens are named and left
out before any question is answered. Each other generator is a benchmark of one batch or more, and
all share a team, so that programs compile once for each declared width.

    OUT/screen.json   every answer; generators that are there already, with the same settings, are
                      kept, so that others can follow
    OUT/README.md     shares, and the generators within --low and --high
    OUT/answers       the record of answers, from which an interrupted screen resumes
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from experiments.real_agents.options import add_numbers, rows_of_earlier
from experiments.real_agents.screen_page import page
from experiments.real_agents.skill_card import weight_digests
from rmas_jax.agents.answers import answer_retry_of
from rmas_jax.cli.run import exit_code, log_to_stderr
from rmas_jax.config import ConfigError, DataConfig, RunConfig, load_config
from rmas_jax.config.data import GENERATED
from rmas_jax.data import Example, reasoning
from rmas_jax.data.rows import DataError
from rmas_jax.evaluation.answering import Answering
from rmas_jax.evaluation.driver import LoadedBenchmark, evaluate
from rmas_jax.evaluation.graders import find_grader
from rmas_jax.evaluation.methods import SINGLE_AGENTS
from rmas_jax.evaluation.rows import ItemRow
from rmas_jax.host.atomic import write_atomic
from rmas_jax.host.command_line import Parser
from rmas_jax.host.json_rows import read_json_rows
from rmas_jax.host.writing import check_output_folder
from rmas_jax.models import load_tokenizer
from rmas_jax.run_files import RunFiles
from rmas_jax.runs.resources import answering_team, load_run_team, use_compilation_cache
from rmas_jax.team import Team, start_links

CONFIG = str(Path(__file__).parents[1] / "configs/real_agents/screen.yaml")
REPORT, ANSWERS = "screen.json", "answers"
ROLE, SPLIT, GRADER = "solver", "validation", "reasoning"
SETTINGS = ("set", "items", "max_prompt_tokens", "max_new_tokens", "seed")
KEPT = ("question", "gold", "text", "correct", "at_limit")  # of an answer
BATCH = 16  # rows at once


def screened(args: argparse.Namespace, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of an earlier report, and those of the generators that it lacks."""
    names = dict.fromkeys(args.generators or all_generators())
    there = {row["generator"] for row in rows}
    if not (missing := [name for name in names if name not in there]):
        return rows
    config = configuration(args)
    if config.runtime.compilation_cache:
        use_compilation_cache()
    team = answering_team(load_run_team(config), config)
    fitting, left_out = [], []
    for name in missing:
        examples, reason = questions(name, args)
        tokens = longest_prompt(team, examples)
        if not reason and tokens > args.max_prompt_tokens:
            reason = f"a prompt of {tokens} tokens"
        row: dict[str, Any] = {
            "generator": name,
            "prompt_tokens": tokens,
            "left_out": reason,
        }
        if reason:
            left_out.append(row)
            print(f"{name}: left out: {reason}", file=sys.stderr)
        else:
            fitting.append((row, examples))
    # The longest first, so that a lack of memory shows at once.
    fitting.sort(key=lambda pair: -pair[0]["prompt_tokens"])
    found = answered(config, team, {row["generator"]: asked for row, asked in fitting}, args)
    return [
        *rows,
        *({**row, "answers": found[row["generator"]]} for row, _ in fitting),
        *({**row, "answers": []} for row in left_out),
    ]


def configuration(args: argparse.Namespace) -> RunConfig:
    """The configuration of the agent, its prompts and its numbers."""
    agent = json.dumps({ROLE: args.model})
    return load_config(args.config, [f"system.agents={agent}", *args.set])


def all_generators() -> list[str]:
    """The names of all generators that can be made without settings."""
    from reasoning_gym.factory import DATASETS  # an extra

    return sorted(name for name in DATASETS if name != "composite")  # which mixes others


def check_generators(names: Sequence[str]) -> None:
    """Checks that there are generators of these names.

    Raises:
      ConfigError: there is none of a name.
    """
    known = all_generators()
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"--generators must be among {', '.join(known)}, got {unknown[0]}")


def questions(generator: str, args: argparse.Namespace) -> tuple[list[Example], str]:
    """Validation questions of a generator; without any, the reason."""
    config = DataConfig(
        dataset=GENERATED,
        generators={generator: 1},  # of the test split, which is not screened
        splits={SPLIT: args.items},
        seed=args.seed,
    )
    try:
        splits, _ = reasoning.read(config, [ROLE])
    except DataError as error:
        return [], f"no question: {error}"
    return splits[SPLIT], ""


def longest_prompt(team: Team, examples: Sequence[Example]) -> int:
    """Tokens of the longest prompt, chat template included."""
    if not examples:
        return 0
    prompt = team.encode([example.inputs for example in examples])[ROLE]
    lengths = prompt.prefix_valid.sum(-1) + prompt.body_valid[:, 0].sum(-1)
    return int(lengths.max())


def answered(
    config: RunConfig,
    team: Team,
    asked: Mapping[str, Sequence[Example]],
    args: argparse.Namespace,
) -> dict[str, list[dict[str, Any]]]:
    """Generator -> graded answers; those in the record are not written again."""
    grader = find_grader(GRADER, where="the grader")
    prompts = {role: member.template for role, member in team.members.items()}
    retries = config.evaluation.answer_retry
    answering = Answering(
        max_tokens=args.max_new_tokens,
        answer_retry=answer_retry_of(config.system.task_type) if retries else None,
    )
    benchmarks = [
        LoadedBenchmark(name, grader.name, grader, {SPLIT: examples}, prompts, answering)
        for name, examples in asked.items()
    ]
    links = start_links(team, start="torch_default", key=jax.random.key(0))  # which nothing uses
    folder = args.out / ANSWERS
    evaluate(
        team,
        links,
        links,
        benchmarks,
        folder,
        methods=[SINGLE_AGENTS],
        rounds=[1],
        batch_size=min(BATCH, args.items),
        seeds=[0],
        progress=config.runtime.progress,
    )
    return {name: [*of] for name, of in by_generator(folder).items() if name in asked}


def by_generator(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Generator -> what is kept of its answers in a record."""
    read = read_json_rows(RunFiles(folder).items, error=ConfigError)
    items: Iterable[ItemRow] = sorted((row for _, row in read), key=lambda row: row["benchmark"])
    return {
        name: [{field: item[field] for field in KEPT} for item in of]  # type: ignore[literal-required]
        for name, of in itertools.groupby(items, key=lambda row: row["benchmark"])
    }


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """All on which answers depend, but the generators."""
    model = Path(args.model)
    return {
        "model": weight_digests(model) if model.exists() else args.model,
        "release": metadata.version(GENERATED),
        "config": Path(args.config).name,
        **{name: getattr(args, name) for name in SETTINGS},
    }


def rows_there(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of an earlier report.

    Raises:
      ConfigError: it was made with other settings.
    """
    may_differ = "generators may follow, and --low and --high change"
    return [*(rows_of_earlier(args.out / REPORT, settings_of(args), but=may_differ) or ())]


def keep(args: argparse.Namespace, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes the report and the page."""
    args.out.mkdir(parents=True, exist_ok=True)
    report = {"settings": settings_of(args), "rows": rows}
    write_atomic(args.out / REPORT, json.dumps(report, indent=1) + "\n")
    write_atomic(args.out / "README.md", page(report, low=args.low, high=args.high))


def parser() -> Parser:
    """The command line."""
    out = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--model", required=True, help="a GGUF file, a directory or a hub id")
    out.add_argument("--out", type=Path, required=True, metavar="DIR")
    out.add_argument("--generators", nargs="+", metavar="NAME", help="default: all")
    out.add_argument("--config", default=CONFIG, metavar="FILE")
    out.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    add_numbers(
        out,
        ("items", 8, "questions of a generator"),
        ("max-prompt-tokens", 128, "of a prompt with its chat template"),
        ("max-new-tokens", 32, "of an answer"),
        ("seed", 42, "of the questions, data.seed of a run"),
    )
    for name, default in (("low", 10.0), ("high", 80.0)):
        text = "of right answers in %%, of generators that are selected (%(default)g)"
        out.add_argument(f"--{name}", type=float, default=default, help=f"{name}est share {text}")
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Screens, and writes the report and its page; returns the exit code of a run."""
    args = parser().parse_args(arguments)
    if not 0 <= args.low <= args.high <= 100:
        parser().error(f"--low must be from 0 to --high, got {args.low:g} and {args.high:g}")
    log_to_stderr()

    def work() -> None:
        check_output_folder(args.out, option="--out", error=ConfigError)
        find_grader(GRADER, where="the grader")  # whether its package is there
        check_generators(args.generators or ())
        rows = rows_there(args)
        configuration(args)  # whether it is usable, and its agent there
        load_tokenizer(args.model, needs_chat_template=False)
        keep(args, rows)  # the settings, so that a start with others is refused
        keep(args, screened(args, rows))

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
