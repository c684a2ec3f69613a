"""The tokenizer of a GGUF file: its metadata `tokenizer.*` as one of the library `tokenizers`.

The file names a vocabulary, its merges or scores, and the kind of pre-tokeniser; the rules of each
kind are in tables here, as in the `tokenizer.json` of the models that have it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rmas_jax.host.errors import shown
from rmas_jax.models.errors import CheckpointError, UnsupportedModelError
from rmas_jax.models.gguf_header import Header
from rmas_jax.models.hf_fields import FLAG, Field, is_number, one_of, read_fields, whole

CONTROL, USER_DEFINED, UNUSED = 3, 4, 5  # kinds of tokens

GPT2_WORDS = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # ByteLevel's own
)
DIGIT = r"\p{N}"


def _words(letters: str = r"\p{L}", *, digits: str) -> str:
    """The expression of Llama 3 and its kin; some have marks among the letters."""
    return (
        rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?[{letters}]+|{digits}"
        rf"| ?[^\s{letters}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN_WORDS = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Words(NamedTuple):
    """How a kind of byte-level tokenizer divides a text before it merges."""

    splits: tuple[str, ...]  # expressions, each of which divides the parts of the one before
    composes: bool = False  # Unicode's NFC comes first
    prefers_tokens: bool = False  # a part that is a token is not merged
    starts: bool = False  # texts start with the first token, unless the file says otherwise


LLAMA3 = Words((_words(digits=r"\p{N}{1,3}"),), prefers_tokens=True, starts=True)
QWEN2 = Words((_words(digits=DIGIT),), composes=True)
# `tokenizer.ggml.pre` -> its rules.
KINDS = {
    "gpt-2": Words((GPT2_WORDS,)),
    "smollm": Words((DIGIT, GPT2_WORDS)),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "smaug-bpe", "falcon3"), LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), QWEN2),
    "qwen35": Words((_words(r"\p{L}\p{M}", digits=DIGIT),), composes=True),
    "tekken": Words((TEKKEN_WORDS,), prefers_tokens=True, starts=True),
}


def _lists(inner: Any, words: str) -> Field:
    return Field(
        lambda value: isinstance(value, list) and all(map(inner, value)), f"a list of {words}"
    )


_TEXT = Field(lambda value: isinstance(value, str), "a text")
_TEXTS = _lists(lambda x: isinstance(x, str), "texts")
_ID = whole(0, 2**31 - 1)
FIELDS = {
    "ggml.model": one_of("gpt2", "llama"),
    "ggml.pre": _TEXT(""),
    "ggml.tokens": _TEXTS,
    "ggml.token_type": _lists(lambda x: type(x) is int, "integers")(None),
    "ggml.scores": _lists(is_number, "numbers")(None),
    "ggml.merges": _TEXTS(None),
    "ggml.bos_token_id": _ID(None),
    "ggml.eos_token_id": _ID(None),
    "ggml.unknown_token_id": _ID(None),
    "ggml.padding_token_id": _ID(None),
    "ggml.eot_token_id": _ID(None),
    "ggml.add_bos_token": FLAG(None),
    "ggml.add_eos_token": FLAG(False),
    "ggml.add_space_prefix": FLAG(True),
    "chat_template": _TEXT(None),
}
NAMED = {  # argument of transformers -> its id's key
    "bos_token": "ggml.bos_token_id",
    "eos_token": "ggml.eos_token_id",
    "unk_token": "ggml.unknown_token_id",
    "pad_token": "ggml.padding_token_id",
}


def tokenizer_fields(header: Header) -> dict[str, Any]:
    """The fields of FIELDS, checked.

    Raises:
      CheckpointError: a field is missing, of another type, or does not fit the tokens; names the
        file, the field, its value and the allowed values.
    """
    try:
        fields = read_fields(header.section("tokenizer."), FIELDS, where="tokenizer.")
    except UnsupportedModelError as error:
        raise CheckpointError(f"{header.path}: {error}") from None
    count = len(fields["ggml.tokens"])
    for name, value in fields.items():
        if name.endswith("_id") and value is not None and value >= count:
            raise CheckpointError(
                f"{header.path}: tokenizer.{name} must be below {count} (tokens), got {value}"
            )
        if name in ("ggml.token_type", "ggml.scores") and value and len(value) != count:
            raise CheckpointError(
                f"{header.path}: tokenizer.{name} must have {count} entries, one for each token, "
                f"got {len(value)}"
            )
    return fields


def end_tokens(header: Header) -> tuple[int, ...]:
    """Ids that end a text: of the end of a turn, if named, and of the text."""
    fields = tokenizer_fields(header)
    ids = (fields["ggml.eot_token_id"], fields["ggml.eos_token_id"])
    return tuple(dict.fromkeys(i for i in ids if i is not None))


def tokenizer_from_gguf(header: Header) -> Any:
    """The transformers tokenizer of a GGUF file, with its chat template.

    Raises:
      CheckpointError: see `tokenizer_fields`; or the kind of pre-tokeniser is not in KINDS.
    """
    from tokenizers import AddedToken, processors  # heavy, and only drivers need them
    from transformers import PreTrainedTokenizerFast

    fields = tokenizer_fields(header)
    is_byte_level = fields["ggml.model"] == "gpt2"
    kinds = fields["ggml.token_type"] or [1] * len(fields["ggml.tokens"])
    # Spaces of user-defined tokens are plain in the file; of other ones, ▁.
    tokens = [
        "▁" * len(text) if not is_byte_level and text and not text.strip(" ") else text
        for text in fields["ggml.tokens"]
    ]
    # Unused tokens fill gaps between ids.
    vocab = {text: i for i, text in enumerate(tokens) if kinds[i] != UNUSED}
    if is_byte_level:
        words = _words_of(fields, source=header.path)
        backend, starts = _byte_level(fields, vocab, words), words.starts
    else:
        backend, starts = _sentencepiece(fields, vocab, kinds), True
    for kind in (CONTROL, USER_DEFINED):
        added = [t for t, found in zip(tokens, kinds, strict=True) if found == kind and t]
        backend.add_tokens(
            [AddedToken(t, normalized=False, special=kind == CONTROL) for t in added]
        )
    named = {name: tokens[fields[key]] for name, key in NAMED.items() if fields[key] is not None}
    if fields["ggml.add_bos_token"] is not None:
        starts = fields["ggml.add_bos_token"]
    first = [named["bos_token"]] if starts and "bos_token" in named else []
    last = [named["eos_token"]] if fields["ggml.add_eos_token"] and "eos_token" in named else []
    if first or last:
        backend.post_processor = processors.TemplateProcessing(
            single=[*first, "$A", *last],
            pair=[*first, "$A", *last, *first, "$B", *last],
            special_tokens=[(text, vocab[text]) for text in {*first, *last}],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        name_or_path=str(header.path),
        chat_template=fields["chat_template"],
        **named,
    )


def _words_of(fields: Mapping[str, Any], *, source: Any) -> Words:
    """The rules of a byte-level tokenizer's kind; checks its merges too."""
    kind, merges = fields["ggml.pre"], fields["ggml.merges"]
    if kind not in KINDS:
        raise CheckpointError(
            f"{source}: tokenizer.ggml.pre must be one of {', '.join(KINDS)}, got {shown(kind)}"
        )
    wrong = [None] if merges is None else [m for m in merges if m.count(" ") != 1]
    if wrong:
        raise CheckpointError(
            f"{source}: tokenizer.ggml.merges must be texts of two tokens with a space between "
            f"them, got {shown(wrong[0])}"
        )
    return KINDS[kind]


def _byte_level(fields: Mapping[str, Any], vocab: dict[str, int], words: Words) -> Any:
    """A byte-level tokenizer."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pairs = [tuple(merge.split(" ")) for merge in fields["ggml.merges"]]
    out = Tokenizer(models.BPE(vocab, pairs, ignore_merges=words.prefers_tokens))
    if words.composes:
        out.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(split), "isolated") for split in words.splits]
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    out.pre_tokenizer = pre_tokenizers.Sequence([*splits, letters])
    out.decoder = decoders.ByteLevel()
    return out


def _sentencepiece(fields: Mapping[str, Any], vocab: dict[str, int], kinds: Sequence[int]) -> Any:
    """A tokenizer of SentencePiece's kind, with ▁ for spaces and bytes for unknown characters."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    unknown, scores = fields["ggml.unknown_token_id"], fields["ggml.scores"]
    # SentencePiece joins user-defined tokens first, whatever their scores.
    rank = {
        text: (kinds[i] == USER_DEFINED, -i if scores is None else scores[i], -i)
        for text, i in vocab.items()
    }
    out = Tokenizer(
        models.BPE(
            vocab,
            _merges(rank),
            unk_token=None if unknown is None else fields["ggml.tokens"][unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces, strip = normalizers.Replace(" ", "▁"), []
    if fields["ggml.add_space_prefix"]:
        out.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
        strip = [decoders.Strip(" ", 1, 0)]
    else:
        out.normalizer = spaces
    out.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return out


def _merges(rank: Mapping[str, tuple[float, ...]]) -> list[tuple[str, str]]:
    """The pairs of tokens that make a token: those of the highest rank first, as transformers."""
    pairs = [
        (token[:i], token[i:])
        for token in rank
        for i in range(1, len(token))
        if token[:i] in rank and token[i:] in rank
    ]
    return sorted(pairs, key=lambda pair: (rank["".join(pair)], len(pair[0])), reverse=True)
