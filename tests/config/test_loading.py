"""A file and overrides become a configuration, which is written and described again."""

import dataclasses
import re
import typing
from pathlib import Path

import pytest

from rmas_jax.config import RunConfig, dump_config, field_help, load_config


def test_defaults_fill_what_the_file_leaves_out(path):
    config = load_config(path)
    assert config.name == "tiny"
    assert config.system.latent_steps == 4
    assert config.data.train_size is None
    assert config.evaluation.rounds == (1, 2, 3, 4)
    assert config.outer.phases[0].learning_rate == 3e-4
    assert config.outer.phases[0].round_weights == ()


def test_configuration_is_frozen(path):
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_config(path).seed = 1


def test_overrides_win_over_the_file_and_later_ones_over_earlier(path):
    config = load_config(
        path,
        [
            "inner.steps=30",
            "inner.steps=40",
            "data.train_size=7",
            "system.agents.planner=models/x=y",
            "outer.phases.0.learning_rate=1e-3",
            "evaluation.rounds=[2, 3]",
        ],
    )
    assert config.inner.steps == 40
    assert config.data.train_size == 7
    assert config.system.agents["planner"] == str(Path.cwd() / "models/x=y")
    assert config.outer.phases[0].learning_rate == 0.001
    assert config.evaluation.rounds == (2, 3)
    assert config.inner.batch_size == 4


def test_override_of_one_alias_leaves_the_others(path):
    phase = "latents: on_policy, rounds: 2, steps: 20, batch_size: 1, learning_rate: 1"
    system = "agents: {planner: a, critic: b, solver: c}"
    path.write_text(
        f"name: tiny\nsystem: {{{system}}}\n"
        "inner: {steps: 20, batch_size: 4, learning_rate: 0.1, warmup_steps: 2}\n"
        f"outer: {{phases: [{{name: a, round_weights: &weights [1, 2], {phase}}},"
        f" {{name: b, round_weights: *weights, {phase}}}]}}\n"
    )
    config = load_config(path, ["outer.phases.0.round_weights.1=5"])
    assert [phase.round_weights for phase in config.outer.phases] == [(1, 5), (1, 2)]


def test_an_integer_is_a_fine_float(path):
    rate = load_config(path, ["inner.learning_rate=1"]).inner.learning_rate
    assert rate == 1.0 and isinstance(rate, float)


def test_null_stands_for_the_whole_split(path):
    assert load_config(path, ["data.train_size=5", "data.train_size=null"]).data.train_size is None


def test_no_inner_training_needs_no_shorter_warmup(path):
    assert load_config(path, ["inner.steps=0"]).inner.steps == 0


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["inner.learning_rate=1e-05", "outer.phases.0.round_weights=[0.1, 1]"],
        ["system.prompts='yes'", "output_dir='1e-3'", "data.dataset='null'", "name='007'"],
        ["system.prompts='007: # ü'", "output_dir='2024'", "data.train_size=5"],
        ["outer.phases=[]"],
    ],
)
def test_dump_loads_back_as_equal(path, tmp_path, overrides):
    config = load_config(path, overrides)
    copy = tmp_path / "copy.yaml"
    copy.write_text(dump_config(config), encoding="utf-8")
    assert load_config(copy) == config


def dotted_names(section: type, prefix: str = "") -> list[str]:
    names = []
    for field in dataclasses.fields(section):
        inner = next((t for t in getattr(field.type, "__args__", ()) if t is not ...), field.type)
        if dataclasses.is_dataclass(inner):
            number = "N." if typing.get_origin(field.type) is tuple else ""
            names += dotted_names(inner, f"{prefix}{field.name}.{number}")
        else:
            names.append(prefix + field.name)
    return names


def test_help_lists_every_field_with_its_meaning():
    lines = field_help().splitlines()
    described = {line.partition(":")[0] for line in lines[::2]}
    whole = {"outer.phases", "tuning", "evaluation.benchmarks", "evaluation.audit", "data.evidence"}
    assert described == {*dotted_names(RunConfig), *whole}
    assert all(line.startswith("    ") and line.strip() for line in lines[1::2])
    assert "seed: an integer of at least 0 and at most 4294967295 (default 0)" in lines
    assert "inner.steps: an integer of at least 0 and at most 10000000 (required)" in lines
    assert "outer.log_every: an integer of at least 1 (default 10)" in lines


@pytest.mark.parametrize(
    "report", sorted(Path(__file__).parents[2].glob("docs/*/README.md")), ids=str
)
def test_configurations_that_committed_reports_print_can_be_run(report, tmp_path):
    text = report.read_text()
    blocks = re.findall(r"^```yaml\n(name: .*?)^```", text, re.DOTALL | re.MULTILINE)
    for number, block in enumerate(blocks):
        file = tmp_path / f"{number}.yaml"
        file.write_text(block)
        load_config(file)
