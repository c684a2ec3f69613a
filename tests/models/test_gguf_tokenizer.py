"""Tokenizers of GGUF files against the ones that they were written from."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from gguf_files import write
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, trainers
from tokenizers import pre_tokenizers as pre
from transformers.models.qwen2 import tokenization_qwen2 as qwen2
from transformers.models.qwen3_5 import tokenization_qwen3_5 as qwen3_5

from rmas_jax.models import CheckpointError, load_tokenizer
from rmas_jax.models.generation import SamplingConfig, sampling_defaults
from rmas_jax.models.plain_text import encode_plain
from rmas_jax.models.tokenizer import PROBE

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
TEXTS = (
    PROBE,
    "",
    "The carrier's lost parcel: 1234567 of 89.\n\n  It isn't HERE, isn't  it?\r\n\tNo!  ",
    "<|im_start|>user\nhe said <think>so</think><|im_end|> e\u0301 नमस्ते ok",
    "   leading and trailing   ",
)


LETTERS = pre.ByteLevel(False, use_regex=False)


def byte_level(*splits, composes=False):
    """An untrained byte-level tokenizer; the last of its pre-tokenisers makes letters of bytes."""
    out = Tokenizer(models.BPE())
    out.pre_tokenizer = pre.Sequence([*splits] or [LETTERS])
    out.normalizer = normalizers.NFC() if composes else None
    out.decoder = decoders.ByteLevel()
    return out


def isolated(expression):
    return pre.Split(Regex(expression), "isolated")


# As in the `tokenizer.json` of a model of each kind.
BYTE_LEVEL = {
    "gpt-2": lambda: byte_level(pre.ByteLevel(False)),
    "smollm": lambda: byte_level(pre.Digits(individual_digits=True), pre.ByteLevel(False)),
    "qwen2": lambda: byte_level(isolated(qwen2.PRETOKENIZE_REGEX), LETTERS, composes=True),
    "qwen35": lambda: byte_level(isolated(qwen3_5.PRETOKENIZE_REGEX), LETTERS, composes=True),
}


def trained(tokenizer, texts=TEXTS, size=420):
    """The tokenizer with merges learnt from texts, and special and other added tokens."""
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        show_progress=False,
        initial_alphabet=pre.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    )
    tokenizer.train_from_iterator([text * 3 for text in texts], trainer)
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    return tokenizer


def write_tokenizer(path, tokenizer, kind, **changes):
    """A GGUF file with a byte-level tokenizer; its ids have a gap, as converters fill them."""

    model = json.loads(tokenizer.to_str())["model"]
    added = tokenizer.get_added_tokens_decoder()
    names = {i: text for text, i in tokenizer.get_vocab().items()}
    count = max(names) + 2
    kinds = [
        UNUSED
        if i not in names
        else NORMAL
        if i not in added
        else (USER_DEFINED, CONTROL)[added[i].special]
        for i in range(count)
    ]
    fields = {
        "ggml.model": "gpt2",
        "ggml.pre": kind,
        "ggml.tokens": [names.get(i, f"[PAD{i}]") for i in range(count)],
        "ggml.token_type": kinds,
        "ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "ggml.bos_token_id": 1,
        "ggml.eos_token_id": 2,
        "ggml.padding_token_id": 0,
        "ggml.eot_token_id": 0,
        "ggml.add_bos_token": False,
        "chat_template": TEMPLATE,
    }
    fields |= {key.replace("__", "."): value for key, value in changes.items()}
    metadata = {f"tokenizer.{key}": value for key, value in fields.items()}
    return write(path, "llama", metadata, {"token_embd.weight": np.zeros((count, 32), np.float32)})


@pytest.mark.parametrize("kind", BYTE_LEVEL)
def test_byte_level_ids_are_the_originals(tmp_path, kind):
    theirs = trained(BYTE_LEVEL[kind]())
    path = write_tokenizer(tmp_path / "model.gguf", theirs, kind)
    ours = load_tokenizer(path)
    for text in TEXTS:
        expected = theirs.encode(text).ids
        assert ours(text)["input_ids"] == expected
        assert ours.decode(expected) == theirs.decode(expected, skip_special_tokens=False)
    assert ours.get_vocab() == theirs.get_vocab()
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id) == (1, 2, 0)
    assert ours.chat_template == TEMPLATE and ours.name_or_path == str(path)
    # Markers of a text become letters.
    assert not {1, 2} & {*encode_plain(ours, [TEXTS[3]])[0]}


def test_kinds_divide_texts_differently(tmp_path):
    """With the same merges, learnt from whole texts: the comparison above notices the kind."""
    ids = {}
    for kind in BYTE_LEVEL:
        theirs = trained(byte_level())
        ours = load_tokenizer(write_tokenizer(tmp_path / f"{kind}.gguf", theirs, kind))
        ids[kind] = tuple(map(tuple, ours(list(TEXTS))["input_ids"]))
    assert len(set(ids.values())) == len(ids)


@pytest.mark.parametrize(
    ("kind", "pieces"),
    [
        ("llama-bpe", ["I", "'M", " at", " ", "123", "456", "7", "!!\n\n", " x", "_y", "  ", " z"]),
        ("qwen2", ["I", "'M", " at", " ", *"1234567", "!!\n\n", " x", "_y", "  ", " z"]),
        ("tekken", ["I", "'M", " at", " ", *"1234567", "!!\n\n", " x", "_y", "  ", " z"]),
        ("gpt-2", ["I", "'", "M", " at", " 1234567", "!!", "\n\n", " x", "_", "y", "  ", " z"]),
    ],
)
def test_kinds_divide_texts_as_llama_cpp(tmp_path, kind, pieces):
    path = write_tokenizer(tmp_path / "model.gguf", trained(byte_level()), kind)
    split = load_tokenizer(path).backend_tokenizer.pre_tokenizer.pre_tokenize_str
    text = "I'M at 1234567!!\n\n x_y   z"
    assert [text[start:end] for _, (start, end) in split(text)] == pieces


def test_some_kinds_prefer_tokens_to_merges_and_start_with_the_first(tmp_path):
    theirs = trained(BYTE_LEVEL["qwen2"]())
    words = (text for text in theirs.get_vocab() if re.fullmatch("Ġ[a-z]+", text))
    word = max(words, key=len)
    first = " ".join(json.loads(theirs.to_str())["model"]["merges"][0])
    changes = {"ggml__merges": [first], "ggml__add_bos_token": ...}
    for kind, starts in (("llama-bpe", True), ("tekken", True), ("qwen2", False)):
        ours = load_tokenizer(write_tokenizer(tmp_path / f"{kind}.gguf", theirs, kind, **changes))
        text = word.replace("Ġ", " ")
        ids = ours(text)["input_ids"]
        assert ours.decode(ids) == "<|im_start|>" * starts + text
        assert (len(ids) == 2) is starts
        assert ours(text, add_special_tokens=False)["input_ids"] == ids[starts:]


# --- SentencePiece --------------------------------------------------------------------------------


PIECES = [*"▁dehorstw", *["he", "▁t", "▁the", "er", "▁w", "or", "▁wor", "▁word"]]


def write_sentencepiece(path, *, prefix, **changes):
    tokens = [*("<unk>", "<s>", "</s>"), *(f"<0x{b:02X}>" for b in range(256)), *PIECES]
    kinds = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(PIECES)]
    # Spaces in a row, and a line break, are tokens of their own.
    tokens, kinds = [*tokens, "  ", "\n", "<turn>"], [*kinds, *[USER_DEFINED] * 2, CONTROL]
    scores = [0.0] * 259 + [-float(i) for i in range(len(PIECES))] + [-1000.0] * 3
    fields = {
        "ggml.model": "llama",
        "ggml.pre": "default",
        "ggml.tokens": tokens,
        "ggml.token_type": kinds,
        "ggml.scores": scores,
        "ggml.bos_token_id": 1,
        "ggml.eos_token_id": 2,
        "ggml.unknown_token_id": 0,
        "ggml.add_space_prefix": prefix,
    }
    fields |= {key.replace("__", "."): value for key, value in changes.items()}
    metadata = {f"tokenizer.{key}": value for key, value in fields.items()}
    return write(path, "gemma3", metadata, {"a": np.zeros(32, np.float32)})


@pytest.mark.parametrize(
    ("prefix", "text", "pieces"),
    [
        (True, "the words", ["▁the", "▁word", "s"]),
        (False, "the words", ["t", "he", "▁word", "s"]),
        (False, "the  words", ["t", "he", "▁▁", "w", "or", "d", "s"]),
        (True, "\nthe<turn>the", ["\n", "▁the", "<turn>", "▁the"]),
        (False, "é", ["<0xC3>", "<0xA9>"]),
    ],
)
def test_sentencepiece_joins_by_score(tmp_path, prefix, text, pieces):
    path = write_sentencepiece(tmp_path / "model.gguf", prefix=prefix)
    ours = load_tokenizer(path, needs_chat_template=False)
    ids = ours(text)["input_ids"]
    assert ours.convert_ids_to_tokens(ids) == ["<s>", *pieces]
    if "<turn>" not in text:
        assert ours.decode(ids, skip_special_tokens=True) == text
    assert ours(text, add_special_tokens=False)["input_ids"] == ids[1:]
    assert ours.unk_token_id == 0


def test_the_scores_matter(tmp_path):
    count = 259 + len(PIECES)
    for scores, pieces in (
        ([-float(i) for i in range(count)], ["▁", "he", "r"]),
        ([float(i) for i in range(count)], ["▁", "h", "er"]),
    ):
        path = write_sentencepiece(
            tmp_path / "model.gguf",
            prefix=True,
            ggml__scores=scores + [-1000.0] * 3,
            ggml__add_bos_token=False,
            ggml__add_eos_token=True,
        )
        ours = load_tokenizer(path, needs_chat_template=False)
        found = ours.convert_ids_to_tokens(ours("her")["input_ids"])
        assert found == [*pieces, "</s>"]


# --- End tokens and refusals ----------------------------------------------------------------------


def test_texts_end_with_a_turn_or_the_text(tmp_path):
    path = write_tokenizer(tmp_path / "model.gguf", trained(byte_level()), "qwen2")
    assert sampling_defaults(path) == (SamplingConfig(), (0, 2))
    changes = {"ggml__eot_token_id": ..., "ggml__eos_token_id": 1}
    write_tokenizer(path, trained(byte_level()), "qwen2", **changes)
    assert sampling_defaults(path)[1] == (1,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ggml__model": "bert"}, r"ggml\.model must be one of 'gpt2', 'llama', got 'bert'"),
        ({"ggml__model": ...}, r"ggml\.model must be one of .*, got nothing"),
        ({"ggml__pre": "viking"}, r"ggml\.pre must be one of gpt-2, .*, got 'viking'"),
        ({"ggml__pre": ...}, r"ggml\.pre must be one of gpt-2, .*, got ''"),
        ({"ggml__merges": ...}, r"ggml\.merges must be texts of two tokens .*, got None"),
        ({"ggml__merges": ["a b c"]}, r"ggml\.merges must be texts of two .*, got 'a b c'"),
        ({"ggml__merges": ["zzz y"]}, "the tokenizer cannot be read: .*zzz"),
        ({"ggml__token_type": [1, 1]}, r"ggml\.token_type must have \d+ entries, .*, got 2"),
        (
            {"ggml__eos_token_id": 9999},
            r"ggml\.eos_token_id must be below \d+ .*, got 9999",
        ),
        ({"ggml__tokens": ...}, r"ggml\.tokens must be a list of texts, got nothing"),
        ({"chat_template": ...}, r"must have a chat template .*GGUF file\), got none"),
        ({"chat_template": 3}, r"chat_template must be a text, got 3"),
    ],
)
def test_unusable_tokenizers_are_refused_by_name(tmp_path, changes, message):
    path = write_tokenizer(tmp_path / "model.gguf", trained(byte_level()), "qwen2", **changes)
    with pytest.raises(CheckpointError, match=rf"model\.gguf: .*{message}"):
        load_tokenizer(path)
