"""A checkpoint derived from another: other weights; its tokenizer, chat template and end tokens."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rmas_jax.host.atomic import new_folder
from rmas_jax.models.decoder import Decoder
from rmas_jax.models.directories import CONFIG_FILE, is_gguf, local_checkpoint, read_json
from rmas_jax.models.errors import CheckpointError
from rmas_jax.models.generation import GENERATION_FILE, sampling_defaults
from rmas_jax.models.gguf_header import read_header
from rmas_jax.models.saving import save_pretrained
from rmas_jax.models.tokenizer import PROBE, Tokenizer, load_tokenizer

POSITIONS = "max_position_embeddings"
ID_FIELDS = ("bos_token_id", "pad_token_id")  # of config.json, and of tokenizers


def save_derived(
    path: str | os.PathLike[str],
    model: Decoder,
    params: Mapping[str, Any],
    *,
    source: str | os.PathLike[str],
    tokenizer: Tokenizer,
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Writes a directory for transformers, `load_pretrained` and `load_tokenizer`.

    Atomic: the directory appears complete. End tokens, the number of positions and a
    `generation_config.json` are those of the source.

    Args:
      path: the directory; must not exist.
      model: the decoder.
      params: its parameters; each keeps its dtype.
      source: checkpoint that the weights were changed from: a directory, a GGUF file or a hub id.
      tokenizer: of `load_tokenizer`, perhaps with another chat template than the source's.
      files: content of further files of the directory, by name, such as a card.

    Raises:
      CheckpointError: the path exists, `params` are not those of the model, or the tokenizer
        changes as it is saved.
      UnsupportedModelError: the family's `config.json` cannot express the decoder.
    """
    found = local_checkpoint(source, patterns=("*.json",))
    with new_folder(Path(path), error=CheckpointError) as folder:
        save_pretrained(folder, model, params, extra=_other_fields(found, tokenizer))
        _save_tokenizer(folder, tokenizer)
        if not is_gguf(found) and (rules := found / GENERATION_FILE).exists():
            (folder / GENERATION_FILE).write_bytes(rules.read_bytes())
        for name, content in (files or {}).items():
            (folder / name).write_bytes(content)


def _other_fields(source: Path, tokenizer: Any) -> dict[str, Any]:
    """Fields of `config.json` that do not shape the decoder, from a directory or a GGUF file."""
    if is_gguf(source):
        header = read_header(source)
        raw = {POSITIONS: header.metadata.get(f"{header.architecture}.context_length")}
    else:
        raw = read_json(source / CONFIG_FILE)
        raw = raw.get("text_config", raw)
    fields = {name: getattr(tokenizer, name, None) for name in ID_FIELDS}
    if raw.get(POSITIONS) is not None:
        fields[POSITIONS] = raw[POSITIONS]
    _, ends = sampling_defaults(source)
    return fields | ({"eos_token_id": list(ends)} if ends else {})


def _save_tokenizer(folder: Path, tokenizer: Any) -> None:
    """Saves a tokenizer, and checks that a test text keeps its tokens."""
    tokenizer.save_pretrained(folder)
    saved = load_tokenizer(folder, needs_chat_template=False)
    for is_whole in (False, True):
        ids, wanted = (
            of(PROBE, add_special_tokens=is_whole)["input_ids"] for of in (saved, tokenizer)
        )
        if ids != wanted:
            raise CheckpointError(
                f"{tokenizer.name_or_path}: the tokenizer must split a test text after it is saved "
                f"as before, into {len(wanted)} tokens, got {len(ids)} other ones"
            )
    if saved.chat_template != tokenizer.chat_template:
        raise CheckpointError(
            f"{tokenizer.name_or_path}: the chat template must be the same after it is saved"
        )
