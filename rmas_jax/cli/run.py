"""Runs an experiment from a configuration file to a report.

    python experiments/run.py --config experiments/configs/quickstart.yaml
    python experiments/run.py --config ... --set name=longer --set outer.phases.0.steps=400
    python experiments/run.py --config ... --dry_run
    python experiments/run.py --config ... --coordinator HOST:PORT --processes 2 --process 0

Stages run in order, and one that is finished is not run again: data, inner loop, outer loop (its
phases resume from their checkpoints), evaluation (resumes row by row), report. Everything is
written under OUTPUT_DIR/NAME; a run of which all is finished is only read. SIGTERM ends a run in
good order; the same command goes on. Several processes, one per host, run as one: the first writes,
and any may get the signal. Where `system.links` names links, training starts from those, and the
inner loop leaves the outer ones alone; without training they are evaluated as they are.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from rmas_jax.cli.options import (
    DIVERGED,
    PREEMPTED,
    add_config_options,
    add_process_options,
    join_processes,
)
from rmas_jax.config import ConfigError, RunConfig, field_help, load_config
from rmas_jax.data import Dataset
from rmas_jax.evaluation.driver import evaluate
from rmas_jax.evaluation.entrants import planned_methods
from rmas_jax.evaluation.gradients import gradient_norms
from rmas_jax.evaluation.record import lost
from rmas_jax.host.atomic import write_atomic
from rmas_jax.host.checksums import seal
from rmas_jax.host.command_line import Parser
from rmas_jax.host.errors import BAD_INPUT, USER_ERRORS, describe, full_disk
from rmas_jax.host.json_rows import json_line
from rmas_jax.host.preemption import PreemptedError, sigterm_noted
from rmas_jax.host.processes import broadcast_from_first, first_then_others, is_first, on_all
from rmas_jax.interop.link_files import load_links, save_links
from rmas_jax.models import CheckpointError
from rmas_jax.reporting.report import REPORT, write
from rmas_jax.reporting.results import Results
from rmas_jax.reporting.run_directory import read_run
from rmas_jax.reporting.tables import terminal_table
from rmas_jax.runs.folder import MEASURED, TRAINED_WAY_OUT, RunFolder, RunStep, dated, with_date
from rmas_jax.runs.identity import weights_digest
from rmas_jax.runs.plan import describe_run
from rmas_jax.runs.resolve import (
    Inputs,
    encode,
    encode_inner,
    encode_outer,
    find_data,
    learned_fields,
    make_output_dir,
    read_inputs,
)
from rmas_jax.runs.resources import use_compilation_cache
from rmas_jax.sharding import to_host
from rmas_jax.team import Team, check_prompts, start_links, write_release
from rmas_jax.topology import load_topology
from rmas_jax.training.curves import open_curves
from rmas_jax.training.divergence import DivergedError, as_divergence
from rmas_jax.training.inner.loop import run_inner_loop
from rmas_jax.training.outer.loop import run_phase
from rmas_jax.training.states.cache import StateCache

ALIGNED, TRAINED = "links/aligned.safetensors", "links/trained.safetensors"
INNER = RunStep.of_files("inner loop", ALIGNED)
OUTER = RunStep.of_files("outer loop", TRAINED)
GRADIENTS = RunStep.of_files("gradient norms", "gradients.json")
log = logging.getLogger("rmas_jax")


def planned_steps(config: RunConfig) -> list[RunStep]:
    """The steps of a run, in order."""
    chosen = {name: getattr(config.evaluation, name) for name in MEASURED}
    entrants = planned_methods(
        config.evaluation.methods,
        config.evaluation.rounds,
        order=load_topology(config.system.topology).order,
        latent_steps=config.system.latent_steps,
    )
    splits = config.evaluation.splits
    expected = [(*entrant, split, config.seed) for entrant in entrants for split in splits]
    steps = [INNER, OUTER, RunStep("evaluation", lambda folder: lost(folder, expected), chosen)]
    if config.evaluation.gradient_batch_size and config.system.latent_steps:
        steps.append(GRADIENTS)
    return [*steps, RunStep.of_files(REPORT, REPORT, "report.md", settings=chosen)]


def list_bad_rows(dataset: Dataset, path: Path) -> None:
    """Writes which rows were left out, and says how many."""
    if dataset.bad_rows:
        first = dataset.bad_rows[0]
        write_atomic(path, b"".join(json_line(row._asdict()) for row in dataset.bad_rows))
        log.warning(
            "data: %d bad rows left out, listed in %s; the first: %s, line %d: %s",
            len(dataset.bad_rows),
            path,
            *first,
        )


def keep_links(path: Path, links: Any) -> None:
    """Writes links, once."""
    whole = to_host(links)
    broadcast_from_first(lambda: save_links(path, whole))


def own_links(folder: Path, name: str) -> Any:
    """Links that this run has written.

    Raises:
      CheckpointError: they are damaged; the message says what is done anew without them.
    """
    ways_out = {
        ALIGNED: "put back a copy, or delete it and run again: the inner loop is then done anew",
        TRAINED: TRAINED_WAY_OUT,
    }
    try:
        return load_links(folder / name)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {ways_out[name]}") from None


def release(team: Team, links: Any, directory: Path) -> None:
    """Writes links once more, as upstream reads them, if it has such roles and edges."""
    try:
        broadcast_from_first(lambda: write_release(team, links, directory))
    except CheckpointError as error:
        log.info("links are not written in the released layout: %s", error)


def train(
    config: RunConfig, team: Team, given: Any, dataset: Dataset, folder: RunFolder, agents: Any
) -> None:
    """Inner loop, then the phases of the outer loop; writes links: aligned, trained, released.

    Starts from the links `given`, or from new ones where there are None. `agents` are those of
    `agent_sources`.
    """
    names = ("links", "inner", "outer")
    keys = dict(zip(names, jax.random.split(jax.random.key(config.seed), 3), strict=True))
    tensorboard = folder.path / "tensorboard" if config.runtime.tensorboard else None

    @functools.cache  # a finished run writes none
    def common() -> dict[str, Any]:
        path = folder.path / "metrics.jsonl"
        curves = on_all(lambda: open_curves(path, tensorboard=tensorboard))
        return {"progress": config.runtime.progress and is_first(), "curves": curves}

    cache = StateCache(
        Path(config.output_dir) / "states",
        limit_gib=config.inner.cache_gib,
        agents={role: agent["digest"] for role, agent in agents.items()},
    )

    def inner() -> None:
        examples = dataset.load("train")[: config.data.train_size]
        texts = {
            role: [text for example in examples for text in example[field]]
            for role, field in learned_fields(team, dataset).items()
        }
        links = run_inner_loop(
            team,
            given
            or start_links(team, start=config.system.outer_start, key=keys["links"], texts=texts),
            *encode_inner(config, team, dataset),
            config.inner,
            rounds=config.system.rounds,
            key=keys["inner"],
            cache=cache if config.inner.cache_gib else None,
            align_outer=given is None and config.system.outer_start == "aligned",
            **common(),
        )
        keep_links(folder.path / ALIGNED, links)

    def outer() -> None:
        data = encode_outer(config, team, dataset)
        links = own_links(folder.path, ALIGNED)
        for i, phase in enumerate(config.outer.phases):
            links = run_phase(
                team,
                links,
                *data,
                config.outer,
                phase,
                key=jax.random.fold_in(keys["outer"], i),
                directory=folder.path / "checkpoints" / phase.name,
                sources=agents,
                **common(),
            )
        keep_links(folder.path / TRAINED, links)
        release(team, own_links(folder.path, TRAINED), folder.path / "links" / "released")

    with as_divergence("inner loop"):
        folder.stage(INNER, inner)
    folder.stage(OUTER, outer)


def run(config: RunConfig, *, dry: bool = False) -> None:
    """All stages, from real files to the report; a dry run prints the plan alone."""
    if config.runtime.compilation_cache:
        use_compilation_cache()
    config = with_date(config, broadcast_from_first(lambda: dated(config).system.date))
    on_all(lambda: check_prompts(config.system))
    first_then_others(lambda: make_output_dir(config.output_dir))
    dataset = first_then_others(lambda: find_data(config))  # the first process prepares it
    inputs = on_all(lambda: read_inputs(config, dataset))
    if dry:
        dialogues, _ = encode_inner(config, inputs.team, dataset)
        data = encode_outer(config, inputs.team, dataset)
        plan = list(describe_run(config, inputs.team, dialogues, data))
        broadcast_from_first(lambda: print("\n".join(plan)))
        return
    digest = weights_digest(inputs.agents, inputs.given)
    steps = planned_steps(config)
    with RunFolder(config, digest, dataset.version, steps) as folder:
        run_stages(config, dataset, inputs, folder, steps)


def run_stages(
    config: RunConfig, dataset: Dataset, inputs: Inputs, folder: RunFolder, steps: Sequence[RunStep]
) -> None:
    """Trains, evaluates and reports, as far as that is not finished yet."""
    grade, answering, splits, team, given, agents = inputs
    if not folder.is_finished:
        broadcast_from_first(lambda: list_bad_rows(dataset, folder.path / "bad_rows.jsonl"))
    train(config, team, given, dataset, folder, agents)
    aligned, trained = (own_links(folder.path, name) for name in (ALIGNED, TRAINED))

    def measure() -> None:
        evaluate(
            team,
            trained,
            aligned,
            splits,
            grade,
            folder.path,
            methods=config.evaluation.methods,
            rounds=config.evaluation.rounds,
            batch_size=config.evaluation.batch_size,
            answering=answering,
            seed=config.seed,
            progress=config.runtime.progress and is_first(),
        )

    def gradients() -> None:
        items = dataset.load("validation")[: config.evaluation.gradient_batch_size]
        data = encode(team, dataset, items)
        norms = gradient_norms(
            team,
            trained,
            data.prompts,
            data.targets[team.system.topology.answerer],
            rounds=config.system.rounds,
        )
        text = json.dumps([seal(row) for row in norms], indent=2)
        broadcast_from_first(lambda: write_atomic(folder.path / "gradients.json", text))

    def report() -> None:
        broadcast_from_first(lambda: write(read_run(folder.path)))

    own = {"evaluation": measure, GRADIENTS.name: gradients, REPORT: report}
    for step in steps:
        if step.name in own:  # the others are those of `train`
            folder.stage(step, own[step.name])
    broadcast_from_first(lambda: print_results(folder.path))


def print_results(folder: Path) -> None:
    """Prints the main table of a run and where its report is."""
    measured = read_run(folder)
    print(terminal_table(Results(measured.results, measured.items)))
    print(f"\nreport: {folder / REPORT}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 2 for bad input, 3 for a diverged run, 75 for one to go on with.

    Agents whose numbers are NaN or infinite are bad input to an evaluation; training diverges.
    """
    parser = Parser(
        description=__doc__,
        epilog="fields of a configuration:\n\n" + field_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_options(parser)
    add_process_options(parser)
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="prints agents, links, steps, shapes and memory of a run, and where it would write",
    )
    args = parser.parse_args(arguments)
    try:
        join_processes(args)
    except ConfigError as error:
        parser.error(str(error))
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    for handler in logging.getLogger().handlers:  # grain's import has set one up before
        handler.setFormatter(logging.Formatter("%(message)s"))
        handler.addFilter(is_no_traceback)
    log.setLevel(logging.INFO if is_first() else logging.ERROR)
    try:
        with sigterm_noted():
            run(on_all(lambda: load_config(args.config, args.overrides)), dry=args.dry_run)
    except USER_ERRORS as error:
        say("error:", describe(error))
        return BAD_INPUT
    except DivergedError as error:
        say("error:", describe(error))
        return DIVERGED
    except PreemptedError as error:
        say(f"stopped: {error}; the same command goes on from there")
        return PREEMPTED
    except Exception as error:
        if (full := full_disk(error)) is None:
            raise
        say("error:", describe(full))
        return BAD_INPUT
    return 0


def is_no_traceback(record: logging.LogRecord) -> bool:
    """Leaves out what libraries log of an error that they also raise, once for each thread."""
    return not record.exc_info


def say(*message: object) -> None:
    """Prints to standard error, once."""
    if is_first():
        print(*message, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
