"""The agents that ship with the package against torch transformers, on their own texts."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import rmas_jax
from rmas_jax.data import relay
from rmas_jax.models import CheckpointError, Decoder, load_pretrained, load_tokenizer
from rmas_jax.models.directories import local_directory
from rmas_jax.prompts import SENTINEL, left_pad, load_prompts, split_template
from rmas_jax.topology import load_topology

EMBEDDED = Path(rmas_jax.__file__).parent / "assets" / "embedded"
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=relay.ROLES)
def agent(request):
    """(role, directory, torch model, decoder, params, tokenizer)."""
    directory = EMBEDDED / request.param
    theirs = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    return request.param, directory, theirs, *load_pretrained(directory), load_tokenizer(directory)


@pytest.fixture(scope="module")
def problems():
    """Questions of different lengths, with the texts of all roles."""
    world = relay.make_world()
    return [
        relay.example(world, phrase, gates)
        for phrase, gates in (((3, 5), 1), ((80, 90), 4), ((10, 75), 7), ((60, 2), 9))
    ]


def chats(role, tokenizer, problems):
    """What a role reads in the first round of each problem, in words: ids and mask."""
    prompt = load_prompts("relay", load_topology("sequential").edges)[role]
    pieces = split_template(tokenizer, prompt, prompt.first)
    received = {"planner": None, "critic": "plan", "solver": "refined_plan"}[role]
    rows = []
    for problem in problems:
        text = pieces[0] if len(pieces) == 1 else problem[received][0].join(pieces[0::2])
        text = text.replace(SENTINEL.format("question"), problem["question"])
        rows.append(tokenizer(text, add_special_tokens=False)["input_ids"])
    return left_pad(rows)


def torch_read(model, ids, valid):
    """Hidden states after the final norm and logits."""
    mask = torch.tensor(valid).long()
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor(ids).long(),
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            output_hidden_states=True,
        )
    return out.hidden_states[-1].numpy(), out.logits.numpy()


@pytest.fixture(scope="module")
def read():
    """Ids -> hidden states and logits, compiled per model."""

    def run(model: Decoder, params, ids, valid):
        variables = {"params": params}
        hidden = model.apply(variables, model.apply(variables, ids, method="embed"), valid)
        return hidden, model.apply(variables, hidden, method="unembed")

    return jax.jit(run, static_argnums=0)


def test_hidden_states_and_logits_equal_torch(agent, problems, read):
    role, _, theirs, model, params, tokenizer = agent
    ids, valid = chats(role, tokenizer, problems)
    assert not valid.all()  # ragged
    for ours, expected in zip(
        read(model, params, ids, valid), torch_read(theirs, ids, valid), strict=True
    ):
        np.testing.assert_allclose(
            ours[valid], expected[valid], rtol=TOLERANCE, atol=TOLERANCE * np.abs(expected).max()
        )
    # The control: one weight of the last norm, changed by a hundredth.
    nudged = dict(params) | {"final_norm": {"weight": params["final_norm"]["weight"] + 0.01}}
    hidden, _ = read(model, nudged, ids, valid)
    expected, _ = torch_read(theirs, ids, valid)
    assert np.abs(hidden - expected)[valid].max() > TOLERANCE * (1 + np.abs(expected).max())


def test_greedy_text_equals_torch_and_is_the_role_text(agent, problems, read):
    role, _, theirs, model, params, tokenizer = agent
    ids, valid = chats(role, tokenizer, problems)
    steps = 8
    written = theirs.generate(
        torch.tensor(ids).long(),
        attention_mask=torch.tensor(valid).long(),
        do_sample=False,
        max_new_tokens=steps,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    ).numpy()[:, ids.shape[1] :]
    # Without a cache, one column more at every step: the plainest decoder there is.
    ours = np.concatenate([ids, np.zeros((len(ids), steps), ids.dtype)], axis=1)
    width = ids.shape[1]
    seen = np.concatenate([valid, np.ones((len(ids), steps), bool)], axis=1)
    for i in range(steps):
        _, logits = read(model, params, ours, seen)  # later columns cannot be seen
        ours[:, width + i] = np.argmax(logits[:, width + i - 1], axis=-1)
    field = {"planner": "plan", "critic": "refined_plan", "solver": "draft"}[role]
    for row, theirs_row, problem in zip(ours[:, width:], written, problems, strict=True):
        end = list(row).index(tokenizer.eos_token_id) + 1
        np.testing.assert_array_equal(row[:end], theirs_row[:end])
        assert tokenizer.decode(row[: end - 1]) == problem[field][0]


def test_in_int8_it_still_writes_the_role_text(agent, problems, read):
    role, directory, _, model, _, tokenizer = agent
    _, params = load_pretrained(directory, weights="int8")
    field = {"planner": "plan", "critic": "refined_plan", "solver": "draft"}[role]
    ids, valid = chats(role, tokenizer, problems)
    texts = [tokenizer(p[field][0], add_special_tokens=False)["input_ids"] for p in problems]
    texts = [[*text, tokenizer.eos_token_id] for text in texts]
    rows = [[*row[real], *text] for row, real, text in zip(ids, valid, texts, strict=True)]
    _, logits = read(model, params, *left_pad(rows))
    for row, text in zip(np.argmax(logits, axis=-1), texts, strict=True):
        assert row[-len(text) - 1 : -1].tolist() == text


def test_card_says_how_the_agent_was_made(agent):
    role, directory, *_ = agent
    card = (directory / "README.md").read_text()
    assert f"--role {role}" in card
    assert f"{sum(p.size for p in jax.tree.leaves(agent[4])):,} parameters" in card


def test_the_looper_has_a_card_that_says_what_it_is_and_shares_the_solvers_prompt():
    directory = EMBEDDED / "looper"
    decoder, params = load_pretrained(directory)
    assert decoder.config.model_type == "ouro" and decoder.config.loops == 3
    card = (directory / "README.md").read_text()
    assert "--role looper" in card and "remote code" in card
    assert f"{sum(p.size for p in jax.tree.leaves(params)):,} parameters" in card
    assert sum(f.stat().st_size for f in directory.iterdir()) < 1.5 * 2**20


def test_the_three_are_different_families_of_different_widths():
    configs = [load_pretrained(EMBEDDED / role)[0].config for role in relay.ROLES]
    assert [c.model_type for c in configs] == ["qwen3", "llama", "gemma3_text"]
    assert len({c.width for c in configs}) == 3
    assert sum(f.stat().st_size for f in EMBEDDED.rglob("*")) < 16 * 2**20


def test_embedded_agents_are_found_by_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for role in relay.ROLES:
        assert local_directory(f"embedded/{role}", patterns=("*.json",)) == EMBEDDED / role
    names = "embedded/critic, embedded/looper, embedded/planner, embedded/solver"
    for wrong in ("embedded/judge", "embedded/../embedded/critic", "embedded/"):
        with pytest.raises(CheckpointError, match=f"must be one of {names}, got '{wrong}'"):
            local_directory(wrong, patterns=())
    own = tmp_path / "embedded" / "planner"
    own.mkdir(parents=True)
    assert local_directory("embedded/planner", patterns=()) == Path("embedded/planner")
