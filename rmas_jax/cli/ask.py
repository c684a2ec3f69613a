"""Asks a team a question, and shows what every stage did."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rmas_jax.agents.answers import answer_retry_of
from rmas_jax.cli.asking import Asker, ask
from rmas_jax.cli.command import command_parser, exit_code_of
from rmas_jax.cli.options import add_config_options, check_limits
from rmas_jax.cli.sampling_options import SAMPLING_LIMITS, add_sampling_options, chosen_sampling
from rmas_jax.config import ConfigError, RunConfig, load_config
from rmas_jax.config.limits import (
    MAX_LATENT_STEPS,
    MAX_ROLLOUTS,
    MAX_ROUNDS,
)
from rmas_jax.data.rows import text_of
from rmas_jax.evaluation.answerer import Answerer
from rmas_jax.evaluation.answering import Answering
from rmas_jax.evaluation.methods import Method
from rmas_jax.host.atomic import append
from rmas_jax.host.errors import BAD_INPUT, USER_ERRORS, print_error, shown
from rmas_jax.host.questions import QuestionError, check_question, read_questions
from rmas_jax.host.writing import check_output_file
from rmas_jax.links import Links
from rmas_jax.models import CheckpointError
from rmas_jax.models.generation import sampling_defaults
from rmas_jax.prompts import template_with
from rmas_jax.rounds.channels import CHANNELS, LATENT, TEXT
from rmas_jax.runs.folder import TRAINED_WAY_OUT, dated, find_trained_links
from rmas_jax.runs.resources import build_toolbox, load_run_team, use_compilation_cache
from rmas_jax.team import Team, load_links_for
from rmas_jax.team_texts import TeamTexts, load_team_texts

DESCRIPTION = """\
Ask a team questions, and show what every stage did, how long it took, and what crossed the edges.

The links are those of --links, those that a run of this configuration has trained, or those that
system.links names. Tokens are chosen as the answerer's checkpoint says, greedily where it says
nothing. Questions from standard input are one per line, in UTF-8. A question that cannot be asked
is refused, the others are answered; the exit code is then 2.
"""
EXAMPLES = """\
rmas ask --config quickstart "QUESTION"
rmas ask --config quickstart --inspect 3 "QUESTION"         # the tokens nearest to each latent
rmas ask --config quickstart --channel text --rounds 2 "QUESTION"
rmas ask --config mine.yaml --column evidence_planner="TEXT" "QUESTION"   # prompts with a column
rmas ask --config quickstart --rollouts 4 --temperature 0.7 --json answers.jsonl < questions.txt
"""
MAX_REFUSALS = 10  # of questions, that are shown
# Option -> the least and the largest value.
LIMITS = {
    "rounds": (1, MAX_ROUNDS),
    "latent_steps": (0, MAX_LATENT_STEPS),
    "rollouts": (1, MAX_ROLLOUTS),
    "inspect": (0, 1_000),
    "tolerance": (0.0, 1e9),
    **SAMPLING_LIMITS,
}


Columns = dict[str, str]  # column of the prompts -> its text


def links_of(config: RunConfig, team: Team, file: str | None) -> Links:
    """The links to use.

    Raises:
      ConfigError: there are none, or the run of this name has trained those of another system.
      CheckpointError: they cannot be read, or do not fit.
    """
    trained = None if file else find_trained_links(config)
    named = file or trained or config.system.links
    if named is None:
        raise ConfigError(
            f"no links: {config.output_dir}/{config.name} has trained none, and system.links is "
            "null. Train some (rmas run --config ...), or name a file with --links"
        )
    try:
        return load_links_for(team, dataclasses.replace(config.system, links=str(named)))
    except CheckpointError as error:
        if trained is None:
            raise
        raise CheckpointError(f"{error}; {TRAINED_WAY_OUT}") from None


def chosen_columns(options: argparse.Namespace, config: RunConfig, texts: TeamTexts) -> Columns:
    """The columns of `--column`, which are those of the prompts.

    Raises:
      ConfigError: one is missing, given twice, in no prompt, or no text of a row of data.
    """
    given: Columns = {}
    allowed = sorted({name for prompt in texts.templates.values() for name in prompt.columns})
    for option in options.column:
        name, equals, text = option.partition("=")
        if not equals or name not in allowed or name in given:
            names = ", ".join(allowed) or "none"
            raise ConfigError(
                f"--column must be NAME=TEXT, once for each column of {config.system.prompts} "
                f"({names}), got {shown(option, 200)}"
            )
        try:
            given[name] = text_of({name: text}, name)
        except ValueError as error:
            raise ConfigError(f"--column {error}") from None
    for role, prompt in texts.templates.items():
        if lacking := [name for name in prompt.columns if name not in given]:
            raise ConfigError(
                f"--column {lacking[0]}=TEXT must be given, as the prompt of {role} in "
                f"{config.system.prompts} ({template_with(prompt, lacking[0])}) has "
                f"{{{lacking[0]}}}, got none"
            )
    return given


def build_answerer(options: argparse.Namespace) -> tuple[Answerer, Columns]:
    """Checks the options, then loads the team; returns the columns of its prompts, too."""
    check_limits(options, LIMITS)
    if options.json is not None:
        check_output_file(options.json, option="--json", error=ConfigError)
    for name in ("rounds", "latent_steps"):
        if (value := getattr(options, name)) is not None:
            options.overrides.append(f"system.{name}={value}")
    config = dated(load_config(options.config, options.overrides))
    if options.search and options.tavily:
        raise ConfigError("--search and --tavily: choose one")
    toolbox = build_toolbox(python=options.python, search=options.search, tavily=options.tavily)
    if config.runtime.compilation_cache:
        use_compilation_cache()
    texts = load_team_texts(config.system)
    columns = chosen_columns(options, config, texts)
    team = load_run_team(config, texts)
    default, _ = sampling_defaults(config.system.agents[team.system.topology.answerer])
    sampling = chosen_sampling(options, default)
    if options.rollouts > 1 and not sampling.temperature:
        raise ConfigError(
            f"--rollouts {options.rollouts}: greedy answers are alike; --temperature?"
        )
    method = Method(options.channel, options.channel, "", channel=options.channel)
    answerer = Answerer(
        team,
        links_of(config, team, options.links) if method.uses_links else None,
        method,
        config.system.rounds,
        Answering(
            max_tokens=options.max_tokens,
            sampling=sampling,
            rollouts=options.rollouts,
            toolbox=toolbox,
            answer_retry=None
            if options.no_answer_retry
            else answer_retry_of(config.system.task_type),
        ),
    )
    return answerer, columns


def parser() -> argparse.ArgumentParser:
    """The command line; its `--help` is the manual."""
    out = command_parser("ask", DESCRIPTION, examples=EXAMPLES)
    out.add_argument("questions", nargs="*", metavar="QUESTION", help="none: standard input")
    add_config_options(out)
    out.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="NAME=TEXT",
        help="a column of the prompts, for all questions (one option for each column)",
    )
    out.add_argument("--links", metavar="PATH", help="links as in system.links, to use instead")
    meanings = ", ".join(f"{channel.name}: {channel.meaning}" for channel in CHANNELS.values())
    out.add_argument(
        "--channel",
        choices=(*CHANNELS, TEXT),
        default=LATENT,
        help=f"what crosses edges ({meanings})",
    )
    out.add_argument("--rounds", type=int, metavar="R", help="(system.rounds)")
    out.add_argument("--latent-steps", type=int, metavar="M", help="(system.latent_steps)")
    out.add_argument(
        "--tolerance",
        type=float,
        default=0.0,
        metavar="X",
        help="go through no further round once what reaches the answerer moves by less than this "
        "share (0: all rounds)",
    )
    out.add_argument(
        "--rollouts", type=int, default=1, metavar="K", help="answers from the same latents (1)"
    )
    out.add_argument(
        "--no-answer-retry",
        action="store_true",
        help="leave a text in which system.task_type finds no answer as it is",
    )
    out.add_argument(
        "--inspect", type=int, default=0, metavar="K", help="show the K tokens next to each latent"
    )
    out.add_argument("--json", metavar="FILE", help="also append everything as a JSON line")
    tools = out.add_argument_group("tools that the answerer may call")
    tools.add_argument("--python", action="store_true", help="Python, in a sandbox")
    tools.add_argument("--search", metavar="FILE", help="a JSON-lines corpus (text, title, url)")
    tools.add_argument("--tavily", action="store_true", help="the web (key in TAVILY_API_KEY)")
    add_sampling_options(out, max_tokens=512)
    return out


def questions_of(options: argparse.Namespace) -> Iterator[str | QuestionError]:
    """The questions, of the command line or of standard input, and errors where they cannot be
    asked.

    Raises:
      QuestionError: there are none, or standard input holds something else.
    """
    if not options.questions:
        if sys.stdin is None:
            raise QuestionError("standard input must hold questions, is closed")
        questions = iter(read_questions(sys.stdin.buffer, name="standard input"))
        if (first := next(questions, None)) is None:
            raise QuestionError("standard input must hold a question per line, got none")
        yield first
        yield from questions
    for number, text in enumerate(options.questions, start=1):
        try:
            yield check_question(text, where=f"question {number}")
        except QuestionError as error:
            yield error


def ask_all(answerer: Answerer, columns: Columns, options: argparse.Namespace) -> int:
    """Asks every question that can be asked; returns how many could not."""
    refused = 0
    with Asker(answerer) as asker:
        for question in questions_of(options):
            if isinstance(question, QuestionError):
                refused += 1
                if refused <= MAX_REFUSALS:
                    print_error(question)
                continue
            account = ask(
                asker,
                question,
                columns=columns,
                seed=options.seed,
                tolerance=options.tolerance,
                inspected=options.inspect,
            )
            if options.json:
                append(Path(options.json), json.dumps(account) + "\n")
    if refused > MAX_REFUSALS:
        print_error(QuestionError(f"{refused} questions were refused, the first are named above"))
    return refused


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for bad input, also of a single question."""
    options = parser().parse_args(arguments)

    def work() -> int:
        refused = ask_all(*build_answerer(options), options)
        return BAD_INPUT if refused else 0

    return exit_code_of(work, bad_input=(*USER_ERRORS, ValueError))
