"""Tunes a pretrained agent on its role's own part of split evidence, checks it, and saves it.

    python -m experiments.real_agents.skills --role planner --out runs/real_agents/skills/planner \\
        --model ~/.cache/rmas_jax/real_agents/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

Linear layers are trained by low-rank updates, which are merged (--kind full: all weights), on rows
of this role alone: its evidence, the question and the message that it would receive, and as the
answer its own text. Of the checkpoints, the one of lowest validation loss counts. It is measured on
the validation split, whose persons, places and codes are others than those of training, beside the
agent that was downloaded. Test questions are not read.

    OUT/tuning   the run: curves, results, report; the same command resumes it
    OUT/model    the agent, with a card: a Hugging Face folder, for `system.agents` of a team

An agent that writes fewer than 95 % of the validation texts exactly is too weak for a team: exit
code 1, and OUT/model is written only with --allow-weak, which its card then says.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.real_agents.fetch import sha256_of
from experiments.real_agents.skill_card import (
    GATE,
    RECORD,
    SHOWN,
    Share,
    Skill,
    card,
    licence_of,
    notices_beside,
    weight_digests,
)
from rmas_jax.cli.command import exit_code_of
from rmas_jax.cli.run import log_to_stderr
from rmas_jax.config import ConfigError, EvidenceConfig, RunConfig, load_config
from rmas_jax.evaluation.rows import ItemRow
from rmas_jax.host.command_line import Parser
from rmas_jax.host.preemption import sigterm_noted
from rmas_jax.models import load_tokenizer
from rmas_jax.runs.run import TUNING, FinishedRun, run
from rmas_jax.runs.tuned_model import save_tuned_model

CONFIG = Path(__file__).parents[1] / "configs/real_agents/skill.yaml"
ROLES = ("planner", "solver")
KINDS = ("lora", "full")
MODEL, README = "model", "README.md"
TOO_WEAK = 1  # exit code
TRAINED = {  # kind -> what it changes, for the card
    "lora": "matrices of linear layers, by merged low-rank updates (rank {rank}, alpha {alpha:g}); "
    "embeddings and norms are unchanged",
    "full": "all weights",
}
TOKENS_OF_AN_ENTITY, TOKENS_OF_A_PAIR = 16, 12  # at most, in any of the vocabularies


def parser() -> Parser:
    """The command line."""
    out = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--role", required=True, choices=ROLES, help="whose part it learns")
    out.add_argument("--model", required=True, help="a GGUF file, a directory or a hub id")
    out.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of this skill")
    out.add_argument(
        "--kind",
        choices=KINDS,
        default=KINDS[0],
        help="low-rank updates, or all weights, with a tenth of the learning rate (%(default)s)",
    )
    out.add_argument("--steps", type=int, help="of tuning")
    out.add_argument("--batch", type=int, help="rows of a step")
    out.add_argument("--learning-rate", type=float, help="the largest one")
    out.add_argument("--seed", type=int, help="of the order of batches")
    out.add_argument(
        "--evidence",
        nargs="+",
        default=[],
        metavar="DIAL=VALUE",
        help="of data.evidence, such as asked=false pairs=4",
    )
    out.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="FIELD=VALUE",
        help="any other field of experiments/configs/real_agents/skill.yaml",
    )
    out.add_argument(
        "--allow-weak", action="store_true", help=f"also save an agent below {100 * GATE:g} %%"
    )
    return out


def configuration(args: argparse.Namespace) -> RunConfig:
    """The configuration of the run.

    Raises:
      ConfigError: an option is not usable; names the field.
      CheckpointError: the model has no usable tokenizer.
    """
    named = {
        "tuning.0.kind": args.kind,
        "evaluation.methods": f"[single_agents, answerer_{args.kind}]",
        "tuning.0.steps": args.steps,
        "tuning.0.batch_size": args.batch,
        "tuning.0.learning_rate": args.learning_rate,
        "seed": args.seed,
    }
    given = [
        f"system.agents={json.dumps({args.role: args.model})}",
        f"system.topology=lone_{args.role}",
        f"output_dir={json.dumps(str(args.out))}",
        *(f"{field}={value}" for field, value in named.items() if value is not None),
        *(f"data.evidence.{dial}" for dial in args.evidence),
    ]
    if any(dial.partition("=")[0] == "role" for dial in args.evidence):
        raise ConfigError("--evidence must not name role, which --role does")
    given.append(f"data.evidence.role={args.role}")
    dials = load_config(CONFIG, [*given, *args.overrides]).data.evidence
    assert dials is not None  # the file has them
    given += [
        f"system.prompts={'evidence_skill' if dials.asked else 'evidence_blind_skill'}",
        f"evaluation.sampling.max_new_tokens={longest_text(args.role, dials)}",
    ]
    if not load_tokenizer(args.model, needs_chat_template=False).chat_template:
        given.append(f"system.chat_templates={{{args.role}: plain}}")  # a base model
    config = load_config(CONFIG, [*given, *args.overrides])
    methods = {"single_agents", f"answerer_{args.kind}"}
    if (
        {*config.system.agents} != {args.role}
        or [entry.kind for entry in config.tuning] != [args.kind]
        or not methods <= {*(config.evaluation.methods or ())}
    ):
        raise ConfigError(
            f"--set must leave the agent of {args.role}, one tuning ({args.kind}) and the methods "
            f"{' and '.join(sorted(methods))}, which the card needs"
        )
    return config


def longest_text(role: str, dials: EvidenceConfig) -> int:
    """Most tokens of a role's text, with some to spare."""
    sends_all = role == "planner" and not dials.asked
    return TOKENS_OF_A_PAIR * dials.pairs if sends_all else TOKENS_OF_AN_ENTITY


def share_of(items: Sequence[ItemRow]) -> Share:
    """The exact texts among answers."""
    return Share(sum(map(is_exact, items)), len(items))


def is_exact(item: ItemRow) -> bool:
    """Whether a text is the wanted one, but for spaces around it."""
    return item["text"].strip() == item["gold"]


def skill_of(finished: FinishedRun) -> Skill:
    """What the files of a finished run say of the skill."""
    config, measured = finished.config, finished.measured
    [(role, source)], [entry] = config.system.agents.items(), config.tuning
    dials = config.data.evidence
    assert dials is not None and entry.steps is not None and entry.batch_size is not None
    own = [item for item in measured.items if item["method"] == entry.name]
    before = [item for item in measured.items if item["method"] != entry.name]
    rows: Sequence[Mapping[str, Any]] = [
        row for row in measured.metrics if row["series"] == entry.name
    ]
    speeds = [row["items_per_second"] for row in rows if "items_per_second" in row]
    digests, seconds = weight_digests(Path(source)), measured.timings[TUNING]
    return Skill(
        role=role,
        trained=TRAINED[entry.kind].format(rank=entry.rank, alpha=entry.alpha),
        source=Path(source).name if Path(source).exists() else source,
        sha256=digests,
        licence=licence_of(digests, [*notices_beside(Path(source))]),
        chat_template=(config.system.chat_templates or {}).get(role, "its own"),
        evidence={
            name: value for name, value in dataclasses.asdict(dials).items() if name != "test"
        },
        data_seed=config.data.seed,
        seed=config.seed,
        steps=entry.steps,
        batch_size=entry.batch_size,
        learning_rate=entry.learning_rate,
        schedule=entry.schedule,
        seconds=seconds,
        seconds_per_step=entry.batch_size / statistics.median(speeds)
        if speeds
        else seconds / entry.steps,
        peak_gib=max(row["host_bytes"] for row in rows) / 2**30,
        tuned=share_of(own),
        downloaded=share_of(before),
        wrong=[(i["question"], i["text"], i["gold"]) for i in own if not is_exact(i)][:SHOWN],
        adapter_sha256=sha256_of(finished.files.adapter(entry.name)),
    )


def save(skill: Skill, finished: FinishedRun, path: Path) -> None:
    """Writes the agent with its card, unless it is there already.

    Raises:
      CheckpointError: the path has something else.
    """
    record = json.dumps(skill.as_json(), indent=2).encode()
    if (path / RECORD).is_file() and (path / RECORD).read_bytes() == record:
        return
    notices = notices_beside(Path(finished.config.system.agents[skill.role]))
    files = {
        README: card(skill, [*notices]).encode(),
        RECORD: record,
        **notices,
    }
    save_tuned_model(finished.files.root, finished.config.tuning[0].name, path, files=files)


def tune(args: argparse.Namespace) -> int:
    """Runs, reports and saves; returns the exit code."""
    finished = run(configuration(args))
    skill = skill_of(finished)
    print(
        f"{skill.role}, {skill.source}: {skill.tuned} exact on validation (as downloaded "
        f"{skill.downloaded}); {skill.steps} steps, {skill.seconds:.0f} s, "
        f"{skill.seconds_per_step:.2f} s a step, {skill.peak_gib:.1f} GiB"
    )
    if not skill.passes:
        print(
            f"too weak: at least {100 * GATE:g} % of validation texts must be exact, got "
            f"{skill.tuned}",
            file=sys.stderr,
        )
        if not args.allow_weak:
            print("no model is written (--allow-weak writes it)", file=sys.stderr)
            return TOO_WEAK
    path = args.out / MODEL
    save(skill, finished, path)
    print(path)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 1 for a weak agent, or one of `rmas run`."""
    args = parser().parse_args(arguments)
    log_to_stderr()

    def work() -> int:
        with sigterm_noted():
            return tune(args)

    return exit_code_of(work)


if __name__ == "__main__":
    sys.exit(main())
