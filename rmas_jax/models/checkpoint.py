"""Checkpoints of decoders: Hugging Face directories with safetensors, and GGUF files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from rmas_jax.models.config import DecoderConfig, config_from_hf
from rmas_jax.models.directories import (
    ADAPTER_FILE,
    CONFIG_FILE,
    check_no_adapter,
    is_gguf,
    local_checkpoint,
    local_directory,
    read_json,
)
from rmas_jax.models.gguf import gguf_changes, gguf_table, without_prediction
from rmas_jax.models.gguf_config import config_from_gguf
from rmas_jax.models.gguf_header import read_header
from rmas_jax.models.gguf_tensors import TensorFile
from rmas_jax.models.stored import open_safetensors, weight_files
from rmas_jax.models.stored_names import stored_prefix
from rmas_jax.models.weights import Weight, weight_table


class Checkpoint(NamedTuple):
    """A decoder, and the files with its weights."""

    path: Path  # the directory, or the GGUF file
    config: DecoderConfig
    source: Path  # the file that describes it
    files: list[Path]  # with its weights
    # Opens one of the files, which the stack closes, as `stored.open_safetensors`.
    open_file: Callable[[Path, contextlib.ExitStack], Any]
    # The decoder's weights, with their names among those of the stored tensors.
    table: Callable[[Iterable[str]], tuple[Weight, ...]]


def find_checkpoint(path: str | os.PathLike[str], *, revision: str | None = None) -> Checkpoint:
    """The checkpoint at a path or of a hub id, with all its files on this machine.

    Raises:
      UnsupportedModelError: the architecture, or a GGUF file's quantisation, is not supported.
      CheckpointError: files are missing or damaged.
      ImportError: the package for GGUF files is not installed.
    """
    patterns = ("*.json", "model*.safetensors")
    found = local_checkpoint(path, patterns=patterns, revision=revision)
    if is_gguf(found):
        return _gguf_file(found)
    config = config_at(found)
    files = weight_files(found)
    if found != Path(path) and not all(file.exists() for file in files):
        names = tuple(file.relative_to(found).as_posix() for file in files)
        local_directory(path, patterns=names, revision=revision)  # in folders of a hub repository
    return Checkpoint(
        found,
        config,
        found / CONFIG_FILE,
        files,
        open_safetensors,
        lambda names: weight_table(config, stored_prefix(names)),
    )


def _gguf_file(path: Path) -> Checkpoint:
    header = read_header(path)
    config = config_from_gguf(header)
    header = without_prediction(header, config)
    table = gguf_table(config, header.architecture)
    changes = gguf_changes(table, header.architecture)

    def open_file(path: Path, stack: contextlib.ExitStack) -> TensorFile:
        return stack.enter_context(TensorFile(header, changes))

    return Checkpoint(path, config, path, [path], open_file, lambda names: table)


def read_config(path: str | os.PathLike[str], *, revision: str | None = None) -> DecoderConfig:
    """The decoder of a checkpoint, without its weights; raises as `find_checkpoint`."""
    patterns = (CONFIG_FILE, ADAPTER_FILE)
    return config_at(local_checkpoint(path, patterns=patterns, revision=revision))


def config_at(path: Path) -> DecoderConfig:
    """The decoder of a local directory or GGUF file."""
    if is_gguf(path):
        return config_from_gguf(read_header(path))
    check_no_adapter(path)
    source = path / CONFIG_FILE
    return config_from_hf(read_json(source), source=str(source))
