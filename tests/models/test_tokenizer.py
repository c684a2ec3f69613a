"""Tokenizers of checkpoints, and the tokens that two share, however they mark spaces."""

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from experiments.embedded.make_tokenizers import STYLES, write_tokenizer
from rmas_jax.models import CheckpointError, load_tokenizer
from rmas_jax.models.tokenizer import shared_tokens

TEXTS = ("Bada Kor, three trips left", "Kor\nPlan")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    for seed, family in enumerate(STYLES):
        only_here = ("Luka", "Zuno") if family == "llama" else ()
        write_tokenizer(family, [*TEXTS, *only_here], folder / family, seed=seed)
    return {family: load_tokenizer(folder / family) for family in STYLES}


@pytest.mark.parametrize("sender", STYLES)
@pytest.mark.parametrize("receiver", STYLES)
def test_shared_tokens_spell_the_same(tokenizers, sender, receiver):
    mine, theirs = tokenizers[sender], tokenizers[receiver]
    ids = shared_tokens(mine, theirs)
    surfaces = []
    for tokenizer, own in zip((mine, theirs), ids, strict=True):
        assert own.dtype == np.int32
        assert not set(own.tolist()) & set(tokenizer.all_special_ids)
        start = tokenizer("x", add_special_tokens=False)["input_ids"]
        surfaces.append([tokenizer.decode([*start, i])[1:] for i in own.tolist()])
    assert surfaces[0] == surfaces[1]
    assert len(set(surfaces[0])) == len(surfaces[0])
    assert {"Bada", " Kor", "Kor", " three", "\n"} <= set(surfaces[0])  # a space makes a difference
    assert ("Luka" in surfaces[0]) == (sender == receiver == "llama")


@pytest.fixture
def tokenizer_directory(tmp_path):
    inner = Tokenizer(WordLevel({"<unk>": 0, "hi": 1}, "<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_tokenizer_with_its_chat_template(tokenizer_directory):
    tokenizer = load_tokenizer(tokenizer_directory)
    messages = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "hi"
    assert tokenizer("hi")["input_ids"] == [1]


def test_tokenizer_without_chat_template(tokenizer_directory):
    (tokenizer_directory / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match="no chat template"):
        load_tokenizer(tokenizer_directory)


def test_missing_tokenizer(oracle, tmp_path):
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        load_tokenizer(oracle("llama").directory)
    with pytest.raises(CheckpointError, match="no such directory"):
        load_tokenizer(tmp_path / "nowhere")


def test_damaged_tokenizer(tokenizer_directory):
    (tokenizer_directory / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_tokenizer(tokenizer_directory)
