"""What is evaluated: splits and parts of them."""

import pytest

from rmas_jax.config import ConfigError, DataConfig, load_config
from rmas_jax.data import load_dataset
from rmas_jax.host.errors import describe
from rmas_jax.runs.resolve import read_splits, resolve


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
