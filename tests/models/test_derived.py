"""Checkpoints of changed weights with the rest of the checkpoint that they were changed from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from gguf_files import byte_level_fields, write_gguf

from rmas_jax.models import CheckpointError, load_pretrained, load_tokenizer
from rmas_jax.models import derived as module
from rmas_jax.models.derived import save_derived
from rmas_jax.models.generation import sampling_defaults
from rmas_jax.models.tokenizer import PROBE
from rmas_jax.team_texts import text_ends

EMBEDDED = Path(__file__).parents[2] / "rmas_jax/assets/embedded"
IDS = np.array([[5, 30, 8, 100, 40, 2, 9]])


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The embedded planner as a file, with a first token, and the solver as a folder with rules."""
    folder = tmp_path_factory.mktemp("sources")
    fields = byte_level_fields(EMBEDDED / "planner", "llama-bpe")
    fields |= {"ggml.bos_token_id": 0, "ggml.add_bos_token": True, "ggml.eot_token_id": 1}
    file = write_gguf(folder / "planner.gguf", EMBEDDED / "planner", tokenizer=fields)
    solver = shutil.copytree(EMBEDDED / "solver", folder / "solver")
    rules = {"do_sample": True, "temperature": 0.5, "eos_token_id": [2, 1]}
    (solver / "generation_config.json").write_text(json.dumps(rules))
    return {"file": file, "folder": solver}


def changed(source):
    model, params = load_pretrained(source)
    return model, jax.tree.map(lambda x: x * 1.25, params)


def logits(model, params):
    embeds = model.apply({"params": params}, IDS, method="embed")
    hidden = model.apply({"params": params}, embeds, np.ones(IDS.shape, bool))
    return model.apply({"params": params}, hidden, method="unembed")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_everything_but_the_weights_is_that_of_the_source(sources, tmp_path, kind):
    source, path = sources[kind], tmp_path / "new" / "model"
    tokenizer = load_tokenizer(source)
    model, params = changed(source)
    save_derived(path, model, params, source=source, tokenizer=tokenizer, files={"a.md": b"card"})
    assert sorted(p.name for p in path.parent.iterdir()) == ["model"]  # nothing half-written
    assert (path / "a.md").read_bytes() == b"card"

    again, saved = load_pretrained(path)
    assert again.config == model.config
    np.testing.assert_array_equal(logits(again, saved), logits(model, params))
    assert np.abs(logits(*load_pretrained(source)) - logits(model, params)).max() > 0.1
    own = load_tokenizer(path)
    for text in (PROBE, "<|im_start|>user\nKenal Bison<|im_end|>", ""):
        for is_whole in (False, True):
            ids = tokenizer(text, add_special_tokens=is_whole)["input_ids"]
            assert own(text, add_special_tokens=is_whole)["input_ids"] == ids
            assert own.decode(ids) == tokenizer.decode(ids)
    assert own.chat_template == tokenizer.chat_template
    assert sampling_defaults(path) == sampling_defaults(source)
    assert text_ends(str(path), own) == text_ends(str(source), tokenizer)


def test_transformers_reads_it_too(sources, tmp_path):
    path = tmp_path / "model"
    model, params = changed(sources["file"])
    tokenizer = load_tokenizer(sources["file"])
    save_derived(path, model, params, source=sources["file"], tokenizer=tokenizer)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        expected = theirs(torch.tensor(IDS)).logits.numpy()
    np.testing.assert_allclose(logits(model, params), expected, rtol=1e-4, atol=1e-4)
    assert theirs.config.max_position_embeddings == 512  # the file's context_length
    assert theirs.config.eos_token_id == [1, 2]
    turns = [{"role": "user", "content": "Kenal Bison"}]
    auto = transformers.AutoTokenizer.from_pretrained(path)
    assert auto.apply_chat_template(turns) == tokenizer.apply_chat_template(turns)


def test_another_chat_template_goes_with_it(sources, tmp_path):
    text = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    tokenizer = load_tokenizer(sources["folder"], chat_template=text)
    save_derived(
        tmp_path / "model",
        *changed(sources["folder"]),
        source=sources["folder"],
        tokenizer=tokenizer,
    )
    assert load_tokenizer(tmp_path / "model").chat_template == text


def test_what_is_there_stays(sources, tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    (path / "mine").write_text("mine")
    model, params = changed(sources["folder"])
    tokenizer = load_tokenizer(sources["folder"])
    with pytest.raises(CheckpointError, match="model: must not exist yet"):
        save_derived(path, model, params, source=sources["folder"], tokenizer=tokenizer)
    assert [file.name for file in tmp_path.rglob("*")] == ["model", "mine"]


def test_a_tokenizer_that_changes_is_refused_and_nothing_is_left(sources, tmp_path, monkeypatch):
    model, params = changed(sources["folder"])
    tokenizer = load_tokenizer(sources["folder"])
    other = load_tokenizer(EMBEDDED / "planner")
    monkeypatch.setattr(module, "load_tokenizer", lambda *args, **options: other)
    assert other(PROBE)["input_ids"] != tokenizer(PROBE)["input_ids"]
    with pytest.raises(CheckpointError, match="split a test text after it is saved as before"):
        save_derived(
            tmp_path / "model", model, params, source=sources["folder"], tokenizer=tokenizer
        )
    assert not [*tmp_path.iterdir()]
