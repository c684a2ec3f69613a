"""The files that a user can name: a valid one of each kind, how it is mutated, what reads it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import begun
import jax
import numpy as np
import pyarrow
import pyarrow.parquet
import torch
import yaml
from flax.traverse_util import flatten_dict
from hypothesis import strategies as st
from made_runs import write_run
from mutations import of_bytes, of_tree
from released import Adapter
from safetensors import safe_open
from safetensors.numpy import save

from rmas_jax.config import load_config
from rmas_jax.data.records import CHECKSUMS
from rmas_jax.interop.link_files import save_links
from rmas_jax.links import INNER, OUTER, LinkConfig, init_link
from rmas_jax.team import load_team, start_links

ROOT = Path(__file__).parent.parent
TEAM = ROOT / "experiments/configs/custom_team"
AGENTS = ROOT / "rmas_jax/assets/embedded"


class Case(NamedTuple):
    """A file to mutate, and the command that reads it."""

    file: Path
    target: str
    arguments: list[str]
    valid: bytes
    changed: st.SearchStrategy[str | bytes] | None = None  # None: of bytes alone
    on_stdin: bool = False  # whether the command gets the content there, and no file


def reads(folder: Path, *overrides: str, config: Path = TEAM / "run.yaml") -> list[str]:
    """Arguments of the target `read_run`, which prepares data in `folder`."""
    return [str(config), f"output_dir={folder / 'runs'}", *overrides]


def configuration(folder: Path) -> Case:
    file = shutil.copytree(TEAM, folder / "team") / "run.yaml"
    valid = file.read_bytes()
    changed = of_tree(yaml.safe_load(valid)) | of_bytes(valid)
    return Case(file, "read_run", reads(folder, config=file), valid, changed)


def topology(folder: Path) -> Case:
    valid, file = (TEAM / "topology.yaml").read_bytes(), folder / "topology.yaml"
    changed = of_tree(yaml.safe_load(valid)) | of_bytes(valid)
    return Case(file, "topology", [str(file)], valid, changed)


def prompts(folder: Path) -> Case:
    valid, file = (TEAM / "prompts.yaml").read_bytes(), folder / "prompts.yaml"
    changed = of_tree(yaml.safe_load(valid)) | of_bytes(valid)
    return Case(file, "read_run", reads(folder, f"system.prompts={file}"), valid, changed)


def rows() -> list[dict[str, Any]]:
    lines = (TEAM / "questions.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:80]]


def lines_of(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def of_one_line(rows: list[dict[str, Any]]) -> st.SearchStrategy[bytes]:
    """JSON lines of which the last is changed."""
    start = lines_of(rows[:-1])
    one = of_tree(rows[-1]).map(lambda row: row.replace("\n", " ") + "\n")
    return one.map(lambda line: start + line.encode("utf-8", "surrogatepass"))


def json_lines(folder: Path) -> Case:
    valid, file = lines_of(rows()), folder / "questions.jsonl"
    arguments = reads(folder, f"data.dataset={file}")
    return Case(file, "read_run", arguments, valid, of_one_line(rows()) | of_bytes(valid))


def json_list(folder: Path) -> Case:
    valid, file = json.dumps(rows()).encode(), folder / "questions.json"
    arguments = reads(folder, f"data.dataset={file}")
    return Case(file, "read_run", arguments, valid, of_tree(rows()) | of_bytes(valid))


def parquet(folder: Path) -> Case:
    file, sink = folder / "questions.parquet", pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows()), sink)
    arguments = reads(folder, f"data.dataset={file}")
    return Case(file, "read_run", arguments, sink.getvalue().to_pybytes())


def corpus(folder: Path) -> Case:
    file = folder / "corpus.jsonl"
    documents = [{"text": f"Document {i}", "title": "x", "url": "y"} for i in range(5)]
    valid = lines_of(documents)
    arguments = reads(folder, f"evaluation.search={file}")
    return Case(file, "read_run", arguments, valid, of_one_line(documents) | of_bytes(valid))


def agent(folder: Path, name: str) -> tuple[Path, list[str]]:
    """A copy of an embedded agent, and the arguments of the target `model`."""
    copy = folder / "agent"
    shutil.copytree(AGENTS / name, copy, dirs_exist_ok=True)
    return copy, [str(copy), "--prompt=hi", "--max-tokens=1"]


def in_agent(name: str, role: str, *, only: tuple[str, ...] = ()) -> Callable[[Path], Case]:
    """A case of a file in an agent's folder; see `of_tree` for `only`."""

    def case(folder: Path) -> Case:
        copy, arguments = agent(folder, role)
        valid = (copy / name).read_bytes()
        changed = of_bytes(valid)
        if name.endswith(".json"):
            changed |= of_tree(json.loads(valid), only=only)
        return Case(copy / name, "model", arguments, valid, changed)

    return case


def index(folder: Path) -> Case:
    copy, arguments = agent(folder, "planner")
    shard = (copy / "model.safetensors").rename(copy / "model-1.safetensors")
    with safe_open(shard, framework="numpy") as file:
        weight_map = dict.fromkeys(file.keys(), shard.name)
    raw = {"metadata": {}, "weight_map": weight_map}
    valid, file = json.dumps(raw).encode(), copy / "model.safetensors.index.json"
    return Case(file, "model", arguments, valid, of_tree(raw) | of_bytes(valid))


def template(folder: Path) -> Case:
    copy, arguments = agent(folder, "planner")
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    return Case(
        copy / "chat_template.jinja", "model", arguments, settings["chat_template"].encode()
    )


def links(folder: Path) -> Case:
    """Both links of upstream's distillation, in a file of ours."""
    kinds = {INNER: ["expert", "learner"], OUTER: ["expert->learner", "learner->expert"]}
    trees = {
        kind: {name: init_link(LinkConfig(kind, "ln_res", 4, 4), jax.random.key(0)) for name in of}
        for kind, of in kinds.items()
    }
    flat = {"/".join(path): np.asarray(x) for path, x in flatten_dict(trees).items()}
    arguments = [str(folder / "links.safetensors"), str(folder / "released")]
    return Case(folder / "links.safetensors", "convert", arguments, save(flat))


def torch_links(folder: Path) -> Case:
    file = folder / "adapter.pt"
    torch.save(Adapter(4).state_dict(), file)
    arguments = [str(file), str(folder / "state.safetensors")]
    return Case(file, "convert", arguments, file.read_bytes())


DRAWN_ALONE = {"metrics.jsonl", "gradients.json"}  # each has figures, and changes no other part


def in_run(name: str) -> Callable[[Path], Case]:
    """A case of a file in the folder of a finished run; figures take most of a report's time."""

    def case(folder: Path) -> Case:
        run = write_run(folder / "run", without=DRAWN_ALONE - {name})
        valid = (run / name).read_bytes()
        changed = of_bytes(valid)
        if name.endswith(".jsonl"):
            changed |= of_one_line([json.loads(line) for line in valid.splitlines()])
        elif name.endswith(".json"):
            changed |= of_tree(json.loads(valid))
        return Case(run / name, "report", [str(run), "--quiet"], valid, changed)

    return case


def in_begun_run(name: str) -> Callable[[Path], Case]:
    """A case of a file in the folder of a run that goes on."""

    def case(folder: Path) -> Case:
        arguments = reads(folder)
        assert begun.go_on(arguments) == 0
        file = folder / "runs" / "custom-team" / name
        valid = file.read_bytes()
        changed = of_bytes(valid)
        if name.endswith(".json"):
            changed |= of_tree(json.loads(valid))
        return Case(file, "go_on", arguments, valid, changed)

    return case


def prepared(folder: Path) -> Case:
    """The checksums of prepared data."""
    arguments = reads(folder)
    assert begun.read_run(arguments) == 0
    (file,) = (folder / "runs" / "data").rglob(CHECKSUMS)
    valid = file.read_bytes()
    return Case(file, "read_run", arguments, valid, of_tree(json.loads(valid)) | of_bytes(valid))


def asks(folder: Path, *options: str) -> list[str]:
    """Arguments of the target `read_questions`."""
    config, *overrides = reads(folder)
    return ["--config", config, *(part for x in overrides for part in ("--set", x)), *options]


def questions(folder: Path) -> Case:
    valid = "Where?\nWhy, \u201cthen\u201d?\n\n答案\n".encode()
    arguments = asks(folder, "--channel=text")
    return Case(folder / "stdin", "read_questions", arguments, valid, on_stdin=True)


def asked_links(folder: Path) -> Case:
    file = folder / "links.safetensors"
    team = load_team(load_config(TEAM / "run.yaml").system)
    save_links(file, jax.device_get(start_links(team, start="identity", key=jax.random.key(0))))
    return Case(
        file, "read_questions", asks(folder, "--links", str(file), "Where?"), file.read_bytes()
    )


def role_texts(name: str) -> Callable[[Path], Case]:
    """A case of a file that `rmas role-texts` wrote and goes on with."""

    def case(folder: Path) -> Case:
        (folder / "q.jsonl").write_bytes(lines_of(rows()[:3]))
        options = ["--questions", str(folder / "q.jsonl"), "--out", str(folder / "texts.jsonl")]
        arguments = asks(folder, *options, "--accept=any", "--quiet")
        assert begun.keep_texts(arguments) == 0
        file = folder / name
        valid = file.read_bytes()
        if name.endswith(".jsonl"):
            changed = of_one_line([json.loads(line) for line in valid.splitlines()])
        else:
            changed = of_tree(json.loads(valid))
        return Case(file, "keep_texts", arguments, valid, changed | of_bytes(valid))

    return case


def recorded(folder: Path) -> Case:
    file = folder / "searches.jsonl"
    results = [{"title": "x", "url": "y", "text": "z"}]
    searches = [{"query": f"Query {i}", "results": results} for i in range(5)]
    valid = lines_of(searches)
    return Case(file, "replay", [str(file)], valid, of_one_line(searches) | of_bytes(valid))


# Case -> its share of the examples.
CASES: dict[str, tuple[Callable[[Path], Case], float]] = {
    "configuration": (configuration, 3),
    "topology": (topology, 1.5),
    "prompts": (prompts, 1.5),
    "json_lines": (json_lines, 2),
    "json_list": (json_list, 1.5),
    "parquet": (parquet, 1.5),
    "corpus": (corpus, 1.5),
    "config_qwen3": (in_agent("config.json", "planner"), 2),
    "config_llama": (in_agent("config.json", "critic"), 2),
    "config_gemma3": (in_agent("config.json", "solver"), 2),
    "weights": (in_agent("model.safetensors", "critic"), 1.5),
    "index": (index, 1),
    "tokenizer": (
        in_agent(
            "tokenizer.json",
            "planner",
            only=("added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder"),
        ),
        1.5,
    ),
    "tokenizer_config": (in_agent("tokenizer_config.json", "solver"), 1.5),
    "template": (template, 1),
    "links": (links, 1.5),
    "torch_links": (torch_links, 1.5),
    "results": (in_run("results.json"), 0.75),
    "items": (in_run("items.jsonl"), 0.75),
    "metrics": (in_run("metrics.jsonl"), 0.5),
    "gradients": (in_run("gradients.json"), 0.5),
    "timings": (in_run("timings.json"), 0.5),
    "environment": (in_run("environment.json"), 0.25),
    "used_configuration": (in_run("config.yaml"), 0.25),
    "begun_identity": (in_begun_run("identity.json"), 0.5),
    "begun_timings": (in_begun_run("timings.json"), 0.5),
    "begun_steps": (in_begun_run("steps.json"), 0.5),
    "begun_curves": (in_begun_run("metrics.jsonl"), 0.25),
    "begun_links": (in_begun_run("links/aligned.safetensors"), 0.5),
    "begun_record": (in_begun_run("checkpoints/phase/record.json"), 0.5),
    "prepared": (prepared, 0.5),
    "questions": (questions, 1),
    "asked_links": (asked_links, 1),
    "role_texts": (role_texts("texts.jsonl"), 0.75),
    "role_texts_settings": (role_texts("texts.jsonl.settings"), 0.5),
    "recorded": (recorded, 0.5),
}
