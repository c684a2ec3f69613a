"""The main job: what a user sees of it, from bad input to a finished and a repeated run."""

import collections
import json
import shutil
import signal
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from rmas_jax.cli.run import main
from rmas_jax.config import ConfigError, load_config
from rmas_jax.host.errors import BAD_INPUT, PREEMPTED
from rmas_jax.interop import read_released_links
from rmas_jax.interop.link_files import load_links, save_links
from rmas_jax.links import Links
from rmas_jax.runs import resolve
from rmas_jax.runs import run as steps
from rmas_jax.runs.folder import open_folder
from rmas_jax.team import load_team, start_links
from rmas_jax.training.outer import loop as outer_loop
from rmas_jax.training.states import cache as state_cache

ROOT = Path(__file__).parents[2]
CONFIG = "quickstart"
AGENT = Path("rmas_jax/assets/embedded/planner")
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
    "evaluation.gradient_batch_size=2",
    "runtime.progress=false",
    "runtime.compilation_cache=false",
]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def run(tmp_path, *overrides, options=()):
    settings = [f"output_dir={tmp_path / 'runs'}", *TINY, *overrides]
    changes = [part for item in settings for part in ("--set", item)]
    return main(["--config", CONFIG, *changes, *options])


@pytest.fixture
def agent(tmp_path):
    """A copy of an agent to damage, and the override that uses it."""
    copy = tmp_path / "agent"
    shutil.copytree(AGENT, copy)
    return copy, f"system.agents.planner={copy}"


def refused(tmp_path, capsys, *overrides):
    assert run(tmp_path, *overrides) == BAD_INPUT
    message = capsys.readouterr().err
    assert message.startswith("error: ") and "Traceback" not in message
    assert not (tmp_path / "runs" / "quickstart" / "links").exists()
    return message


def test_a_key_that_does_not_exist(tmp_path, capsys):
    assert "system.latent_step" in refused(tmp_path, capsys, "system.latent_step=4")


def test_a_value_of_the_wrong_type(tmp_path, capsys):
    message = refused(tmp_path, capsys, "system.latent_steps=four")
    assert "system.latent_steps" in message and "four" in message


def test_a_configuration_file_that_is_not_there(capsys):
    assert main(["--config", "nowhere.yaml"]) == BAD_INPUT
    assert "nowhere.yaml" in capsys.readouterr().err


def test_a_model_directory_that_is_not_there(tmp_path, capsys):
    message = refused(tmp_path, capsys, f"system.agents.planner={tmp_path}/nobody")
    assert f"{tmp_path}/nobody" in message


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["output_dir=/dev/null/runs"], "output_dir=/dev/null/runs: cannot be made"),
        (
            ["system.latent_steps=16", "outer.phases.0.latents=teacher_forced"],
            "16 with texts of fewer than 16 tokens left out",
        ),
    ],
)
def test_what_training_could_not_do_is_found_before_it(tmp_path, capsys, overrides, words):
    assert words in refused(tmp_path, capsys, *overrides)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("outer.phases.0.batch_size=17", "there are 16 items to train on"),
        ("evaluation.batch_size=1", "shuffled_latents needs at least 2"),
    ],
)
def test_batches_that_do_not_fit_are_found_before_training(tmp_path, capsys, override, words):
    message = refused(tmp_path, capsys, override)
    assert override in message and words in message


def test_the_puzzles_are_no_problems_of_a_task(tmp_path, capsys):
    message = refused(tmp_path, capsys, "system.prompts=sequential", "system.task_type=math")
    assert "data.dataset=relay" in message and "system.task_type=math" in message


def test_int8_without_its_library(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "qwix", None)
    message = refused(tmp_path, capsys, "runtime.weights=int8")
    assert message.count("\n") == 1 and "rmas_jax[int8]" in message


def test_damaged_weights(tmp_path, capsys, agent):
    folder, override = agent
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "model.safetensors" in refused(tmp_path, capsys, override)


def test_an_unsupported_family(tmp_path, capsys, agent):
    folder, override = agent
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "rwkv"}))
    message = refused(tmp_path, capsys, override)
    assert "rwkv" in message and str(folder) in message


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ ''.__class__.__mro__ }}", "is unsafe"),
        ("{{ 'x' * 10**10 }}", "exceeds the memory limit"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "changes one of the texts"),
        ("{% if messages | length > 5 %}{{ messages[0].content }}{% endif %}", "leaves out"),
        ("{% for m in messages %}", "Unexpected end of template"),
    ],
)
def test_a_chat_template_that_cannot_be_used_is_found_before_anything_is_made(
    tmp_path, capsys, agent, template, words
):
    directory, override = agent
    (directory / "chat_template.jinja").write_text(template)
    message = refused(tmp_path, capsys, override)
    assert str(directory) in message and words in message and len(message) < 2000
    assert not (tmp_path / "runs").exists()


def test_a_date_that_is_no_day(tmp_path, capsys):
    message = refused(tmp_path, capsys, "system.date='2026-02-30'")
    assert "system.date must be a day as YYYY-MM-DD, got 2026-02-30" in message


def test_a_slot_that_a_template_lacks(tmp_path, capsys):
    text = (ROOT / "rmas_jax/prompts/relay.yaml").read_text().replace("{planner}", "the plan")
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text(text)
    message = refused(tmp_path, capsys, f"system.prompts={prompts}")
    assert "critic" in message and "planner" in message and str(prompts) in message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("system.topology=ring", "topology must be a path to a YAML file or one of "),
        (
            "system.topology=mixture",
            "system.agents must have the roles of the mixture topology, math, code",
        ),
        ("system.agents.judge=d", "sequential topology, planner, critic, solver, got "),
    ],
)
def test_agents_that_are_not_those_of_the_topology(tmp_path, capsys, override, words):
    assert words in refused(tmp_path, capsys, override)


def test_rounds_without_a_way_back(tmp_path, capsys):
    path = tmp_path / "line.yaml"
    path.write_text(
        "{name: line, order: [planner, critic, solver], answerer: solver, "
        "edges: [planner -> critic, critic -> solver]}"
    )
    message = refused(tmp_path, capsys, f"system.topology={path}")
    assert "system.rounds must be 1, as the line topology" in message
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text(
        'planner: {first: "{question}"}\ncritic: {first: "{question} {planner}"}\n'
        'solver: {first: "{question} {critic}"}\n'
    )
    line = (f"system.topology={path}", f"system.prompts={prompts}", "system.rounds=1")
    message = refused(tmp_path, capsys, *line)
    assert "outer.phases.0.rounds=" in message and "line" in message


def test_a_split_that_does_not_exist(tmp_path, capsys):
    message = refused(tmp_path, capsys, "evaluation.benchmarks=[{name: data, splits: [tset]}]")
    assert "evaluation.benchmarks: relay: splits" in message
    assert "'tset'" in message and "'validation'" in message


def test_a_folder_that_is_not_ours(tmp_path, capsys):
    folder = tmp_path / "runs" / "quickstart"
    folder.mkdir(parents=True)
    (folder / "diary.txt").write_text("dear diary")
    assert str(folder) in refused(tmp_path, capsys)


def test_a_dry_run_says_what_would_be_done_and_does_nothing(tmp_path, capsys):
    assert run(tmp_path, "outer.phases.0.batch_size=4", options=("--dry-run",)) == 0
    printed = capsys.readouterr().out
    for words in (
        "mesh: data=1 x fsdp=1 x model=1 of 8 cpu devices",
        "agent planner: qwen3, 174,240 parameters, float32, 0.7 MiB on each device",
        "outer link solver->planner: ln_res, 27,200 parameters",
        "phase on_policy: on_policy, 3 rounds, 2 steps of 4 items (accumulation=1); 16 items",
        "  states of planner: ",
        "memory per device, by the compiler",
        "memory per device of a validation, 4 items at once: ",
        f"written to {tmp_path / 'runs' / 'quickstart'}",
    ):
        assert words in printed, words
    assert not (tmp_path / "runs" / "quickstart").exists()


def test_states_that_no_memory_holds_are_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(state_cache, "physical_memory", lambda: 1000)
    assert run(tmp_path, "inner.cache_gib=0", options=("--dry-run",)) == BAD_INPUT
    message = capsys.readouterr().err
    assert "planner: 0.00 GiB" in message and "inner.cache_gib" in message


@pytest.mark.parametrize(
    ("steps", "repeats", "phases", "encoded"),
    [(0, 2, 0, []), (2, 1, 0, []), (2, 2, 0, [8]), (0, 1, 1, [16, 4])],
)
def test_nothing_is_encoded_that_is_not_read(
    tmp_path, monkeypatch, steps, repeats, phases, encoded
):
    seen = []
    monkeypatch.setattr(resolve, "encode_examples", lambda team, items: seen.append(len(items)))
    monkeypatch.setattr(resolve, "encode_dialogues", lambda *args, **options: None)
    settings = [f"inner.steps={steps}", f"inner.repeats={repeats}", "inner.warmup_steps=0"]
    settings += [f"output_dir={tmp_path}", *([] if phases else ["outer.phases=[]"])]
    resolved = resolve.resolve(load_config(CONFIG, [*TINY, *settings]))
    dialogues, data = resolve.encode_inner(resolved)
    assert len(dialogues) == (3 if steps else 0)
    assert (resolve.encode_outer(resolved) is None) == (phases == 0)
    assert seen == encoded and data is None


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

        def load(split):
            counts[split] += 1
            return dataset.load(split)

        return dataset._replace(load=load)

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
    original = outer_loop.put_batch

    def ask_to_end(*args):
        signal.raise_signal(signal.SIGTERM)
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(outer_loop, "put_batch", ask_to_end)
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
        "steps_per_item seconds_per_item seed"
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
