"""What a run belongs to: the agents' weights, wherever they lie, and how they are kept."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from gguf_files import write
from safetensors import safe_open

from rmas_jax.config import ConfigError, load_config
from rmas_jax.links import Links
from rmas_jax.runs import folder as run_folder
from rmas_jax.runs import identity as run_identity
from rmas_jax.runs.folder import dated, missing, open_folder
from rmas_jax.runs.identity import agent_sources, weights_digest
from rmas_jax.team_texts import load_team_texts

ROOT = Path(__file__).parents[2]
CONFIG = "quickstart"
AGENT = ROOT / "rmas_jax/assets/embedded/planner"
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def start(config, contents=None):
    """Opens a run's folder, and ends at once."""
    with open_folder(config, contents or {}):
        pass


def read(config):
    """Digests of the files that a configuration names."""
    return run_identity.contents(config, load_team_texts(config.system))


@pytest.fixture
def planner_in(monkeypatch):
    """Function from a directory and overrides to the planner's source."""
    monkeypatch.chdir(ROOT)

    def find(directory, *overrides):
        config = load_config(CONFIG, [f"system.agents.planner={directory}", *overrides])
        return agent_sources(config)["planner"]

    return find


def test_an_agent_is_its_files_and_how_they_are_kept(planner_in, tmp_path):
    copy = shutil.copytree(AGENT, tmp_path / "copy")
    here = planner_in(AGENT)["digest"]
    assert planner_in(copy) == {"source": str(copy), "revision": None, "digest": here}
    others = [
        planner_in(copy, "runtime.dtype=bfloat16")["digest"],
        planner_in(copy, "runtime.weights=int8")["digest"],
    ]
    for name in ("config.json", "model.safetensors"):
        file = copy / name
        before = file.read_bytes()
        file.write_bytes(before[:-1] + b" ")
        others.append(planner_in(copy)["digest"])
        file.write_bytes(before)
    (copy / "tokenizer_config.json").unlink()  # states depend on ids, and those stand for it
    assert planner_in(copy)["digest"] == here
    assert len({here, *others}) == 5


def test_an_agent_is_its_shards_wherever_its_index_has_them(planner_in, tmp_path):
    copy = shutil.copytree(AGENT, tmp_path / "copy")
    (copy / "shards").mkdir()
    shard = (copy / "model.safetensors").rename(copy / "shards" / "one.safetensors")
    with safe_open(shard, framework="numpy") as file:
        weight_map = dict.fromkeys(file.keys(), "shards/one.safetensors")
    index = {"metadata": {}, "weight_map": weight_map}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    before = planner_in(copy)["digest"]
    shard.write_bytes(shard.read_bytes()[:-1] + b" ")
    assert planner_in(copy)["digest"] != before


def test_a_commit_stands_for_the_files_of_the_hub(planner_in, tmp_path, monkeypatch):
    snapshots = tmp_path / "models--org--name" / "snapshots"
    for commit in ("c1", "c2"):
        snapshots.joinpath(commit).mkdir(parents=True)  # no weights: none are read
    monkeypatch.setattr(
        run_identity, "local_checkpoint", lambda source, patterns: snapshots / str(source)[-2:]
    )
    one, other = planner_in("org/name@c1"), planner_in("org/name@c2")
    assert (one["revision"], other["revision"]) == ("c1", "c2")
    assert one["digest"] != other["digest"]


def test_an_agent_may_be_a_gguf_file(planner_in, tmp_path, monkeypatch):
    """A file's content counts, from the hub its commit and its name; and its own tokenizer."""
    file = tmp_path / "model.gguf"
    metadata = {"tokenizer.ggml.model": "gpt2", "llama.block_count": 1}
    digests = []
    for tensors in ({"a": np.zeros(32, np.float32)}, {"a": np.ones(32, np.float32)}):
        write(file, "llama", dict(metadata), tensors)
        digests.append((planner_in(file)["digest"], run_identity._tokenizer_digest(str(file))))
    assert planner_in(file)["source"] == str(file)
    shutil.copy(file, tmp_path / "other.gguf")
    assert planner_in(tmp_path / "other.gguf")["digest"] == digests[1][0] != digests[0][0]
    assert digests[0][1] == digests[1][1]  # the same tokenizer
    write(file, "llama", metadata | {"tokenizer.ggml.model": "llama"}, tensors)
    assert run_identity._tokenizer_digest(str(file)) != digests[0][1]

    folder = tmp_path / "models--org--name" / "snapshots" / "c1" / "folder"
    folder.mkdir(parents=True)
    found = []
    for name in ("q4.gguf", "q8.gguf"):
        shutil.copy(file, folder / name)
        monkeypatch.setattr(run_identity, "local_checkpoint", lambda *_, n=name, **__: folder / n)
        found.append(planner_in(f"org/name/folder/{name}"))
    assert [one["revision"] for one in found] == ["c1", "c1"]
    assert found[0]["digest"] != found[1]["digest"]


def test_a_run_belongs_to_agents_and_given_links():
    agents = {"a": {"digest": "1"}, "b": {"digest": "2"}}
    swapped = {"a": {"digest": "2"}, "b": {"digest": "1"}}
    links = Links({"a": np.ones(3, np.float32)}, {})
    digests = [weights_digest(agents, None), weights_digest(swapped, None)]
    digests.append(weights_digest(agents, links))
    assert len(set(digests)) == 3
    assert weights_digest(dict(reversed(agents.items())), links) == digests[2]


def test_a_run_is_started_once_at_a_time(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load_config(CONFIG, [f"output_dir={tmp_path}"])
    with open_folder(config, {"data": "1.0"}) as first:
        with pytest.raises(ConfigError, match=r"quickstart is in use by another start of this run"):
            start(config, {"data": "1.0"})
        assert json.loads(first.files.identity.read_text())["data"] == "1.0"
    with open_folder(config, {"data": "1.0"}) as again:
        assert again.files == first.files


def test_a_run_has_the_date_of_its_first_start(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load_config(CONFIG, [f"output_dir={tmp_path}"])
    assert config.system.date is None
    monkeypatch.setattr(run_folder, "today", lambda: "2026-01-31")
    first = dated(config)
    assert first.system.date == "2026-01-31"
    start(first)
    assert "date: 2026-01-31" in (tmp_path / "quickstart" / "config.yaml").read_text()
    monkeypatch.setattr(run_folder, "today", lambda: "2026-02-01")
    assert dated(config) == first  # midnight has passed, and the run goes on
    start(dated(config))
    assert dated(load_config(tmp_path / "quickstart" / "config.yaml")) == first
    other = load_config(CONFIG, [f"output_dir={tmp_path}", "system.date='2020-02-29'"])
    assert dated(other) == other
    with pytest.raises(ConfigError, match=r"it differs in system\.date\. Choose"):
        start(dated(other))
    new = load_config(CONFIG, [f"output_dir={tmp_path}", "name=new"])
    assert dated(new).system.date == "2026-02-01"


def test_a_folder_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(run_folder.fcntl, "flock", refuse)
    start(load_config(CONFIG, [f"output_dir={tmp_path}"]))
    assert "No locks available): start no second run there" in caplog.text


@pytest.fixture
def files(tmp_path):
    """By part of the identity: a copy of what a run reads; and the overrides that name them."""
    package = ROOT / "rmas_jax"
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"text": "a document"}\n')
    copies = {
        "topology": shutil.copy(package / "topology/sequential.yaml", tmp_path / "topology.yaml"),
        "prompts": shutil.copy(package / "prompts/relay.yaml", tmp_path / "prompts.yaml"),
        "tokenizers": shutil.copytree(AGENT, tmp_path / "agent") / "tokenizer_config.json",
        "corpus": corpus,
    }
    overrides = [
        f"output_dir={tmp_path / 'runs'}",
        f"system.topology={copies['topology']}",
        f"system.prompts={copies['prompts']}",
        f"system.agents.planner={tmp_path / 'agent'}",
        f"evaluation.search={corpus}",
    ]
    return copies, overrides


@pytest.mark.parametrize(
    ("part", "before", "after", "words"),
    [
        ("topology", "name: sequential", "name: other", "topology"),
        ("prompts", "the red gate", "the grey gate", r"method_prompts\..*, prompts\.planner"),
        ("tokenizers", "{", '{"model_max_length": 7, ', "tokenizers.planner"),
        ("corpus", "a document", "another one", "corpus"),
    ],
)
def test_a_run_belongs_to_what_its_files_hold(files, monkeypatch, part, before, after, words):
    monkeypatch.chdir(ROOT)
    copies, overrides = files
    config = load_config(CONFIG, overrides)
    start(config, read(config))
    copy = copies[part]
    text = copy.read_text()
    copy.write_text(f"{text}\n")  # YAML and JSON hold what they held
    if part in ("topology", "prompts"):
        start(config, read(config))
    assert before in text
    copy.write_text(text.replace(before, after, 1))
    with pytest.raises(ConfigError, match=rf"it differs in {words}\. Choose"):
        start(config, read(config))


def test_the_end_tokens_of_an_agent_are_part_of_a_run(files, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load_config(CONFIG, files[1])
    before = read(config)
    agent = tmp_path / "agent"
    for name, text in (("generation_config.json", "{}"), ("chat_template.jinja", TEMPLATE)):
        (agent / name).write_text(text)
        after = read(config)
        assert after["tokenizers"]["planner"] != before["tokenizers"]["planner"]
        assert {**after, "tokenizers": 0} == {**before, "tokenizers": 0}
        before = after


def test_what_is_no_regular_file_is_no_file_of_a_step(tmp_path):
    files = [tmp_path / name for name in ("a", "b")]
    files[0].touch()
    assert missing(*files) == f"{files[1]}: no such file"
    files[1].mkdir()
    assert missing(*files) == f"{files[1]}: no regular file"
    files[1].rmdir()
    files[1].touch()
    assert missing(*files) is None
