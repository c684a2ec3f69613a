"""The main job from its start to a report: stopped, finished, repeated, added to."""

import collections
import dataclasses
import json
import signal
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from quickstart_runs import CONFIG, TINY, refused, run

from rmas_jax.config import ConfigError, load_config
from rmas_jax.host.errors import BAD_INPUT, PREEMPTED
from rmas_jax.interop import read_released_links
from rmas_jax.interop.link_files import load_links, save_links
from rmas_jax.links import Links
from rmas_jax.models.tokenizer import shared_tokens
from rmas_jax.runs import learned_data, resolve
from rmas_jax.runs import run as steps
from rmas_jax.runs.folder import open_folder
from rmas_jax.team import load_team, start_links
from rmas_jax.training.data.lists import LIST_TOKENS
from rmas_jax.training.phases import loop as phase_loop

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_a_dry_run_says_what_would_be_done_and_does_nothing(tmp_path, capsys):
    assert run(tmp_path, options=("--dry-run",)) == 0
    printed = capsys.readouterr().out
    for words in (
        "mesh: data=1 x fsdp=1 x model=1 of 8 cpu devices",
        "agent planner: qwen3, 174,240 parameters, float32, 0.7 MiB on each device",
        "outer link solver->planner: ln_res, 27,200 parameters",
        "phase on_policy: on_policy, 3 rounds, 2 steps of 2 items (accumulation=1); 16 items",
        "  states of planner: ",
        "memory per device, by the compiler",
        "  step of on_policy, 2 items at once: ",
        "  validation of on_policy, 2 items at once: ",
        "  rounds, 2, 4 items at once: ",
        f"written to {tmp_path / 'runs' / 'quickstart'}",
    ):
        assert words in printed, words
    assert not (tmp_path / "runs" / "quickstart").exists()


@pytest.mark.parametrize(
    ("steps", "repeats", "phases", "encoded"),
    [(0, 2, 0, []), (2, 1, 0, []), (2, 2, 0, [8]), (0, 1, 1, [16, 4])],
)
def test_nothing_is_encoded_that_is_not_read(
    tmp_path, monkeypatch, steps, repeats, phases, encoded
):
    seen = []
    for module in (learned_data, resolve):
        monkeypatch.setattr(module, "encode_examples", lambda team, items: seen.append(len(items)))
    monkeypatch.setattr(learned_data, "encode_dialogues", lambda *args, **options: None)
    settings = [f"inner.steps={steps}", f"inner.repeats={repeats}", "inner.warmup_steps=0"]
    settings += [f"output_dir={tmp_path}", *([] if phases else ["outer.phases=[]"])]
    resolved = resolve.resolve(load_config(CONFIG, [*TINY, *settings]))
    dialogues, data = learned_data.encode_inner(resolved)
    assert len(dialogues) == (3 if steps else 0)
    assert (learned_data.encode_outer(resolved) is None) == (phases == 0)
    assert seen == encoded and data is None


def test_lists_of_tokens_follow_the_texts_that_a_role_reads(tmp_path, monkeypatch):
    settings = [*TINY, "inner.items=2", f"output_dir={tmp_path}"]
    resolved = resolve.resolve(load_config(CONFIG, [*settings, "inner.lists=3"]))
    alone, _ = learned_data.encode_inner(resolve.resolve(load_config(CONFIG, settings)))
    found, _ = learned_data.encode_inner(resolved)
    for role, texts in alone.items():
        joined, count = found[role], len(texts.tokens)
        assert len(joined.tokens) == count + 3
        np.testing.assert_array_equal(joined.tokens.take(range(count)).ids, texts.tokens.ids)
        np.testing.assert_array_equal(joined.text_lengths[count:], [LIST_TOKENS] * 3)
        times = max(1, round(LIST_TOKENS * 3 / texts.text_lengths[texts.rows].sum()))
        rows = [*texts.rows] * times + [*range(count, count + 3)]
        np.testing.assert_array_equal(joined.rows, rows)
        drawn = joined.text_ids[-3 * LIST_TOKENS :]
        receivers = [edge[1] for edge in resolved.team.system.topology.edges if edge[0] == role]
        members = resolved.team.members
        known = [shared_tokens(*(members[x].tokenizer for x in (role, r)))[0] for r in receivers]
        assert set(drawn) <= set(np.concatenate(known).tolist())
    system = resolved.team.system
    forward = tuple({*system.topology.edges} - {*system.topology.feedback_edges})
    one_way = dataclasses.replace(system.topology, edges=forward)
    team = dataclasses.replace(resolved.team, system=system.replace(topology=one_way))
    of_one_way, _ = learned_data.encode_inner(dataclasses.replace(resolved, team=team))
    counts = {role: len(of.tokens) - len(alone[role].tokens) for role, of in of_one_way.items()}
    assert counts == {"planner": 3, "critic": 3, "solver": 0}  # which sends nothing
    monkeypatch.setattr(learned_data, "shared_tokens", lambda *_: (np.zeros(0, np.int32),) * 2)
    with pytest.raises(ConfigError, match=r"inner\.lists must be 0 for a role .*, got planner"):
        learned_data.encode_inner(resolved)


@pytest.fixture
def loads(monkeypatch):
    """How often a start loads what, wherever in the package that is."""
    counts = collections.Counter()

    def counted(name, call):
        def count(*args, **options):
            counts[name] += 1
            return call(*args, **options)

        return count

    for module in [m for name, m in sys.modules.items() if name.startswith("rmas_jax")]:
        for name in ("load_topology", "load_prompts", "load_tokenizer", "load_pretrained"):
            if name in vars(module):
                monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    load_dataset = resolve.load_dataset

    def loads_rows(*args, **options):
        dataset = load_dataset(*args, **options)

        def read(split):
            counts[split] += 1
            return dataset.read(split)

        return dataset._replace(read=read)

    monkeypatch.setattr(resolve, "load_dataset", loads_rows)
    return counts


LOADED_ONCE = {
    "load_topology": 1,
    "load_prompts": 1,
    "load_tokenizer": 3,  # agents
    "load_pretrained": 3,
    "train": 1,
    "validation": 1,
    "test[:6]": 1,
    "test_unseen_entities[:6]": 1,
}


def test_a_run_stops_when_asked_ends_in_a_report_and_is_reused(
    tmp_path, capsys, caplog, monkeypatch, loads
):
    folder = tmp_path / "runs" / "quickstart"
    original = phase_loop.put_batch

    def ask_to_end(*args, **options):
        signal.raise_signal(signal.SIGTERM)
        return original(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(phase_loop, "put_batch", ask_to_end)
        assert run(tmp_path) == PREEMPTED
    assert "after step 0 of 2 and is saved" in capsys.readouterr().err
    assert loads == LOADED_ONCE
    loads.clear()
    assert run(tmp_path) == 0
    assert loads == LOADED_ONCE
    for name in ("report.html", "report.md", "config.yaml", "environment.json", "gradients.json"):
        assert (folder / name).stat().st_size > 0, name
    released = folder / "links" / "released"
    roles = ("planner", "critic", "solver")
    found = read_released_links(released / "outer", {role: released / role for role in roles})
    trained = load_links(folder / "links" / "trained.safetensors")
    params = {kind: {name: link[1] for name, link in of.items()} for kind, of in found.items()}
    jax.tree.map(np.testing.assert_array_equal, Links(**params), trained)
    rows = json.loads((folder / "results.json").read_text())
    columns = (
        "method rounds latent_steps split n correct accuracy ci_low ci_high tokens_per_item "
        "steps_per_item flops_per_item seconds_per_item seed"
    )
    assert all(set(columns.split()) <= set(row) for row in rows)
    assert {row["split"] for row in rows} == {"test[:6]", "test_unseen_entities[:6]"}
    items = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    assert len(items) == sum(row["n"] for row in rows)
    assert str(folder / "report.html") in capsys.readouterr().out

    before = (folder / "items.jsonl").stat().st_mtime_ns
    assert run(tmp_path) == 0
    assert (folder / "items.jsonl").stat().st_mtime_ns == before
    for step in ("inner loop", "outer loop", "evaluation"):
        assert f"{step}: finished before" in caplog.text

    progress = "runtime.progress=true"  # moves no number
    more = "evaluation.benchmarks=[{name: relay, splits: ['test[:3]', 'test[:6]']}]"
    assert run(tmp_path, more, progress) == 0
    more = json.loads((folder / "results.json").read_text())
    assert more[: len(rows)] == rows and {row["split"] for row in more[len(rows) :]} == {"test[:3]"}
    assert len(more) > len(rows)

    overrides = [f"output_dir={tmp_path / 'runs'}", *TINY]
    finished = steps.run(
        load_config(
            CONFIG, [*overrides, "evaluation.benchmarks=[{name: relay, splits: ['test[:3]']}]"]
        )
    )
    assert finished.reused == ("inner loop", "outer loop", "gradient norms")
    assert finished.files.root == folder and finished.config.system.date is not None
    assert [row | {"crc32": 0} for row in finished.measured.results] == [
        row | {"crc32": 0} for row in more
    ]
    jax.tree.map(np.testing.assert_array_equal, finished.links, trained)

    assert run(tmp_path, "seed=1") == BAD_INPUT
    message = capsys.readouterr().err
    assert "holds another run's results" in message and "seed" in message


def test_training_starts_from_links_that_are_given(tmp_path, capsys):
    file = tmp_path / "given.safetensors"
    settings = [
        f"system.links={file}",
        f"output_dir={tmp_path}",
        "inner.steps=0",
        "inner.repeats=1",
    ]
    untrained = "outer.phases=[]"
    config = load_config(CONFIG, [*TINY, *settings, untrained])
    team = load_team(config.system)
    save_links(file, start_links(team, start="identity", key=jax.random.key(0)))
    assert "must be mlp_res" in refused(tmp_path, capsys, *settings, "system.inner_link=mlp_res")

    resolved = resolve.resolve(config)
    files = resolved.files
    with open_folder(resolved.config, resolved.contents):
        steps.align_links(resolved)
        steps.train_links(resolved, load_links(files.aligned_links))
    for path in (files.aligned_links, files.trained_links):
        assert path.read_bytes() == file.read_bytes()
    save_links(file, start_links(team, start="identity", key=jax.random.key(1)))
    for part, contents in (
        ("weights", resolve.resolve(config).contents),
        ("data", resolved.contents | {"data": "other"}),
    ):
        words = f"holds another run's results; it differs in {part}\\. Choose"
        with pytest.raises(ConfigError, match=words), open_folder(resolved.config, contents):
            pass


@pytest.mark.parametrize("lists", [0, 2])
def test_aligned_outer_links_start_from_the_tokens_of_what_is_read(tmp_path, monkeypatch, lists):
    seen = []
    monkeypatch.setattr(steps, "start_links", lambda *_, texts, **options: seen.append(texts))
    monkeypatch.setattr(steps, "run_inner_loop", lambda *_, **options: seen.append(options))
    monkeypatch.setattr(steps, "keep_links", lambda *_: None)
    settings = [f"inner.lists={lists}", f"output_dir={tmp_path}"]
    steps.align_links(resolve.resolve(load_config(CONFIG, [*TINY, *settings])))
    texts, options = seen
    assert options["align_outer"]
    assert (texts is None) if lists else (set(texts) == {"planner", "critic", "solver"})


def test_hooks_of_a_run_reach_its_phases(tmp_path, monkeypatch):
    resolved = resolve.resolve(load_config(CONFIG, [*TINY, f"output_dir={tmp_path}"]))
    links, seen = start_links(resolved.team, start="identity", key=jax.random.key(0)), []

    def run_phase(team, links, *data, hooks, **options):
        seen.append(hooks)
        return links

    monkeypatch.setattr(steps, "run_phase", run_phase)
    hooks = (lambda event: None,)
    steps.train_links(resolved, links, hooks)
    assert seen == [hooks]
