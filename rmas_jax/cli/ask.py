"""Asks a team a question, and shows what every stage did."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rmas_jax.agents.answers import answer_retry_of
from rmas_jax.agents.nearest_tokens import nearest_tokens
from rmas_jax.agents.reading import PromptInput
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
from rmas_jax.evaluation.answering import Answering, Prompts
from rmas_jax.evaluation.methods import Method
from rmas_jax.host.atomic import append
from rmas_jax.host.compilations import compilations
from rmas_jax.host.errors import BAD_INPUT, USER_ERRORS, print_error, shown
from rmas_jax.host.questions import QuestionError, check_question, read_questions
from rmas_jax.host.writing import check_output_file
from rmas_jax.links import Links
from rmas_jax.models import CheckpointError
from rmas_jax.models.generation import sampling_defaults
from rmas_jax.prompts import template_with
from rmas_jax.rounds.channels import CHANNELS, LATENT, TEXT, Channel
from rmas_jax.rounds.trace import trace_rounds
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


class Step(NamedTuple):
    """A line of the account: a stage, or the answer."""

    round: int  # from 1
    role: str
    did: str
    seconds: float
    compiled: bool  # whether the seconds include compilation


Columns = dict[str, str]  # column of the prompts -> its text
# What the answer is written from, its round, and what went before it.
Stages = tuple[PromptInput, int, list[Step], list[dict[str, Any]]]


def ask(
    answerer: Answerer,
    question: str,
    *,
    columns: Mapping[str, str] | None = None,
    seed: int,
    tolerance: float = 0.0,
    inspected: int = 0,
) -> dict[str, Any]:
    """The account of a question: answers, steps, and what crossed the edges.

    Args:
      answerer: over a channel, or in text.
      question: any text.
      columns: of the prompts.
      seed: of drawn answers.
      tolerance: of the early stop; not in text.
      inspected: tokens shown per latent.
    """
    prompts = answerer.encode([{**(columns or {}), "question": question}])
    if (channel := answerer.channel) is None:
        prompt, rounds, steps, crossed = text_stages(answerer, prompts)
    else:
        prompt, rounds, steps, crossed = latent_stages(
            answerer, channel, prompts, tolerance=tolerance, inspected=inspected
        )
    answers = []
    for keys in answerer.keys(seed, np.arange(1)):
        known, started = compilations(), time.perf_counter()
        written = answerer.write(prompt, keys)
        seconds = time.perf_counter() - started
        did = f"answers: {written.tokens[0]} tokens"
        did += f", {written.calls[0]} tool calls" if answerer.answering.toolbox else ""
        did += ", tried again" if written.retried[0] else ""
        steps.append(Step(rounds, answerer.answers_as, did, seconds, compilations() > known))
        answers.append(written.opening + written.texts[0])
    return {
        "question": question,
        "columns": dict(columns or {}),
        "answers": answers,
        "steps": [step._asdict() for step in steps],
        "crossed": crossed,
    }


def latent_stages(
    answerer: Answerer, channel: Channel, prompts: Prompts, *, tolerance: float, inspected: int
) -> Stages:
    """The rounds over a channel of vectors, stage by stage."""
    team, system = answerer.team, answerer.system
    trace = trace_rounds(
        system,
        team.agents,
        channel,
        prompts,
        rounds=answerer.rounds,
        tolerance=tolerance,
    )
    rounds = len(trace.change) or answerer.rounds
    steps, crossed = [], []
    for stage in trace.stages:
        by = "no token" if stage.sweeps is None else f"{stage.sweeps[0]} sweeps"
        did = f"thinks: {system.latent_steps} latents, {by}"
        steps.append(Step(stage.round + 1, stage.role, did, stage.seconds, stage.compiled))
        for name, vectors in stage.sent.items():
            crossed.append({"round": stage.round + 1, "edge": name})
            if inspected:
                crossed[-1]["nearest"] = nearest_texts(team, name, vectors[0], count=inspected)
    for index, change in enumerate(trace.change[1:], start=2):
        crossed.append({"round": index, "change": float(change[0])})
    return trace.prompt, rounds, steps, crossed


def nearest_texts(
    team: Team, edge: str, vectors: np.ndarray, *, count: int
) -> list[list[tuple[str, float]]]:
    """Per latent of an edge, the receiver's tokens nearest to it and their cosines."""
    receiver = team.members[edge.partition("->")[2]]
    found = nearest_tokens(receiver.agent, vectors, count=count)
    decode = receiver.tokenizer.decode
    return [
        [(decode([token]), round(near, 3)) for token, near in zip(*row, strict=True)]
        for row in zip(*(x.tolist() for x in jax.device_get(found)), strict=True)
    ]


def text_stages(answerer: Answerer, prompts: Prompts) -> Stages:
    """The rounds in text."""
    known = compilations()
    listened = answerer.listen(prompts)
    compiled = compilations() > known
    steps, crossed = [], []
    for message in listened.messages:
        place = message.round + 1, message.role
        steps.append(Step(*place, f"writes: {message.tokens[0]} tokens", message.seconds, compiled))
        crossed.append({"round": place[0], "role": place[1], "text": message.texts[0]})
    return listened.prompt, answerer.rounds, steps, crossed


def show(account: dict[str, Any], *, inspect: bool) -> None:
    """Prints an account."""
    steps = [Step(**step) for step in account["steps"]]
    print(f"\n{account['question']}\n")
    for step in steps:
        note = "  (compilation included)" if step.compiled else ""
        print(f"  round {step.round}  {step.role:<12} {step.did:<32} {step.seconds:8.3f} s{note}")
    print(f"  all      {'':<12} {'':<32} {sum(step.seconds for step in steps):8.3f} s")
    for item in account["crossed"]:
        if "change" in item:
            print(
                f"  round {item['round']}: what reaches the answerer moved by {item['change']:.3f}"
            )
        elif "text" in item:
            print(f"  round {item['round']}, {item['role']}: {item['text']!r}")
        elif inspect:
            print(f"  round {item['round']}, {item['edge']}:")
            for i, tokens in enumerate(item["nearest"], start=1):
                print(f"    {i:3}  " + "  ".join(f"{text!r} {near:.2f}" for text, near in tokens))
    for answer in account["answers"]:
        print(f"\n{answer}")


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
    for question in questions_of(options):
        if isinstance(question, QuestionError):
            refused += 1
            if refused <= MAX_REFUSALS:
                print_error(question)
            continue
        account = ask(
            answerer,
            question,
            columns=columns,
            seed=options.seed,
            tolerance=options.tolerance,
            inspected=options.inspect,
        )
        show(account, inspect=bool(options.inspect))
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
