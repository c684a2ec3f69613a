"""Tokenizers of checkpoints, and the tokens that two share, however they mark spaces."""

import json
import os

import numpy as np
import pytest
import tokenizer_shapes as shapes
from tokenizers import Tokenizer, normalizers
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
    with pytest.raises(CheckpointError, match="must have a chat template"):
        load_tokenizer(tokenizer_directory)


def test_missing_tokenizer(oracle, tmp_path):
    with pytest.raises(
        CheckpointError, match=r"must have tokenizer\.json or tokenizer\.model, got neither"
    ):
        load_tokenizer(oracle("llama").directory)
    with pytest.raises(CheckpointError, match="no such directory"):
        load_tokenizer(tmp_path / "nowhere")


def test_damaged_tokenizer(tokenizer_directory):
    (tokenizer_directory / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_tokenizer(tokenizer_directory)


CLASSES = {
    "Qwen2Tokenizer": "qwen2",
    "Qwen2TokenizerFast": "qwen3",
    "PreTrainedTokenizerFast": "qwen2",
    "Qwen3_5Tokenizer": "qwen3_5_text",
    "LlamaTokenizer": "llama",
    "LlamaTokenizerFast": "mistral",
    "GemmaTokenizer": "gemma3_text",
    "GPT2Tokenizer": "ouro",
}
TEXT = "Call 1234567: it's  \u2126 FINE\n\n  \u65e5\u672c\u8a9e \ufb01\te\u0301"


@pytest.mark.parametrize("build", [shapes.byte_level, shapes.sentencepiece_bpe, shapes.unigram])
@pytest.mark.parametrize("name", CLASSES)
def test_a_tokenizer_is_what_its_file_says_whatever_its_class(tmp_path, name, build):
    options = {"legacy": False, "add_prefix_space": name[0] == "Q", "add_bos_token": True}
    inner = build(shapes.SPECIAL["qwen"])
    shapes.write(tmp_path, inner, tokenizer_class=name, eos_token="<|im_end|>", **options)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": CLASSES[name]}))
    tokenizer, stands = load_tokenizer(tmp_path), Tokenizer.from_file(f"{tmp_path}/tokenizer.json")
    ids = stands.encode(TEXT, add_special_tokens=False).ids
    assert tokenizer(TEXT, add_special_tokens=False)["input_ids"] == ids
    assert tokenizer(TEXT)["input_ids"] == stands.encode(TEXT).ids  # with what goes before a text
    assert tokenizer.decode(ids) == stands.decode(ids, skip_special_tokens=False)
    assert tokenizer.eos_token == "<|im_end|>"


@pytest.mark.parametrize("normalizer", [normalizers.Lowercase(), normalizers.NFKC()])
def test_a_normaliser_of_the_file_is_used(tmp_path, normalizer):
    inner = shapes.byte_level(shapes.SPECIAL["qwen"])
    inner.normalizer = normalizer
    shapes.write(tmp_path, inner, tokenizer_class="Qwen2Tokenizer", eos_token="<|im_end|>")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == normalizer.normalize_str(TEXT)


def test_settings_do_not_change_what_texts_and_templates_are(tmp_path):
    inner = shapes.words([("<end>", True)])
    options = {"clean_up_tokenization_spaces": True, "split_special_tokens": True}
    tokenizer = load_tokenizer(shapes.write(tmp_path, inner, **options))
    ids = tokenizer("Who is there ? <end>", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == "Who is there ? <end>"  # not "there?"
    assert ids[-1] == tokenizer.convert_tokens_to_ids("<end>")


def test_code_of_a_checkpoint_is_neither_run_nor_offered(tmp_path):
    where = {"AutoTokenizer": ["mine.MyTokenizer", None]}
    shapes.write(
        tmp_path,
        shapes.byte_level([]),
        auto_map=where,
        tokenizer_class="MyTokenizer",
    )
    (tmp_path / "mine.py").write_text("raise SystemExit(9)")
    assert load_tokenizer(tmp_path)("a", add_special_tokens=False)["input_ids"]


def test_settings_that_change_how_the_file_reads_a_text_are_refused(tmp_path):
    added = {"0": {"content": "45", "special": False}}
    shapes.write(tmp_path, shapes.byte_level([]), added_tokens_decoder=added)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json must fit tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_padding_and_cuts_of_the_file_are_not_for_prompts(tmp_path):
    inner = shapes.byte_level([])
    inner.enable_padding(length=2**33)
    inner.enable_truncation(3)
    tokenizer = load_tokenizer(shapes.write(tmp_path, inner))
    ids = tokenizer("The parcel goes to b.", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == "The parcel goes to b."


def test_a_folder_without_tokenizer_json_goes_through_its_class(tmp_path):
    inner = shapes.byte_level(shapes.SPECIAL["qwen"])
    shapes.write(tmp_path, inner, tokenizer_class="Qwen2Tokenizer", eos_token="<|endoftext|>")
    model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer("The parcel goes", add_special_tokens=False)["input_ids"]
    assert ids == inner.encode("The parcel goes").ids


def test_what_a_sentencepiece_file_needs_is_said(tmp_path):
    shapes.write(tmp_path, shapes.byte_level([]), tokenizer_class="LlamaTokenizer")
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.model").write_bytes(b"\x0anot a model")
    with pytest.raises(CheckpointError, match="the tokenizer cannot be read"):
        load_tokenizer(tmp_path)


def deep(count):
    return "[" * count + "]" * count


DAMAGE = {
    "tokenizer.json": [
        "",
        "{",
        "[]",
        "3",
        "\x00" * 9,
        deep(100_000),
        '{"model": ' + deep(200) + "}",
        "9" * 6000,
        '{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 1' + "0" * 5000 + "}}}",
        '{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}',
        '{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": ["a b"]}}',
        '{"version": "1.0", "model": {"type": "Unigram", "vocab": []}}',
        '{"version": "1.0", "model": {"type": "Nonsense", "vocab": {}}}',
    ],
    "tokenizer_config.json": [
        "",
        "{",
        "[]",
        "\x00",
        "\udcff",
        deep(100_000),
        '{"model_max_length": ' + "9" * 6000 + "}",
        '{"eos_token": 5}',
        '{"eos_token": ["a"]}',
        '{"eos_token": "\\ud800"}',
        '{"added_tokens_decoder": 3}',
        '{"added_tokens_decoder": {"x": {"content": "a"}}}',
        '{"extra_special_tokens": 3}',
        '{"chat_template": 5}',
        '{"chat_template": {"a": "b"}}',
        '{"chat_template": ["a"]}',
        '{"chat_template": [{"name": "a"}]}',
        '{"chat_template": true}',
    ],
    "special_tokens_map.json": ["{", "[]", deep(100_000), '{"eos_token": 5}'],
    "added_tokens.json": ["{", "[]", '{"a": "b"}'],
    "chat_template.jinja": ["\udcff"],
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_files_are_named_in_one_message(tmp_path, name):
    shapes.write(tmp_path, shapes.byte_level([]), shapes.CHATML)
    for text in DAMAGE[name]:
        (tmp_path / name).write_bytes(text.encode(errors="surrogateescape"))
        if name == "tokenizer_config.json" and "chat_template" in text:
            (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
        with pytest.raises(CheckpointError) as error:
            load_tokenizer(tmp_path)
        assert str(tmp_path) in str(error.value) and len(str(error.value)) < 1000, text[:99]


@pytest.mark.parametrize("name", [*DAMAGE, "config.json"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "dangling", "loop", "large"])
def test_files_that_are_no_ordinary_files_are_refused_by_name(tmp_path, name, kind):
    shapes.write(tmp_path, shapes.byte_level([]), shapes.CHATML)
    file = tmp_path / name
    file.unlink(missing_ok=True)
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "large":
        with file.open("wb") as opened:
            opened.truncate(2**34)
    else:
        target = {"device": "/dev/zero", "dangling": "nowhere", "loop": file}[kind]
        file.symlink_to(target)
    with pytest.raises(CheckpointError, match=name) as error:
        load_tokenizer(tmp_path)
    words = {"dangling": "broken link", "loop": "cannot be read", "large": "must be at most"}
    assert words.get(kind, "must be a regular file") in str(error.value)
