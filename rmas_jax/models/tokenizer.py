"""Tokenizers of Hugging Face checkpoints."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from rmas_jax.models.hf import local_directory
from rmas_jax.models.weights import CheckpointError

FILES = ("tokenizer*", "*.json", "*.jinja", "*.txt", "*.model")


def load_tokenizer(
    path: str | os.PathLike[str], *, revision: str | None = None, needs_chat_template: bool = True
) -> Any:
    """The transformers tokenizer of a checkpoint; agents speak through its chat template.

    Args:
      path: a directory, or a hub id.
      revision: branch, tag or commit, where `path` is a hub id.
      needs_chat_template: whether one without a chat template, as base models have, is refused.

    Raises:
      CheckpointError: there is no tokenizer, it is damaged, or it lacks a needed chat template.
    """
    from transformers import AutoTokenizer  # heavy, and only drivers need it

    directory = local_directory(path, patterns=FILES, revision=revision)
    if not any(directory.glob("tokenizer*")):
        raise CheckpointError(
            f"{directory}: holds no tokenizer (tokenizer.json or tokenizer.model)"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # transformers and tokenizers raise almost anything here
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{directory}: the tokenizer cannot be read: {reason}") from error
    if needs_chat_template and not tokenizer.chat_template:
        raise CheckpointError(
            f"{directory}: the tokenizer has no chat template; allowed are chat_template.jinja "
            "and the field chat_template of tokenizer_config.json"
        )
    return tokenizer


def encode_plain(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts that are content: a special token named in one is spelt, not obeyed."""
    return tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]


def special_tokens(tokenizer: Any) -> list[str]:
    """The texts that a tokenizer reads as special tokens."""
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]


def token_texts(tokenizer: Any) -> list[str]:
    """What every token adds to a text, leading spaces included; "" for special tokens.

    A token that is only part of a character adds the sign for that. Each token is decoded behind an
    ordinary one, because some tokenizers drop the space at the start of a text.
    """
    anchor = tokenizer("a", add_special_tokens=False)["input_ids"][-1]
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    before = tokenizer.decode([anchor], **options)
    texts = tokenizer.batch_decode([[anchor, i] for i in range(len(tokenizer))], **options)
    return [text.removeprefix(before) if text.startswith(before) else "" for text in texts]


def surfaces(tokenizer: Any) -> dict[str, int]:
    """What every token adds to a text -> its id.

    Special tokens and tokens that are only part of a character are left out.
    """
    # Byte tokens come before the tokens that spell the same, so that the latter, which the
    # tokenizer uses, win.
    added = {text: i for i, text in enumerate(token_texts(tokenizer))}
    return {text: i for text, i in added.items() if text and "\ufffd" not in text}


def shared_tokens(sender: Any, receiver: Any) -> tuple[np.ndarray, np.ndarray]:
    """Ids, in both vocabularies, of the tokens that spell the same.

    Args:
      sender: a tokenizer.
      receiver: another.

    Returns:
      Two int32 arrays of one length; empty where the vocabularies share nothing.
    """
    mine, theirs = surfaces(sender), surfaces(receiver)
    pairs = [(mine[text], theirs[text]) for text in mine if text in theirs]
    mine_ids, their_ids = np.array(pairs, np.int32).reshape(-1, 2).T
    return mine_ids, their_ids
