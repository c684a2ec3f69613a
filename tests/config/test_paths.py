"""What a path in a configuration counts from, and what is no path."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from rmas_jax.config import ConfigError, dump_config, load_config
from rmas_jax.config.paths import NAMES, find_config, relative_paths, shipped_configs
from rmas_jax.config.sections import DataConfig, EvaluationConfig, SystemConfig

AGENTS = {"planner": "mine/planner", "critic": "org/critic@main", "solver": "embedded/solver"}
SYSTEM = {
    "agents": AGENTS,
    "topology": "ring.yaml",
    "prompts": "../prompts.yaml",
    "links": "links.safetensors",
}
FILES = {"train": "train.jsonl", "test": "/data/test.jsonl"}


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A configuration in a folder beside the current one."""
    folder, elsewhere = tmp_path / "configs", tmp_path / "elsewhere"
    (folder / "mine" / "planner").mkdir(parents=True)
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    path = folder / "run.yaml"
    data = {"dataset": "files", "files": FILES}
    tree = {"name": "mine", "system": SYSTEM, "data": data, "evaluation": {"search": "corpus"}}
    path.write_text(yaml.safe_dump(tree))
    return path


def test_paths_in_a_file_count_from_its_folder(file):
    config, folder = load_config("../configs/run.yaml"), file.parent
    assert config.system.agents == AGENTS | {"planner": str(folder / "mine/planner")}
    assert config.system.topology == str(folder / "ring.yaml")
    assert config.system.prompts == str(folder.parent / "prompts.yaml")
    assert config.system.links == str(folder / "links.safetensors")
    assert config.data.files == FILES | {"train": str(folder / "train.jsonl")}
    assert config.evaluation.search == str(folder / "corpus")
    assert config.output_dir == "runs"


def test_paths_of_the_command_line_count_from_the_current_folder(file):
    (Path("mine") / "critic").mkdir(parents=True)
    changes = ("topology=own.yaml", "agents.critic=mine/critic", "prompts=mixture")
    config = load_config(file, [f"system.{change}" for change in changes])
    assert config.system.topology == str(Path.cwd() / "own.yaml")
    assert config.system.agents["critic"] == str(Path.cwd() / "mine/critic")
    assert config.system.agents["planner"] == str(file.parent / "mine/planner")
    assert config.system.prompts == "mixture"


def test_gguf_files_are_paths_or_of_the_hub(file):
    """Two names are a folder and a file; three or more are of the hub, unless they exist."""
    (file.parent / "org" / "name").mkdir(parents=True)
    (file.parent / "org" / "name" / "q4.gguf").touch()
    for text, is_path in (
        ("q8.gguf", True),
        ("mine/q8.gguf", True),
        ("org/name/q4.gguf", True),
        ("org/name/q8.gguf", False),
        ("org/name/folder/q8.gguf@main", False),
    ):
        tree = yaml.safe_load(file.read_text())
        tree["system"]["agents"]["critic"] = text
        file.write_text(yaml.safe_dump(tree))
        expected = str(file.parent / text) if is_path else text
        assert load_config(file).system.agents["critic"] == expected


@pytest.mark.parametrize("name", ["relay", "Sequential-Math", "RecursiveMAS/Sequential-Math"])
def test_names_of_data_stay(file, name):
    (file.parent / name).mkdir(parents=True)
    set_name = [f"data.dataset={name}", "data.files=null"]
    assert load_config(file, set_name).data.dataset == name


def test_what_a_run_writes_is_read_from_any_folder(file, tmp_path):
    config = load_config(file)
    kept = tmp_path / "runs" / "mine" / "config.yaml"
    kept.parent.mkdir(parents=True)
    kept.write_text(dump_config(config))
    assert load_config(kept) == config


def test_a_run_is_the_same_where_its_files_and_folder_are_moved(file, tmp_path, monkeypatch):
    def identity(root):
        monkeypatch.chdir(root)
        config = load_config(root / "configs" / "run.yaml")
        return relative_paths(dataclasses.asdict(config))

    before = identity(tmp_path)
    assert before["system"]["topology"] == "configs/ring.yaml"
    assert before["data"]["files"]["test"] == "/data/test.jsonl"
    moved = tmp_path.rename(tmp_path.with_name(f"{tmp_path.name}-moved"))
    assert identity(moved) == before


def test_values_that_are_no_texts_are_refused_as_such(file):
    changes = [
        "system.agents=[a]",
        "system.topology=7",
        "system.prompts=' '",
        'system.links="a\\0b"',
        "evaluation=3",
    ]
    with pytest.raises(ConfigError) as refused:
        load_config(file, changes)
    assert str(refused.value).count("(from override") == len(changes)


def test_every_kind_of_path_is_used():
    sections = (SystemConfig, DataConfig, EvaluationConfig)
    fields = [f for section in sections for f in dataclasses.fields(section)]
    assert {f.metadata["option"].path for f in fields} == {*NAMES, None}


def test_configurations_are_shipped_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("quickstart").mkdir()  # as the run of this name in runs/
    assert load_config("quickstart").name == "quickstart"
    assert shipped_configs() == ["quickstart"]
    assert find_config("quickstart.yaml") == Path("quickstart.yaml")
    with pytest.raises(ConfigError, match="quickstop: no such file; shipped: quickstart"):
        load_config("quickstop")
