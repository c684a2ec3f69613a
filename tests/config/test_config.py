"""A configuration that cannot be used is refused, in a message that names the field."""

import pytest
import yaml
from small_config import PHASE, message_of, minimal

from rmas_jax.config import load_config


@pytest.mark.parametrize(
    "override",
    [
        "seed=three",
        "seed=1.5",
        "seed=1e3",
        "seed=true",
        "seed='3'",
        "seed=yes",
        "seed=null",
        "seed=",
        "seed=[1]",
        "inner.learning_rate=fast",
        "inner.learning_rate=true",
        "inner.learning_rate=.nan",
        "inner.learning_rate=.inf",
        "inner.learning_rate=1" + "0" * 400,
        "runtime.progress=yes",
        "runtime.progress=1",
        "output_dir=3",
        "output_dir=' '",
        "data.train_size=many",
        "evaluation.rounds=3",
        "evaluation.rounds='123'",
        "evaluation.benchmarks=test",
        "data=relay",
        "data=null",
        "system.agents=[a, b, c]",
        "outer.phases={name: warm}",
    ],
)
def test_wrong_types_are_refused(path, override):
    field = override.partition("=")[0]
    message = message_of(path, override)
    assert message.startswith(f"{path}: {field} must be ")
    assert ", got " in message
    assert f"(from override {override!r})" in message


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("seed=-1", "an integer of at least 0"),
        ("seed=4294967296", "at most 4294967295"),
        ("system.rounds=0", "an integer of at least 1 and at most 16"),
        ("system.rounds=17", "an integer of at least 1 and at most 16"),
        ("system.latent_steps=-1", "an integer of at least 0"),
        ("system.sweeps.window=1", "an integer of at least 2"),
        ("system.sweeps.tolerance=-0.1", "a number of at least 0"),
        ("inner.learning_rate=0", "a number above 0"),
        ("data.train_size=0", "an integer of at least 1 or null"),
        ("outer.phases.0.rounds=17", "at most 16"),
        ("system.latent_steps=1000000000", "at least 0 and at most 16384, got 1000000000"),
        ("inner.steps=1000000000000000000", "at most 10000000, got 1000000000000000000"),
        ("inner.batch_size=1000000000000", "at most 1048576, got 1000000000000"),
        ("inner.repeats=1000000000", "at most 100"),
        ("outer.phases.0.steps=1000000000000000000", "at most 10000000"),
        ("outer.phases.0.batch_size=1000000000000", "at most 65536"),
        ("outer.checkpoint_every=1000000000000000000", "an integer of at least 1 and at most 2147"),
        ("outer.validation_size=1000000000000", "at most 2147483647, got 1000000000000"),
        ("data.train_size=1000000000000", "at most 2147483647 or null, got 1000000000000"),
        ("evaluation.batch_size=1000000000000", "at most 65536"),
        ("evaluation.sampling.max_new_tokens=1000000000000", "at most 131072"),
        ("evaluation.sampling.rollouts=1000000000000", "at most 10000"),
        ("evaluation.sampling.top_k=1000000000000", "at most 2147483647"),
        ("runtime.mesh.data=1000000000000", "at most 65536"),
        ("seed=" + "9" * 4000, "at most 4294967295, got an integer of 4000 digits"),
        ("inner.learning_rate=1e40", "a number above 0 and at most 1e+30, got 1e+40"),
        ("name=" + "n" * 300, "of at most 100 bytes in UTF-8, without NUL, got 'nnn"),
        ("name=" + "é" * 100, "of at most 100 bytes"),
        ("name=" + "n" * 5000, "of at most 100 bytes"),
        ("name=a/b", "text (not empty) that matches"),
        ("name=..", "text (not empty) that matches"),
        ("outer.phases.0.name=" + "n" * 300, "of at most 100 bytes"),
        (
            "output_dir=" + "n" * 5000,
            "text (not empty) of at most 4096 bytes in UTF-8, without NUL",
        ),
        ('output_dir="a\\0b"', "of at most 4096 bytes in UTF-8, without NUL, got 'a\\x00b'"),
        ('data.dataset="a\\ud800"', "without NUL, got 'a\\ud800'"),
        ('system.agents.planner="a\\0b"', "of at most 4096 bytes in UTF-8, without NUL"),
        ('system.agents={"a\\0b": c}', "of at most 4096 bytes in UTF-8, without NUL"),
        ("evaluation.rounds=[" + "1, " * 1001 + "]", "must be at most 1000 items, got 1001"),
        ("name=!!timestamp 2024-01-01", "text (not empty) that matches"),
        ("name=!!binary aGk=", "text (not empty) that matches"),
        ("data=!!set {a}", "must be a section with dataset, "),
        ("evaluation.rounds=!!set {1}", "a list without repeats"),
        ("data.files=" + "{a: " * 300 + "}" * 300, "got {'a': {'a': {'a': {...}}}}"),
        ("name=../elsewhere", "text (not empty) that matches"),
        ("evaluation.rounds=[]", "a list without repeats, not empty"),
        ("evaluation.rounds=[1, 1]", "a list without repeats, not empty"),
    ],
)
def test_values_out_of_range_are_refused(path, override, allowed):
    message = message_of(path, override)
    assert override.partition("=")[0] in message
    assert allowed in message


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("system.thinking=fast", "one of sequential, parallel"),
        ("system.sweeps.start=zero", "one of last, round"),
        ("system.inner_link=ln", "one of linear, linear_res, mlp, mlp_res, ln_res,"),
        ("system.outer_link=ln2", "one of linear, linear_res, mlp, mlp_res, ln, ln_res"),
        ("runtime.dtype=float16", "one of float32, bfloat16"),
        ("runtime.weights=int4", "one of int8 or null"),
        ("runtime.policies.thinking=move", "one of gather, stay, replicate"),
    ],
)
def test_choices_are_listed_when_missed(path, override, allowed):
    assert allowed in message_of(path, override)


def test_the_item_of_a_list_is_named(path):
    message = message_of(path, "evaluation.rounds=[1, magic]")
    assert "evaluation.rounds.1 must be an integer of at least 1" in message
    assert "got 'magic'" in message


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["name=states"], "name must not be one of data, states, folders of output_dir"),
        (["inner.warmup_steps=20"], "inner.warmup_steps must be fewer than steps (20), got 20"),
        (["outer.phases.0.steps=5"], "outer.phases.0.warmup_steps must be fewer than steps (5)"),
        (["outer.phases.0.round_weights=[1]"], "round_weights must be none or one per round (2)"),
        (["outer.phases.0.round_weights=[0, 0]"], "round_weights must have a weight above 0"),
        (["inner.cosine_weight=0", "inner.mse_weight=0"], "inner.cosine_weight must be above 0"),
        (
            ["system.outer_link=mlp"],
            "system.outer_start must be torch_default or identity with outer_link=mlp",
        ),
        (["system.latent_steps=0"], "outer.phases must be empty, as system.latent_steps=0 has"),
        (
            ["system.latent_steps=0", "outer.phases=[]", "inner.repeats=2"],
            "inner.repeats must be 1, as system.latent_steps=0 has no thoughts, got 2",
        ),
        (
            ["system.sweeps.window=4"],
            "system.sweeps must be unset with thinking: sequential",
        ),
        (
            ["system.thinking=parallel", "outer.phases.0.truncate_steps=2"],
            "outer.phases.0.truncate_steps must be null with system.thinking: parallel",
        ),
        (
            ["outer.phases.0.latents=teacher_forced", "outer.phases.0.truncate_steps=2"],
            "outer.phases.0.truncate_steps must be null with feedback=draft",
        ),
        (
            ["outer.phases.0.optimizer=sgd(weight_decay=0.1)"],
            "outer.phases.0.optimizer must have arguments of sgd (momentum, nesterov, ",
        ),
        (
            ["outer.phases.0.feedback=gold"],
            "outer.phases.0.feedback must be unset with latents: on_policy",
        ),
        (
            ["outer.phases.0.accumulation=3"],
            "outer.phases.0.accumulation must be a divisor of batch_size (8), got 3",
        ),
        (
            ["runtime.mesh={data: 2, fsdp: 2}", "outer.phases.0.accumulation=4"],
            "outer.phases.0.batch_size must be a multiple of 16 (runtime.mesh: data x fsdp = 4",
        ),
    ],
)
def test_fields_that_do_not_go_together_are_refused(path, overrides, expected):
    assert expected in message_of(path, *overrides)


def test_phase_names_are_distinct(path):
    path.write_text(yaml.safe_dump(minimal() | {"outer": {"phases": [PHASE, PHASE]}}))
    assert "outer.phases must have unique names, got warm repeatedly" in message_of(path)


def test_unknown_key_in_the_file(path):
    tree = minimal()
    tree["inner"]["stpes"] = 7
    path.write_text(yaml.safe_dump(tree))
    message = message_of(path)
    assert message.startswith(
        f"{path}: inner.stpes is an unknown key (value 7); did you mean steps?"
    )
    assert "learning_rate" in message
    assert "override" not in message


def test_unknown_key_in_an_override(path):
    message = message_of(path, "outer.phases.0.stpes=7")
    assert "outer.phases.0.stpes is an unknown key (value 7); did you mean steps?" in message
    assert "(from override 'outer.phases.0.stpes=7')" in message
    assert "outr is an unknown key" in message_of(path, "outr.phases.0.steps=7")


def test_unknown_key_that_exists_elsewhere(path):
    assert "did you mean system.latent_steps?" in message_of(path, "latent_steps=2")


def test_missing_required_fields(path):
    tree = minimal()
    del tree["system"]["agents"], tree["inner"]["steps"], tree["outer"]["phases"]
    path.write_text(yaml.safe_dump(tree))
    message = message_of(path)
    assert message.startswith(f"{path}: 3 problems\n")
    assert "system.agents must be a mapping of names to text, got nothing" in message
    assert "inner.steps must be an integer of at least 0" in message
    assert "outer.phases must be a list" in message


def test_a_system_that_is_only_used_has_no_training(path):
    tree = minimal()
    del tree["inner"], tree["outer"]
    path.write_text(yaml.safe_dump(tree))
    config = load_config(path)
    assert config.inner.steps == 0 and config.outer.phases == ()
    assert "inner.batch_size must be an integer of at least 1" in message_of(path, "inner.steps=5")


def test_the_number_of_overrides_and_problems_and_the_depth_of_paths_are_limited(path):
    assert "overrides must be at most 1000, got 1001" in message_of(path, *["seed=1"] * 1001)
    message = message_of(path, ".".join("a" * 100_000) + "=1")
    assert "a field's path must have at most 10 parts, got 100000" in message
    assert len(message) < 1000
    assert "a part of outer.phases (1 items, counted from 0), got '999" in message_of(
        path, "outer.phases." + "9" * 5000 + ".steps=1"
    )
    path.write_text("".join(f"key{i}: {i}\n" for i in range(5000)))
    message = message_of(path)
    assert message.startswith(
        f"{path}: more than 20 problems, the first are\n  key0 is an unknown key"
    )
    assert message.count("\n") == 20


@pytest.mark.parametrize("override", ["seed", "=3", "a..b=1", ".seed=1"])
def test_malformed_override(path, override):
    assert f"inner.steps=200, got {override!r}" in message_of(path, override)


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("seed.deep=1", "must name a part of seed (1), got 'deep'"),
        ("inner.steps.x=1", "must name a part of inner.steps (20), got 'x'"),
        ("outer.phases.1.steps=1", "a part of outer.phases (1 items, counted from 0), got '1'"),
        ("outer.phases.warm.steps=1", "got 'warm'"),
        ("seed=[1", "must be YAML"),
    ],
)
def test_override_that_reaches_nowhere(path, override, reason):
    overrides = ["seed=1", override]
    message = message_of(path, *overrides)
    assert message.startswith(f"override {override!r}: ")
    assert reason in message


def test_missing_file_names_its_neighbours(path):
    message = message_of(path.with_name("runs.yaml"))
    assert "runs.yaml: no such file" in message
    assert "in the same folder: run.yaml" in message


def test_folder_for_a_file(path):
    assert "must be a regular file, got a folder" in message_of(path.parent)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("seed: [1", "must be YAML in line "),
        ("seed: 1\nseed: 2\n", "must be YAML in line 2, column 1: the key 'seed' is given twice"),
        ("a: !!python/object:os.system {}", "must be YAML in line 1"),
        ("a: !!int x", "must be YAML"),
        ("", "must be a section with name, seed"),
        ("- 1", "must be a section with name, seed"),
    ],
)
def test_invalid_yaml(path, text, reason):
    path.write_text(text)
    message = message_of(path)
    assert message.startswith(f"{path}: ")
    assert reason in message


def test_file_that_is_not_text(path):
    path.write_bytes(b"\xff\xfe\x00")
    assert "must be text in UTF-8" in message_of(path)
