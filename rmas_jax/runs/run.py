"""A run: from its configuration to its report.

An audit is declared first. Steps run in order, and finished ones are skipped: inner loop, outer
loop (its phases resume from their checkpoints), tuning of the answerer (likewise), evaluation
(resumes by rollout), gradient norms, audit, report. All files are under OUTPUT_DIR/NAME; a finished
run is only read. If `system.links` names links, training starts from these, and the inner loop
leaves the outer ones unchanged; without training they are evaluated as they are.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import jax

from rmas_jax.config import RunConfig
from rmas_jax.evaluation.audit import audit
from rmas_jax.evaluation.audit_protocol import declare
from rmas_jax.evaluation.driver import evaluate
from rmas_jax.evaluation.gradients import gradient_norms
from rmas_jax.evaluation.methods import planned_methods
from rmas_jax.evaluation.record import lost
from rmas_jax.evaluation.rows import Measurement
from rmas_jax.host.atomic import write_atomic
from rmas_jax.host.checksums import seal
from rmas_jax.host.json_rows import json_line
from rmas_jax.host.processes import broadcast_from_first, is_first, on_all
from rmas_jax.host.reading import GIBIBYTE
from rmas_jax.interop.link_files import load_links, save_links
from rmas_jax.links import Links
from rmas_jax.models import CheckpointError
from rmas_jax.reporting import report
from rmas_jax.reporting.audit import write_audit
from rmas_jax.reporting.run_directory import Run, read_run
from rmas_jax.run_files import STATES, AuditFiles, RunFiles
from rmas_jax.runs.folder import MEASURED, TRAINED_WAY_OUT, RunStep, missing, open_folder
from rmas_jax.runs.learned_data import encode_inner, encode_outer
from rmas_jax.runs.resolve import Resolved, resolve
from rmas_jax.runs.resources import answering_team
from rmas_jax.runs.tuning import tune_answerer, tuned_answerers
from rmas_jax.sharding import to_host
from rmas_jax.team import start_links, write_release
from rmas_jax.training.curves import Curves, open_curves
from rmas_jax.training.data.encoding import encode_examples
from rmas_jax.training.divergence import as_divergence
from rmas_jax.training.hooks import Hook
from rmas_jax.training.inner.loop import run_inner_loop
from rmas_jax.training.outer.loop import run_phase
from rmas_jax.training.states.cache import StateCache

# Names of the steps, also in the file of their seconds.
INNER, OUTER, EVALUATION, GRADIENTS = "inner loop", "outer loop", "evaluation", "gradient norms"
TUNING = "tuning"
ALIGNED_WAY_OUT = "put back a copy, or delete it and run again: the inner loop then runs again"
AUDIT = "audit"
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A finished run."""

    config: RunConfig  # with the date of its first start
    files: RunFiles
    aligned_links: Links  # after the inner loop
    links: Links  # after the outer loop
    measured: Run  # content of its files: results, items, curves, gradient norms, ...
    reused: tuple[str, ...]  # steps finished by an earlier start


def run(config: RunConfig, *, hooks: Sequence[Hook] = ()) -> FinishedRun:
    """Trains, evaluates and reports; skips finished steps.

    Turns on JAX's compilation cache, unless `runtime.compilation_cache` is off. Several processes,
    one per host, call this function together; the first one writes.

    Args:
      config: of the run.
      hooks: called after every step of the outer loop and of tuning; see `rmas_jax.training.hooks`.
        Steps that an earlier start has finished do not run again, and call none.

    Raises:
      InputError: an input of the run, or a file of an earlier start, cannot be used.
      DivergedError: numbers of the training are not finite, or beyond `outer.max_loss`.
      PreemptedError: SIGTERM came while `sigterm_noted`; the same call resumes from there.
    """
    resolved = resolve(config)
    files, steps = resolved.files, planned_steps(resolved)
    with open_folder(resolved.config, resolved.contents, steps) as folder:
        if not folder.is_finished:
            broadcast_from_first(lambda: list_bad_rows(resolved))
            declare_protocol(resolved)
        folder.do(INNER, lambda: align_links(resolved))
        aligned = own_links(files.aligned_links, ALIGNED_WAY_OUT)
        folder.do(OUTER, lambda: train_links(resolved, aligned, hooks))
        trained = own_links(files.trained_links, TRAINED_WAY_OUT)
        if TUNING in folder.steps:
            folder.do(TUNING, lambda: tune(resolved, hooks))
        folder.do(EVALUATION, lambda: measure(resolved, aligned, trained))
        if GRADIENTS in folder.steps:
            folder.do(GRADIENTS, lambda: measure_gradients(resolved, trained))
        if AUDIT in folder.steps:
            folder.do(AUDIT, lambda: audit_messages(resolved, trained))
        measured = on_all(lambda: read_run(files.root))
        folder.do(report.STEP, lambda: broadcast_from_first(lambda: report.write(measured)))
    return FinishedRun(
        resolved.config, files, aligned, trained, measured, reused=tuple(folder.reused)
    )


def planned_steps(resolved: Resolved) -> list[RunStep]:
    """The steps of a run, in order."""
    config, files, order = resolved.config, resolved.files, resolved.team.system.topology.order
    settings = dataclasses.asdict(config.evaluation)
    chosen = {name: settings[name] for name in MEASURED}
    chosen["versions"] = {benchmark.name: benchmark.versions for benchmark in resolved.benchmarks}
    expected = [
        Measurement(*method, benchmark.name, split, seed)
        for method in planned_methods(
            resolved.methods,
            config.evaluation.rounds,
            order=order,
            latent_steps=config.system.latent_steps,
        )
        for benchmark in resolved.benchmarks
        for split in benchmark.splits
        for seed in benchmark.seeds(config.measured_seeds)
    ]
    adapters = [files.adapter(entry.name) for entry in config.tuning]
    steps = [
        RunStep(INNER, lambda: missing(files.aligned_links)),
        RunStep(OUTER, lambda: missing(files.trained_links)),
        *([RunStep(TUNING, lambda: missing(*adapters))] if adapters else []),
        RunStep(EVALUATION, lambda: lost(files.root, expected), chosen),
    ]
    if config.evaluation.gradient_batch_size and config.system.latent_steps:
        steps.append(RunStep(GRADIENTS, lambda: missing(files.gradients)))
    if config.evaluation.audit is not None:
        of_audit = AuditFiles(files.audit)
        steps.append(RunStep(AUDIT, lambda: missing(of_audit.protocol, of_audit.markdown), chosen))
    return [*steps, RunStep(report.STEP, lambda: missing(files.report, files.markdown), chosen)]


def list_bad_rows(resolved: Resolved) -> None:
    """Writes the list of rows left out of the data, and logs their number."""
    bad, path = resolved.bad_rows, resolved.files.bad_rows
    if bad:
        write_atomic(path, b"".join(json_line(row._asdict()) for row in bad))
        log.warning(
            "data: %d bad rows left out, listed in %s; the first: %s, line %d: %s",
            len(bad),
            path,
            *bad[0],
        )


def declare_protocol(resolved: Resolved) -> None:
    """Writes the protocol of an audit, before any step, and logs its digest."""
    if resolved.declared is not None:
        audit_files = AuditFiles(resolved.files.audit)
        digest = declare(audit_files, resolved.declared)
        log.info("audit: declared in %s, SHA-256 %s", audit_files.protocol, digest)


def align_links(resolved: Resolved) -> None:
    """The inner loop: trains each link alone, from given links or new ones; writes them."""
    config, team, given = resolved.config, resolved.team, resolved.given_links
    start, keys = config.system.outer_start, _keys(config)

    def new_links() -> Links:
        is_of_texts = start == "aligned" and not config.inner.lists
        texts = _texts_to_learn(resolved) if is_of_texts else None
        return start_links(team, start=start, key=keys["links"], texts=texts)

    cache = StateCache(
        resolved.files.states,
        mirror=resolved.files.shared_mirror(STATES),
        limit_gib=config.inner.cache_gib,
        agents={role: str(agent["digest"]) for role, agent in resolved.agents.items()},
    )
    with as_divergence("inner loop"):
        links = run_inner_loop(
            team,
            new_links() if given is None else given,
            *encode_inner(resolved),
            config.inner,
            rounds=config.system.rounds,
            key=keys["inner"],
            cache=cache if config.inner.cache_gib else None,
            align_outer=given is None and start == "aligned",
            curves=run_curves(resolved),
            progress=_shows_progress(config),
        )
    keep_links(resolved.files.aligned_links, links)


def _texts_to_learn(resolved: Resolved) -> dict[str, list[str]]:
    """Role -> its texts of all training examples."""
    topology = resolved.team.system.topology
    return {
        role: [
            text
            for example in resolved.train
            for text in example.texts_to_learn(role, topology.answerer)
        ]
        for role in topology.order
    }


def train_links(resolved: Resolved, links: Links, hooks: Sequence[Hook] = ()) -> None:
    """The phases of the outer loop, from aligned links; writes the trained ones, also as released.

    Skips upstream's layout if it lacks these roles or edges.
    """
    config, team, files = resolved.config, resolved.team, resolved.files
    if data := encode_outer(resolved):
        curves, key = run_curves(resolved), _keys(config)["outer"]
        for i, phase in enumerate(config.outer.phases):
            links = run_phase(
                team,
                links,
                *data,
                config.outer,
                phase,
                key=jax.random.fold_in(key, i),
                directory=files.checkpoints_of(phase.name),
                mirror=files.checkpoint_mirror(phase.name),
                curves=curves,
                sources=resolved.agents,
                hooks=hooks,
                progress=_shows_progress(config),
            )
    whole = keep_links(files.trained_links, links)
    try:
        broadcast_from_first(lambda: write_release(team, whole, files.released_links))
    except CheckpointError as error:
        log.info("links are not written in the released layout: %s", error)


def tune(resolved: Resolved, hooks: Sequence[Hook] = ()) -> None:
    """Trains the adapters of the answerer, one after the other; writes them."""
    tune_answerer(
        resolved,
        key=_keys(resolved.config)["tuning"],
        curves=run_curves(resolved),
        hooks=hooks,
        progress=_shows_progress(resolved.config),
    )


def measure(resolved: Resolved, aligned: Links, trained: Links) -> None:
    """Evaluates the methods; writes results and items."""
    config = resolved.config
    evaluate(
        answering_team(resolved.team, config),
        trained,
        aligned,
        resolved.benchmarks,
        resolved.files.root,
        methods=resolved.methods,
        rounds=config.evaluation.rounds,
        batch_size=config.evaluation.batch_size,
        seeds=config.measured_seeds,
        tuned=tuned_answerers(resolved),
        shared_bytes=int(config.runtime.shared_gib * GIBIBYTE),
        progress=_shows_progress(config),
    )


def measure_gradients(resolved: Resolved, trained: Links) -> None:
    """Measures the norm of the answer's gradient at each edge; writes the norms."""
    config, team = resolved.config, resolved.team
    items = resolved.validation[: config.evaluation.gradient_batch_size]
    data = encode_examples(team, items).batch()
    norms = gradient_norms(
        team,
        trained,
        data.prompts,
        data.targets[team.system.topology.answerer],
        rounds=config.system.rounds,
    )
    text = json.dumps([seal(row) for row in norms], indent=2)
    broadcast_from_first(lambda: write_atomic(resolved.files.gradients, text))


def audit_messages(resolved: Resolved, trained: Links) -> None:
    """Measures what the messages carry; writes the audit's files and its report."""
    config, files = resolved.config, resolved.files
    assert resolved.declared is not None
    audit(
        answering_team(resolved.team, config),
        trained,
        resolved.benchmarks,
        files.audit,
        resolved.declared,
        batch_size=config.evaluation.batch_size,
        links_digest=hashlib.sha256(files.trained_links.read_bytes()).hexdigest(),
        progress=_shows_progress(config),
    )
    broadcast_from_first(lambda: write_audit(files.audit))


def run_curves(resolved: Resolved) -> Curves:
    """The training curves of a run."""
    files = resolved.files
    tensorboard = files.tensorboard if resolved.config.runtime.tensorboard else None
    return on_all(lambda: open_curves(files.metrics, tensorboard=tensorboard))


def keep_links(path: Path, links: Links) -> Links:
    """Writes links, once; returns them on the host."""
    whole = to_host(links)
    broadcast_from_first(lambda: save_links(path, whole))
    return whole


def own_links(path: Path, way_out: str) -> Links:
    """Links written by a run itself.

    Raises:
      CheckpointError: they are damaged; the message adds the remedy.
    """
    try:
        return load_links(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {way_out}") from None


def _keys(config: RunConfig) -> dict[str, jax.Array]:
    """The PRNG keys of a run's training."""
    names = ("links", "inner", "outer", "tuning")
    keys = jax.random.split(jax.random.key(config.seed), len(names))
    return dict(zip(names, keys, strict=True))


def _shows_progress(config: RunConfig) -> bool:
    return config.runtime.progress and is_first()
