"""Tokenizers of Hugging Face checkpoints."""

from __future__ import annotations

import os
from typing import Any

from rmas_jax.models.hf import local_directory
from rmas_jax.models.weights import CheckpointError

FILES = ("tokenizer*", "*.json", "*.jinja", "*.txt", "*.model")


def load_tokenizer(path: str | os.PathLike[str], *, revision: str | None = None) -> Any:
    """The transformers tokenizer of a checkpoint; agents speak through its chat template.

    Args:
      path: a directory, or a hub id.
      revision: branch, tag or commit, where `path` is a hub id.

    Raises:
      CheckpointError: there is no tokenizer, it is damaged, or it has no chat template.
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
        raise CheckpointError(f"{directory}: the tokenizer cannot be read: {error}") from error
    if not tokenizer.chat_template:
        raise CheckpointError(
            f"{directory}: the tokenizer has no chat template; allowed are chat_template.jinja "
            "and the field chat_template of tokenizer_config.json"
        )
    return tokenizer
