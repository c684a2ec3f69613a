"""The released systems: their configurations, and whole systems made by torch in their layout."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from pathlib import Path

import huggingface_hub
import jax
import numpy as np
import pytest
import torch
import transformers
from models.test_published_sizes import CONFIGS
from oracles import SIZES
from released import EDGES, TASKS, assert_same_link, write_json, write_release, write_role

from experiments.embedded.make_tokenizers import write_tokenizer
from rmas_jax.config import ConfigError, SystemConfig, load_config
from rmas_jax.interop import read_released_links, read_state, write_state
from rmas_jax.interop.link_files import save_links
from rmas_jax.links import link_shapes
from rmas_jax.models import CheckpointError, config_from_hf
from rmas_jax.prompts import load_prompts, render_chat
from rmas_jax.rounds.channels import LatentChannel
from rmas_jax.rounds.recursion import Unroll, run_rounds
from rmas_jax.team import Team, build_system, load_links_for, load_team
from rmas_jax.team_texts import checked_topology
from rmas_jax.topology import load_topology

FOLDER = Path(__file__).parents[2] / "experiments/configs/released"
# Published: role -> base model and its width; millions of outer parameters; latent steps, rounds.
PUBLISHED = {
    "sequential_light": (
        {
            "planner": ("Qwen/Qwen3-1.7B", 2048),
            "critic": ("meta-llama/Llama-3.2-1B", 2048),
            "solver": ("Qwen/Qwen2.5-Math-1.5B", 1536),
        },
        53.0,
        (32, 3),
    ),
    "sequential_scaled": (
        {
            "planner": ("google/gemma-3-4b-it", 2560),
            "critic": ("meta-llama/Llama-3.2-3B", 3072),
            "solver": ("Qwen/Qwen3.5-4B", 2560),
        },
        112.0,
        (64, 2),
    ),
    "mixture": (
        {
            "math": ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", 1536),
            "code": ("Qwen/Qwen2.5-Coder-3B", 2048),
            "science": ("BioMistral/BioMistral-7B", 4096),
            "summarizer": ("Qwen/Qwen3.5-2B", 2048),
        },
        166.3,
        (64, 3),
    ),
    "distillation": (
        {"expert": ("Qwen/Qwen3.5-9B", 4096), "learner": ("Qwen/Qwen3.5-4B", 2560)},
        109.6,
        (64, 3),
    ),
    "deliberation": (
        {"reflector": ("Qwen/Qwen3.5-4B", 2560), "toolcaller": ("Qwen/Qwen3.5-4B", 2560)},
        65.6,
        (16, 2),
    ),
}


def system_config(style: str) -> SystemConfig:
    return load_config(FOLDER / f"{style}.yaml").system


# --- Configurations -------------------------------------------------------------------------------


def test_there_is_a_configuration_of_every_released_system():
    assert {file.stem for file in FOLDER.glob("*.yaml")} == set(PUBLISHED)


@pytest.mark.parametrize("style", PUBLISHED)
def test_configuration_fits_what_is_published(style):
    roles, millions, settings = PUBLISHED[style]
    config = system_config(style)
    width = {role: config_from_hf(CONFIGS[base]).width for role, (base, _) in roles.items()}
    system = build_system(config, checked_topology(config), width)
    load_prompts(config.prompts, system.topology.edges, config.task_type)

    assert {role: system.width(role) for role in roles} == {r: d for r, (_, d) in roles.items()}
    for role, (base, _) in roles.items():
        family = base.partition("/")[2].replace("-", "").replace(".", "").lower()
        named = config.agents[role].replace("-", "").replace(".", "").lower()
        assert role in named and family.removesuffix("it") in named
    assert set(system.outer) == set(EDGES[config.topology].values())
    shapes = [link_shapes(link) for link in system.outer.values()]
    count = sum(math.prod(shape) for link in shapes for m in link.values() for shape in m.values())
    assert count / 1e6 == pytest.approx(millions, abs=0.05)
    assert (config.latent_steps, config.rounds) == settings
    assert (config.links_task_type is not None) == (TASKS[config.topology] != (None,))


# --- Links of every style, as torch saved them ----------------------------------------------------


@pytest.mark.parametrize("style", PUBLISHED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_links_of_every_style_are_those_of_torch(tmp_path, style, dtype):
    topology = system_config(style).topology
    width = {role: 4 + 2 * i for i, role in enumerate(PUBLISHED[style][0])}
    released = write_release(tmp_path, topology, width, dtype)
    roles = {role: tmp_path / role for role in width}
    for task, modules in released.items():
        links = read_released_links(tmp_path / "outer", roles, task=task)
        for kind, of_kind in modules.items():
            assert set(links[kind]) == set(of_kind)
            for name, module in of_kind.items():
                assert_same_link(links[kind][name], module)


# --- Whole systems --------------------------------------------------------------------------------

WIDTH = {"expert": 24, "learner": 32}
QUESTION = "What is 12 times 12?"


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A tiny Distillation: its folder, its system, its torch agents and its torch links."""
    folder = tmp_path_factory.mktemp("released")
    links = write_release(folder, "distillation", WIDTH)
    agents = {role: str(folder / role) for role in WIDTH}
    config = dataclasses.replace(
        system_config("distillation"), agents=agents, latent_steps=3, links=str(folder / "outer")
    )
    prompts = load_prompts(config.prompts, load_topology(config.topology).edges, config.task_type)
    texts = [
        text for prompt in prompts.values() for text in (prompt.system, prompt.first, prompt.later)
    ]
    models = {}
    for seed, (role, family) in enumerate((("expert", "qwen3"), ("learner", "llama"))):
        write_tokenizer(family, texts, folder / role, seed=seed)
        path = folder / role / "tokenizer_config.json"
        raw = json.loads(path.read_text()) | {"extra_special_tokens": []}
        write_json(path, raw | {"tokenizer_class": "TokenizersBackend"})  # as transformers 5 saves
        vocabulary = json.loads((folder / role / "tokenizer.json").read_text())["model"]["vocab"]
        sizes = SIZES | {"vocab_size": len(vocabulary), "hidden_size": WIDTH[role]}
        torch.manual_seed(seed)
        models[role] = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(family, **sizes), dtype=torch.float32
        ).eval()
        models[role].save_pretrained(folder / role)
    return folder, config, models, links


def think_in_torch(model, inner, ids, steps):
    """Latent thoughts [M, D] without a cache, as upstream rolls out."""
    embeds, thoughts = model.get_input_embeddings()(torch.tensor([ids])), []
    for _ in range(steps):
        out = model(inputs_embeds=embeds, output_hidden_states=True)
        thoughts.append(out.hidden_states[-1][0, -1])
        embeds = torch.cat([embeds, inner(thoughts[-1])[None, None]], dim=1)
    return torch.stack(thoughts)


def test_a_whole_system_thinks_as_torch_does(released):
    folder, config, models, links = released
    assert (folder / "expert" / "adapter_config.json").exists()
    team = load_team(config)
    prompts = team.encode([QUESTION])

    @jax.jit
    def received(links, agents):
        channel = LatentChannel(team.system, links)
        return run_rounds(team.system, agents, channel, prompts, Unroll(rounds=1)).received[0, 0]

    expert, tokenizer = team.members["expert"].template, team.members["expert"].tokenizer
    text = render_chat(tokenizer, expert.system, expert.first.replace("{question}", QUESTION))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    results = {}
    for task in ("math", "code"):
        ours = load_links_for(team, dataclasses.replace(config, links_task_type=task))
        results[task] = received(ours, team.agents)
        inner = links[task]["inner"]["expert"]
        with torch.no_grad():
            thoughts = think_in_torch(models["expert"], inner, ids, steps=3)
            expected = links[task]["outer"]["expert->learner"](inner(thoughts)).numpy()
        np.testing.assert_allclose(results[task], expected, rtol=1e-4, atol=1e-4)
    assert np.abs(results["math"] - results["code"]).max() > 0.1


# --- What is refused ------------------------------------------------------------------------------


@pytest.fixture
def release(tmp_path):
    """Links to be damaged, and a function that loads them into a system, with changed settings."""
    folder = tmp_path / "release"
    write_release(folder, "distillation", WIDTH)
    agents = {role: str(folder / role) for role in WIDTH}
    config = dataclasses.replace(
        system_config("distillation"), agents=agents, links=str(folder / "outer")
    )

    def load(**changes):
        changed = dataclasses.replace(config, **changes)
        return load_links_for(tiny_team(changed), changed)

    return folder, load


def tiny_team(config: SystemConfig) -> Team:
    """A system of the right widths, without weights: all that links are held against."""
    return Team(build_system(config, checked_topology(config), WIDTH), members={})


def refusal(load, **changes) -> list[str]:
    with pytest.raises(CheckpointError) as error:
        load(**changes)
    return str(error.value).splitlines()


class Harm:
    """A pickle that would leave a mark if it were run."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_all_files_that_cannot_be_read_are_listed(release, tmp_path):
    folder, load = release
    load()
    mark = tmp_path / "mark"
    torch.save({"proj1.weight": Harm(mark)}, folder / "expert" / "adapter(math).pt")
    file = folder / "learner" / "adapter(math).pt"
    file.write_bytes(file.read_bytes()[:1000])
    (folder / "outer" / "Expert-Learner-Outerlink(math).pt").unlink()
    head, *lines = refusal(load)
    assert head == "links that cannot be read:"
    for line, words in zip(
        lines, ("got posix.mkdir", "not a file of torch.save", "no such file"), strict=True
    ):
        assert words in line and str(folder) in line
    assert not mark.exists()
    load(links_task_type="code")  # which is whole


def test_all_links_of_a_wrong_width_are_listed(release):
    folder, load = release
    (folder / "expert").rename(folder / "third")
    (folder / "learner").rename(folder / "expert")
    (folder / "third").rename(folder / "learner")
    assert refusal(load)[1:] == [
        "  inner link expert must be ln_res 24 -> 24, got ln_res 32 -> 32",
        "  inner link learner must be ln_res 32 -> 32, got ln_res 24 -> 24",
    ]


def test_links_of_other_roles_and_missing_edges_are_listed(release, tmp_path):
    _, load = release
    write_release(tmp_path / "other", "deliberation", {"reflector": 24, "toolcaller": 32})
    lines = refusal(load, links=str(tmp_path / "other" / "outer"))
    assert lines[0].startswith(f"system.links={tmp_path / 'other' / 'outer'}: links that do not")
    assert lines[1:3] == [
        "  outer link expert->learner is missing",
        "  outer link learner->expert is missing",
    ]
    needed = "expert->learner, learner->expert"
    assert lines[3] == f"  outer links must be {needed}, got reflector->toolcaller too"


def test_links_of_another_variant_are_refused(release, tmp_path):
    folder, load = release
    lines = refusal(load, inner_link="mlp_res", outer_link="ln")
    assert "  inner link expert must be mlp_res 24 -> 24, got ln_res 24 -> 24" in lines
    assert "  outer link expert->learner must be ln 24 -> 32, got ln_res 24 -> 32" in lines
    save_links(tmp_path / "ours.safetensors", load())
    ours = {"links": str(tmp_path / "ours.safetensors"), "links_task_type": None}
    assert len(refusal(load, **ours, inner_link="mlp_res")) == 3
    state = read_state(tmp_path / "ours.safetensors")
    state["inner/learner/extra/kernel"] = np.zeros(2, np.float32)
    write_state(tmp_path / "more.safetensors", state)
    with pytest.raises(CheckpointError, match="inner/learner must be those of a link variant"):
        load(links=str(tmp_path / "more.safetensors"))
    write_state(tmp_path / "one.safetensors", read_state(folder / "learner" / "adapter(math).pt"))
    with pytest.raises(CheckpointError, match=r"names must be of a system's links, .*, got '"):
        load(links=str(tmp_path / "one.safetensors"))


def test_settings_of_links_that_say_nothing_are_refused(release, tmp_path):
    _, load = release
    with pytest.raises(ConfigError, match=r"system\.links must be a file"):
        load(links=None)
    text = (FOLDER / "mixture.yaml").read_text()
    path = tmp_path / "run.yaml"
    path.write_text(text)
    for value in ("null", "links.safetensors"):
        with pytest.raises(ConfigError, match=r"system\.links_task_type must be null"):
            load_config(path, [f"system.links={value}", "system.links_task_type=math"])


# --- The hub --------------------------------------------------------------------------------------


@pytest.fixture
def hub(released, tmp_path, monkeypatch):
    """A hub of the tiny release: what is fetched lies, by repository and revision, in a folder."""
    folder, config, *_ = released
    homes = {f"RecursiveMAS/{role}": folder / role for role in (*WIDTH, "outer")}

    def snapshot_download(repo_id, *, revision, allow_patterns):
        snapshot = tmp_path / "hub" / repo_id / (revision or "main")
        names = [file.name for file in homes[repo_id].iterdir()]
        for name in huggingface_hub.utils.filter_repo_objects(names, allow_patterns=allow_patterns):
            snapshot.mkdir(parents=True, exist_ok=True)
            shutil.copy(homes[repo_id] / name, snapshot / name)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    agents = {role: f"RecursiveMAS/{role}@v1" for role in WIDTH}
    config = dataclasses.replace(config, agents=agents, links="RecursiveMAS/outer@v2")
    return tmp_path / "hub" / "RecursiveMAS", config


def test_only_what_a_system_needs_is_fetched_at_its_revision(hub):
    folder, config = hub
    load_links_for(load_team(config), config)

    def fetched(name):
        return {str(file.relative_to(folder / name)) for file in (folder / name).rglob("*.*")}

    links = {"Expert-Learner-Outerlink(math).pt", "Learner-Expert-Outerlink(math).pt"}
    assert fetched("outer") == {f"v2/{name}" for name in (*links, "outerlink_config.json")}
    for role in WIDTH:
        read = "config generation_config adapter_config innerlink_config tokenizer tokenizer_config"
        names = {f"{name}.json" for name in read.split()} | {"model.safetensors"}
        assert fetched(role) == {f"v1/{name}" for name in (*names, "adapter(math).pt")}


def test_a_directory_wins_over_a_revision(hub, tmp_path, monkeypatch):
    folder, config = hub
    monkeypatch.chdir(tmp_path)
    write_role(tmp_path / "RecursiveMAS" / "expert@v1", {None: torch.nn.Identity()})
    with pytest.raises(CheckpointError, match=r"/expert@v1/adapter\.pt: must be an inner link"):
        load_links_for(tiny_team(config), config)
    assert not (folder / "expert").exists()
