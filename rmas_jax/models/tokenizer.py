"""Tokenizers of Hugging Face checkpoints: faithful loading, and the texts of tokens.

`plain_text` turns content into ids.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rmas_jax.host.errors import InputError, clipped, shown
from rmas_jax.host.reading import MEBIBYTE, open_regular, read_json, read_text
from rmas_jax.models.directories import MAX_FILE, is_gguf, local_checkpoint
from rmas_jax.models.errors import CheckpointError
from rmas_jax.models.gguf_header import read_header
from rmas_jax.models.gguf_tokenizer import tokenizer_from_gguf

FILES = ("tokenizer*", "*.json", "*.jinja", "*.txt", "*.model")
TOKENIZER, SETTINGS, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
OBJECTS = (SETTINGS, "special_tokens_map.json", "added_tokens.json")  # each a JSON object
MOST_SETTINGS, MOST_TEMPLATE = 16 * MEBIBYTE, MEBIBYTE
# Numbers, accents, ligatures, blanks, line ends, cases and scripts, which distinguish tokenizers.
PROBE = "Call at 10:45, naïve Ωmega!  It's 1234567.5 x_2 = ﬁne　\n\n  日本語のテキスト\tA\r\nend ."


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that agents use."""

    name_or_path: str
    chat_template: Any  # a template, several by name, or None
    chat_date: str | None  # see `load_tokenizer`
    bos_token_id: int | None
    eos_token_id: int | None
    all_special_ids: Sequence[int]
    added_tokens_decoder: Mapping[int, Any]  # id -> its text and flags
    backend_tokenizer: Any  # of the `tokenizers` library; missing in those written in Python

    def __hash__(self) -> int:
        """Tokenizers are keys of caches."""

    def __call__(
        self, text: str | Sequence[str], *, add_special_tokens: bool = ..., **options: Any
    ) -> Mapping[str, Any]:
        """`input_ids` of a text, or of each of several."""

    def decode(self, token_ids: Any, **options: Any) -> str:
        """The text of ids."""

    def batch_decode(self, sequences: Any, **options: Any) -> list[str]:
        """The text of each of several rows of ids."""

    def get_vocab(self) -> dict[str, int]:
        """Each token's name and id."""

    def convert_ids_to_tokens(self, ids: int) -> str:
        """The name of a token."""


def load_tokenizer(
    path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    needs_chat_template: bool = True,
    chat_template: str | None = None,
    date: str | None = None,
) -> Tokenizer:
    """The transformers tokenizer of a checkpoint, with its chat template or another.

    Uses `tokenizer.json` unchanged: for some families (Qwen, Llama, Gemma), transformers' Auto
    class replaces the file's pre-tokenizer and normaliser. The Auto class loads folders without
    this file (sentencepiece; vocab.json and merges.txt). A GGUF file contains its own tokenizer.

    Args:
      path: a directory, a GGUF file, or a hub id.
      revision: branch, tag or commit, where `path` is a hub id.
      needs_chat_template: whether to refuse a tokenizer without one, such as a base model's.
      chat_template: to use instead of the checkpoint's own; None: its own.
      date: YYYY-MM-DD, for chat templates with a date (attribute `chat_date`); None: the day of
        rendering.

    Raises:
      CheckpointError: the tokenizer is missing or damaged, or lacks a needed chat template.
    """
    found = local_checkpoint(path, patterns=FILES, revision=revision)
    if not is_gguf(found):
        _check_contents(found)
    tokenizer = _load(found)
    # Decoding changes no blanks; a chat template's markers become special tokens.
    tokenizer.clean_up_tokenization_spaces = False
    tokenizer.split_special_tokens = False
    tokenizer.chat_date = date
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    if needs_chat_template and not tokenizer.chat_template:
        raise CheckpointError(
            f"{found}: the tokenizer must have a chat template (chat_template.jinja, the field "
            "chat_template of tokenizer_config.json, or tokenizer.chat_template of a GGUF file), "
            "got none"
        )
    return tokenizer


def _check_contents(directory: Path) -> None:
    """Refuses directories without a tokenizer, and tokenizer files with invalid content."""
    if not any(directory.glob("tokenizer*")):
        raise CheckpointError(
            f"{directory}: must have tokenizer.json or tokenizer.model, got neither"
        )
    if (directory / TOKENIZER).exists():  # refuses a pointer of git-lfs
        open_regular(directory / TOKENIZER, at_most=MAX_FILE, error=CheckpointError).close()
    found = {}
    for name in OBJECTS:
        if os.path.lexists(directory / name):
            found[name] = read_json(directory / name, at_most=MOST_SETTINGS, error=CheckpointError)
    templates = [directory / TEMPLATE, *directory.glob("additional_chat_templates/*.jinja")]
    for file in templates:
        if os.path.lexists(file):
            read_text(file, at_most=MOST_TEMPLATE, error=CheckpointError)
    template = found.get(SETTINGS, {}).get("chat_template")
    named = isinstance(template, list) and all(
        isinstance(entry, dict) and isinstance(entry.get("template"), str) for entry in template
    )
    if not (template is None or isinstance(template, str) or named):
        raise CheckpointError(
            f"{directory / SETTINGS}: chat_template must be text, or a list of objects with name "
            f"and template, got {shown(template)}"
        )


def _load(path: Path) -> Any:
    """The tokenizer of a directory or a GGUF file; errors of libraries name the path."""
    try:
        return tokenizer_from_gguf(read_header(path)) if is_gguf(path) else _of_directory(path)
    except (KeyboardInterrupt, SystemExit, MemoryError, ImportError, InputError):
        raise
    except BaseException as error:  # almost anything; panics of tokenizers are no Exception
        reason = clipped(str(error).partition("\n")[0] or type(error).__name__, 300)
        raise CheckpointError(f"{path}: the tokenizer cannot be read: {reason}") from None


def _of_directory(directory: Path) -> Any:
    file = directory / TOKENIZER
    if not file.is_file():
        from transformers import AutoTokenizer  # imports torch, where it is installed

        return AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    from tokenizers import Tokenizer  # heavy, and only drivers need them
    from transformers import PreTrainedTokenizerFast

    unchanged = Tokenizer.from_file(str(file))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)
    unchanged.no_padding()
    unchanged.no_truncation()
    expected = unchanged.encode(PROBE, add_special_tokens=False).ids
    ids = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    # Only this field of tokenizer_config.json may change how the file splits a text.
    if ids != expected and not tokenizer.init_kwargs.get("fix_mistral_regex"):
        raise CheckpointError(
            f"{directory}: {SETTINGS} must fit {TOKENIZER}, got {len(ids)} other tokens for a test "
            f"text in transformers than {TOKENIZER}'s {len(expected)}"
        )
    return tokenizer


def token_texts(tokenizer: Tokenizer) -> list[str]:
    """The text of every token, leading spaces included; "" for special tokens.

    A token of a partial character gives the replacement character. Each token is decoded after an
    ordinary one, because some tokenizers drop the space at the start of a text.
    """
    anchor = tokenizer("a", add_special_tokens=False)["input_ids"][-1]
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    before = tokenizer.decode([anchor], **options)
    count = max(tokenizer.get_vocab().values()) + 1  # len() does not count gaps between ids
    texts = tokenizer.batch_decode([[anchor, i] for i in range(count)], **options)
    return [text.removeprefix(before) if text.startswith(before) else "" for text in texts]


def surfaces(tokenizer: Tokenizer) -> dict[str, int]:
    """Text -> id of every token, without special tokens and partial characters."""
    # Byte tokens come first: tokens with the same text, which the tokenizer prefers, replace them.
    added = {text: i for i, text in enumerate(token_texts(tokenizer))}
    return {text: i for text, i in added.items() if text and "\ufffd" not in text}


def shared_tokens(sender: Tokenizer, receiver: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Ids, in both vocabularies, of the tokens with the same text.

    Args:
      sender: a tokenizer.
      receiver: another.

    Returns:
      Two int32 arrays of equal length; empty if the vocabularies share no token.
    """
    mine, theirs = surfaces(sender), surfaces(receiver)
    pairs = [(mine[text], theirs[text]) for text in mine if text in theirs]
    mine_ids, their_ids = np.array(pairs, np.int32).reshape(-1, 2).T
    return mine_ids, their_ids
