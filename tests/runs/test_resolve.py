"""What is evaluated: splits and parts of them."""

import json

import pytest

from rmas_jax.config import ConfigError, DataConfig, load_config
from rmas_jax.data import DataError
from rmas_jax.data.loading import load_dataset
from rmas_jax.host.errors import describe
from rmas_jax.runs.benchmarks import read_splits
from rmas_jax.runs.resolve import resolve

CONFIG = "quickstart"
OWN = ["data.dataset=files", "data.grader=text", "data.train_size=20", "inner.steps=0"]
OWN += ["outer.phases=[]", "evaluation.gradient_batch_size=0", "evaluation.batch_size=2"]
OWN += ["runtime.compilation_cache=false", "evaluation.benchmarks=[{name: data}]"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    roles = ("planner", "critic", "solver")
    return load_dataset(
        DataConfig(), roles=roles, rounds=1, data_dir=tmp_path_factory.mktemp("data")
    )


def test_parts_may_overlap(dataset):
    splits = read_splits(
        dataset, ["test[:3]", "test[:6]", "test[-3:]", "validation[:3]"], name="relay"
    )
    assert [len(rows) for rows in splits.values()] == [3, 6, 3, 3]
    assert splits["test[:6]"][:3] == splits["test[:3]"]


@pytest.mark.parametrize(
    "splits",
    [
        ("test", "test[:]"),
        ("test[:50%]", "test[:500]"),
        ("test[:-990]", "validation", "test[0:10]"),
    ],
)
def test_the_same_items_under_two_names_are_refused(dataset, splits):
    with pytest.raises(ConfigError, match="the same items") as error:
        read_splits(dataset, splits, name="relay")
    assert f"{splits[0]!r} and {splits[-1]!r}" in str(error.value)


@pytest.mark.parametrize("split", ["test+train", "all", "test[:1001]", " test", "x" * 5000])
def test_what_is_no_split_is_refused_at_once(dataset, split):
    with pytest.raises(
        ConfigError, match=r"evaluation\.benchmarks: relay: splits: .* must be"
    ) as error:
        read_splits(dataset, [split], name="relay")
    assert len(describe(error.value)) < 500


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["system.latent_steps=0", "inner.repeats=1", "outer.phases=[]"],
            "must be null where system.latent_steps is 0",
        ),
        (
            ["evaluation.benchmarks=[{name: relay, splits: ['test[:1]']}]"],
            "relay test.*must differ in question and gold answer",
        ),
    ],
)
def test_an_audit_that_cannot_be_run_is_refused_before_training(tmp_path, settings, message):
    changes = [f"output_dir={tmp_path}", "evaluation.audit={}", *settings]
    changes += ["evaluation.methods=[recursive_mas]", "runtime.compilation_cache=false"]
    with pytest.raises(ConfigError, match=f"evaluation.audit.*{message}"):
        resolve(load_config("quickstart", changes))


@pytest.mark.parametrize("name", ["relay", "data"])
def test_data_of_another_checksum_than_a_run_states_are_refused(tmp_path, name):
    """Also where they are the run's own, which no definition describes."""
    stated = f"evaluation.benchmarks=[{{name: {name}, checksum: {{test: '{'0' * 16}'}}}}]"
    changes = [f"output_dir={tmp_path}", stated, "runtime.compilation_cache=false"]
    with pytest.raises(DataError, match=r"relay: the checksum of test must be 0{16}, got 94d8d484"):
        resolve(load_config("quickstart", changes))


def identities(tmp_path, *settings):
    """The versions of the splits of the user's own file, in a run with these settings."""
    output, names = f"output_dir={tmp_path / 'runs'}", "system.task_type=null"
    config = load_config(CONFIG, [*OWN, output, names, *settings])
    (benchmark,) = resolve(config, is_abstract=True).benchmarks
    return benchmark.versions


def test_equal_questions_are_equal_whatever_is_trained(tmp_path):
    rows = [
        {"id": f"q{i}", "question": f"What is {i} and 1?", "answer": str(i + 1)} for i in range(40)
    ]
    for name, part in (("train", rows[:20]), ("test", rows[20:30]), ("validation", rows[30:])):
        text = "".join(json.dumps(row) + "\n" for row in part)
        (tmp_path / f"{name}.jsonl").write_text(text)
    files = ", ".join(f"{n}: {tmp_path / n}.jsonl" for n in ("train", "test", "validation"))
    data = f"data.files={{{files}}}"
    first = identities(tmp_path, data)
    assert set(first) == {"test"}
    assert first == identities(tmp_path, data, "system.rounds=2", "evaluation.legacy=true")
    # Other gold answers, or another strict grader, are another benchmark.
    assert first != identities(tmp_path, data, "data.grader=qa")
    rows[25]["answer"] = "0"
    text = "".join(json.dumps(row) + "\n" for row in rows[20:30])
    (tmp_path / "test.jsonl").write_text(text)
    assert first != identities(tmp_path, data)
