"""The quickstart cut down to seconds, as a command, and as one that is refused."""

from __future__ import annotations

from rmas_jax.cli.run import main
from rmas_jax.host.errors import BAD_INPUT

CONFIG = "quickstart"
TINY = [
    "inner.items=8",
    "inner.steps=4",
    "inner.repeats=2",
    "inner.warmup_steps=1",
    "outer.phases.0.steps=2",
    "outer.phases.0.batch_size=2",
    "outer.phases.0.warmup_steps=1",
    "outer.validation_size=4",
    "data.train_size=16",
    "evaluation.benchmarks=[{name: data, splits: ['test[:6]', 'test_unseen_entities[:6]']}]",
    "evaluation.batch_size=4",
    "evaluation.rounds=[1,2]",
    "evaluation.methods=[recursive_mas, aligned_links, recursive_text]",
    "evaluation.gradient_batch_size=2",
    "runtime.progress=false",
    "runtime.compilation_cache=false",
]
# One round, two methods.
ONE_ROUND = [
    "inner.items=8",
    "inner.steps=2",
    "inner.repeats=1",
    "inner.warmup_steps=1",
    "system.rounds=1",
    "outer.phases.0.rounds=1",
    "outer.phases.0.steps=2",
    "outer.phases.0.batch_size=2",
    "outer.phases.0.warmup_steps=1",
    "outer.validation_size=2",
    "data.train_size=8",
    "evaluation.benchmarks=[{name: data, splits: ['test[:4]']}]",
    "evaluation.batch_size=4",
    "evaluation.rounds=[1]",
    "evaluation.methods=[recursive_mas, aligned_links]",
    "evaluation.gradient_batch_size=2",
    "runtime.progress=false",
    "runtime.compilation_cache=false",
]


def run(tmp_path, *overrides, options=()):
    settings = [f"output_dir={tmp_path / 'runs'}", *TINY, *overrides]
    changes = [part for item in settings for part in ("--set", item)]
    return main(["--config", CONFIG, *changes, *options])


def refused(tmp_path, capsys, *overrides):
    assert run(tmp_path, *overrides) == BAD_INPUT
    message = capsys.readouterr().err
    assert message.startswith("error: ") and "Traceback" not in message
    assert not (tmp_path / "runs" / "quickstart" / "links").exists()
    return message
