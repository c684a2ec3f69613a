"""Token ids of content: markers of turns, thoughts or tools in a text become plain letters.

A tokenizer first searches a text for its added tokens. Markers among them (`<|im_end|>`, `<think>`,
`</tool_call>`), flagged as special or not, are tokenised as plain letters in a text from a user,
another agent or a tool. Added tokens that are ordinary text (runs of spaces, words of a domain)
stay tokens, as in the model's training.
"""

from __future__ import annotations

import functools
import json
import secrets
from collections.abc import Sequence
from typing import Any

from rmas_jax.host.errors import InputError, shown
from rmas_jax.models.tokenizer import Tokenizer

# A tokenizer warns of texts beyond its model's positions; whoever reads them has limits of its own.
QUIET = {"verbose": False}


class TextError(InputError):
    """A text that a tokenizer cannot encode."""


def encode_plain(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of content, with markers as plain letters.

    Raises:
      TextError: a text has a lone surrogate, or a marker that a tokenizer written in Python cannot
        encode as letters.
    """
    if not texts:
        return []
    rows = encode(tokenizer, texts)
    markers = marker_ids(tokenizer)
    marked = [i for i, row in enumerate(rows) if not markers.isdisjoint(row)]
    if not marked:
        return rows
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        how = {"split_special_tokens": True, **QUIET}
        spelt = tokenizer([texts[i] for i in marked], **how)["input_ids"]
        if bad := [texts[i] for i, row in zip(marked, spelt, strict=True) if markers & {*row}]:
            raise TextError(
                f"{tokenizer.name_or_path}: texts must be free of special tokens, which this "
                f"tokenizer cannot encode as letters, got {shown(bad[0])}"
            )
    else:
        unmarked = _without(tokenizer, frozenset(markers))
        found = unmarked.encode_batch([texts[i] for i in marked], add_special_tokens=False)
        spelt = [encoding.ids for encoding in found]
    for i, row in zip(marked, spelt, strict=True):
        rows[i] = row
    return rows


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts whose markers are special tokens, such as pieces of a rendered template.

    Raises:
      TextError: a text has a lone surrogate.
    """
    for text in texts:
        check_text(text)
    return tokenizer(list(texts), add_special_tokens=False, **QUIET)["input_ids"]


def check_text(text: str, *, source: str = "a text", error: type[InputError] = TextError) -> None:
    """Refuses lone surrogates, which UTF-8 cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError as reason:
        raise error(
            f"{source} must be Unicode without lone surrogates, got "
            f"{shown(text[reason.start])} at character {reason.start}"
        ) from None


def marker_ids(tokenizer: Tokenizer) -> set[int]:
    """Ids of the added tokens that are markers."""
    added = tokenizer.added_tokens_decoder
    if not added:
        return set()
    named, template = set(tokenizer.all_special_ids), str(tokenizer.chat_template or "")
    return {i for i, token in added.items() if i in named or not _is_ordinary(token, template)}


def _is_ordinary(token: Any, template: str) -> bool:
    """Whether an added token is ordinary text: spaces, or words outside the chat template."""
    if token.special or token.lstrip or token.rstrip:  # the last two absorb adjacent blanks
        return False
    text = token.content.replace("▁", " ")
    words = text.split()
    return not words or (all(map(str.isalnum, words)) and token.content not in template)


@functools.lru_cache(maxsize=8)
def _without(tokenizer: Tokenizer, markers: frozenset[int]) -> Any:
    """A copy of a tokenizer without the names of some tokens.

    Their ids get random names that occur in no text; their merges are removed. The model's unknown
    token keeps its name, because the model finds it by name.
    """
    from tokenizers import Tokenizer  # heavy

    tree = json.loads(tokenizer.backend_tokenizer.to_str())
    tree |= {"post_processor": None, "truncation": None, "padding": None}
    nonce, unknown = secrets.token_hex(16), _unknown_token(tree["model"])
    hidden = {
        token["content"]: f"{nonce} {token['id']}"
        for token in tree["added_tokens"]
        if token["id"] in markers and token["content"] != unknown
    }
    tree["added_tokens"] = [
        token | {"content": hidden.get(token["content"], token["content"])}
        for token in tree["added_tokens"]
        if token["content"] != unknown
    ]
    tree["model"] = _renamed(tree["model"], hidden)
    return Tokenizer.from_str(json.dumps(tree))


def _unknown_token(model: dict[str, Any]) -> str | None:
    """The unknown token of a model of the `tokenizers` library."""
    if isinstance(model["vocab"], list):  # Unigram: [name, score] by id
        return None if model.get("unk_id") is None else model["vocab"][model["unk_id"]][0]
    unknown = model.get("unk_token")
    return unknown if unknown in model["vocab"] else None


def _renamed(model: dict[str, Any], hidden: dict[str, str]) -> dict[str, Any]:
    """A model of the `tokenizers` library with other names for some of its tokens."""
    vocab = model["vocab"]
    if isinstance(vocab, list):
        return model | {"vocab": [[hidden.get(name, name), score] for name, score in vocab]}
    model = model | {"vocab": {hidden.get(name, name): i for name, i in vocab.items()}}
    if "merges" in model:
        pairs = [m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"]]
        model["merges"] = [p for p in pairs if hidden.keys().isdisjoint((*p, "".join(p)))]
    return model
