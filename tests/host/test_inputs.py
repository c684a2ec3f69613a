"""Files and folders that are read at a URL: copied once, as they are there."""

from __future__ import annotations

import json
from pathlib import Path

import fake_storage
import jax
import numpy as np
import pytest
import yaml
from quickstart_runs import CONFIG

from rmas_jax.config import ConfigError, DataConfig, load_config
from rmas_jax.data.loading import load_dataset
from rmas_jax.host import inputs, storage
from rmas_jax.host.inputs import local_input
from rmas_jax.host.storage import StorageError
from rmas_jax.interop.link_files import load_links, save_links
from rmas_jax.links import Links
from rmas_jax.models import CheckpointError
from rmas_jax.tools import read_corpus
from rmas_jax.topology.files import FOLDER, load_topology

URL = "fake://bucket/mine"
SPLITS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def bucket(tmp_path, monkeypatch):
    monkeypatch.setenv(fake_storage.ROOT, str(tmp_path / "storage"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    storage.copies.cache_clear()
    inputs._copied.cache_clear()
    folder = tmp_path / "storage" / "bucket" / "mine"
    folder.mkdir(parents=True)
    yield folder
    storage.copies.cache_clear()
    inputs._copied.cache_clear()


def write_rows(path, count=3):
    rows = ({"question": f"{path.stem} {i}", "answer": f"a{i}"} for i in range(count))
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_file_and_a_folder_are_copied_once(bucket):
    write_rows(bucket / "data" / "train.jsonl")
    (bucket / "data" / "more").mkdir()
    (bucket / "data" / "more" / "b").write_bytes(b"\x00\xff")
    assert local_input("here/a") == Path("here/a")
    file = local_input(f"{URL}/data/train.jsonl")
    assert file.read_text() == (bucket / "data" / "train.jsonl").read_text()
    assert (local_input(f"{URL}/data") / "more" / "b").read_bytes() == b"\x00\xff"
    (bucket / "data" / "train.jsonl").unlink()
    assert local_input(f"{URL}/data/train.jsonl") == file


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (f"{URL}/none", "mine/none: no such file or folder"),
        ("abfs://b/a", r"abfs://b/a: .*pip install 'rmas_jax\[storage\]'"),
    ],
)
def test_an_error_names_the_url_and_what_is_missing(url, words):
    with pytest.raises(StorageError, match=words):
        local_input(url)
    config = load_config(CONFIG, [f"data.dataset={url}"])
    with pytest.raises(StorageError, match=words):
        load_dataset(config.data, roles=(), rounds=1, data_dir=Path("unused"))


@pytest.mark.parametrize("named", ["folder", "files"])
def test_data_at_a_url_are_those_on_the_disk(bucket, tmp_path, named):
    for split in SPLITS:
        write_rows(bucket / "data" / f"{split}.jsonl", count=4)

    def load(place):
        chosen = {"dataset": f"{place}/data"}
        if named == "files":
            files = {split: f"{place}/data/{split}.jsonl" for split in SPLITS}
            chosen = {"dataset": "files", "files": files}
        return load_dataset(
            DataConfig(**chosen), roles=("solver",), rounds=1, data_dir=tmp_path / "prepared"
        )

    found, expected = load(URL), load(bucket)
    assert found.load("test") == expected.load("test") and len(found.load("train")) == 4
    assert found.version == expected.version  # a run may go on with a copy


def test_links_at_a_url_are_those_on_the_disk(bucket):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    links = Links({"planner": {"kernel": array}}, {"planner->solver": {"kernel": array + 1}})
    save_links(bucket / "links.safetensors", links)
    found = load_links(f"{URL}/links.safetensors")
    jax.tree.map(np.testing.assert_array_equal, vars(found), vars(links))
    content = bytearray((bucket / "links.safetensors").read_bytes())
    content[-1] ^= 1
    (bucket / "damaged.safetensors").write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"fake://bucket/mine/damaged.safetensors: is damaged"
    ):
        load_links(f"{URL}/damaged.safetensors")


def test_a_configuration_at_a_url_names_files_beside_it(bucket):
    (bucket / "ring.yaml").write_text((FOLDER / "sequential.yaml").read_text())
    (bucket / "corpus.jsonl").write_text(json.dumps({"text": "Amor"}) + "\n")
    (bucket / "configs").mkdir()
    tree = {
        "name": "mine",
        "system": {
            "agents": {
                "planner": "org/model",
                "critic": "/disk/model",
                "solver": "embedded/solver",
            },
            "topology": "../ring.yaml",
            "links": "s3://other/links.safetensors",
        },
        "data": {"dataset": "files", "files": {"train": "train.jsonl"}},
        "evaluation": {"search": "../corpus.jsonl"},
    }
    (bucket / "configs" / "run.yaml").write_text(yaml.safe_dump(tree))
    config = load_config(f"{URL}/configs/run.yaml")
    assert config.system.agents == tree["system"]["agents"]
    assert config.system.links == "s3://other/links.safetensors"
    assert config.data.files == {"train": f"{URL}/configs/train.jsonl"}
    assert load_topology(config.system.topology) == load_topology("sequential")
    assert read_corpus(config.evaluation.search)[0].text == "Amor"


def test_models_at_a_url_are_refused_with_the_way_out():
    with pytest.raises(ConfigError) as error:
        load_config(CONFIG, ["system.agents.critic=gs://b/c", "evaluation.loop_lm=s3://b/l"])
    for field, url in (("system.agents.critic", "gs://b/c"), ("evaluation.loop_lm", "s3://b/l")):
        assert f"{field} must be a directory or a hub id" in str(error.value)
        assert (
            f"copy it to a disk of each host first (gcloud storage cp -r, aws s3 sync), got '{url}'"
            in str(error.value)
        )
