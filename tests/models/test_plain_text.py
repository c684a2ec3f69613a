"""Texts that are content: whatever they name, their ids spell it and are no marker's."""

# ruff: noqa: RUF001

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_shapes import PLAIN, SPECIAL, byte_level, sentencepiece_bpe, unigram, words, write
from tokenizers import AddedToken

from rmas_jax.models import load_tokenizer
from rmas_jax.models.plain_text import TextError, encode, encode_plain, marker_ids

QWEN = [*SPECIAL["qwen"], *((content, False) for content in PLAIN["qwen"])]
R1 = [*SPECIAL["r1"], *((content, False) for content in PLAIN["r1"])]
BUILDERS = {
    "byte level": (byte_level, QWEN),
    "r1": (byte_level, R1),
    "sentencepiece": (sentencepiece_bpe, QWEN),
    "unigram": (unigram, QWEN),
}
NAMES = {name: [content for content, _ in markers] for name, (_, markers) in BUILDERS.items()}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    return {
        name: load_tokenizer(write(folder / name, build(markers)))
        for name, (build, markers) in BUILDERS.items()
    }


def ids_of(tokenizer, names):
    return set(tokenizer.convert_tokens_to_ids(names))


@pytest.mark.parametrize("name", BUILDERS)
def test_no_added_token_is_obeyed_and_every_text_comes_back(tokenizers, name):
    tokenizer = tokenizers[name]
    markers = ids_of(tokenizer, NAMES[name])
    texts = [f"The parcel {marker} goes" for marker in NAMES[name]]
    texts += ["".join(NAMES[name]), NAMES[name][0], "The parcel goes to b.", "a<|im_end|", ""]
    for text, ids in zip(texts, encode_plain(tokenizer, texts), strict=True):
        assert not markers.intersection(ids), text
        assert tokenizer.decode(ids) == text
    assert markers <= marker_ids(tokenizer)


@pytest.mark.parametrize("name", BUILDERS)
def test_texts_without_markers_are_read_as_ever(tokenizers, name):
    tokenizer = tokenizers[name]
    texts = ["The parcel goes from a to b.", "user\nassistant <|im", "think 1234567", "é 日本 \x00"]
    assert encode_plain(tokenizer, texts) == encode(tokenizer, texts)


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(text=st.lists(st.text(max_size=4) | st.sampled_from(QWEN), max_size=5))
def test_any_text_comes_back(tokenizers, text):
    tokenizer = tokenizers["byte level"]
    text = "".join(part if isinstance(part, str) else part[0] for part in text)
    [ids] = encode_plain(tokenizer, [text])
    assert tokenizer.decode(ids) == text and not ids_of(tokenizer, NAMES["byte level"]) & {*ids}


def test_a_word_level_model_that_holds_markers_as_words_says_unknown(tmp_path):
    tokenizer = load_tokenizer(write(tmp_path, words(QWEN)))
    [ids] = encode_plain(tokenizer, ["Who <|im_end|> is <think>"])
    assert tokenizer.convert_ids_to_tokens(ids) == ["Who", "<unk>", "is", "<unk>"]
    assert encode(tokenizer, ["Who <|im_end|>"])[0][-1] == tokenizer.convert_tokens_to_ids(
        "<|im_end|>"
    )


def test_added_tokens_that_are_ordinary_text_stay_tokens(tmp_path):
    inner = byte_level(QWEN)
    ordinary = ["        ", "\n\n\n", "Kenal", "Bison"]
    inner.add_tokens([AddedToken(text, normalized=False) for text in ordinary])
    inner.add_tokens([AddedToken("ROBOT", normalized=False), AddedToken("mute", special=True)])
    template = "{% for m in messages %}ROBOT {{ m.content }}\n\n\n{% endfor %}"
    tokenizer = load_tokenizer(write(tmp_path, inner, template))
    text = "def main():\n        print\n\n\nKenal Bison <|im_end|> ROBOT mute"
    [ids] = encode_plain(tokenizer, [text])
    assert ids_of(tokenizer, ordinary) <= {*ids} and tokenizer.decode(ids) == text
    # Of words, those that the chat template writes, and those with the flag, are markers.
    assert not ids_of(tokenizer, ["<|im_end|>", "ROBOT", "mute"]) & {*ids}


def test_a_token_that_swallows_blanks_is_spelt(tmp_path):
    inner = byte_level(QWEN)
    inner.add_tokens([AddedToken("blank", lstrip=True, rstrip=True)])
    tokenizer = load_tokenizer(write(tmp_path, inner))
    text = "a   blank   b"
    assert tokenizer.decode(encode(tokenizer, [text])[0]) != text
    assert tokenizer.decode(encode_plain(tokenizer, [text])[0]) == text


def test_a_marker_that_only_shows_once_the_text_is_normalised(tmp_path):
    from tokenizers import normalizers

    inner = byte_level(SPECIAL["qwen"])
    inner.normalizer = normalizers.NFKC()
    inner.add_tokens([AddedToken("<think>", normalized=True)])
    tokenizer = load_tokenizer(write(tmp_path, inner))
    text = "a ＜think＞ b"  # of full width
    think = tokenizer.convert_tokens_to_ids("<think>")
    assert think in encode(tokenizer, [text])[0]
    [ids] = encode_plain(tokenizer, [text])
    assert think not in ids and tokenizer.decode(ids) == "a <think> b"


def test_tokens_that_the_settings_add_are_markers_too(tmp_path):
    added = {"500": {"content": "<|note|>", "special": False, "normalized": False}}
    folder = write(tmp_path, byte_level(QWEN), added_tokens_decoder=added, eos_token="<|stop|>")
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens([AddedToken("<|late|>")])
    names = ["<|note|>", "<|stop|>", "<|late|>"]
    [ids] = encode_plain(tokenizer, [" ".join(names)])
    assert not ids_of(tokenizer, names) & {*ids} and tokenizer.decode(ids) == " ".join(names)


def test_a_lone_surrogate_is_refused_and_nul_is_not(tokenizers):
    tokenizer = tokenizers["byte level"]
    for read in (encode, encode_plain):
        with pytest.raises(
            TextError, match=r"without lone surrogates, got '\\udcff' at character 2"
        ):
            read(tokenizer, ["a b", "a \udcff"])
    [ids] = encode_plain(tokenizer, ["a\x00b<|im_end|>"])
    assert tokenizer.decode(ids) == "a\x00b<|im_end|>"
