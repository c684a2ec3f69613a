"""Checkpoint directories, local or from the hub, and their JSON files."""

from __future__ import annotations

import os
import stat
from importlib import resources
from pathlib import Path
from typing import Any

import huggingface_hub

from rmas_jax.host import reading
from rmas_jax.host.errors import clipped, shown
from rmas_jax.models.errors import CheckpointError

CONFIG_FILE = "config.json"
ADAPTER_FILE = "adapter_config.json"
MAX_CONFIG = reading.MEBIBYTE  # of config.json and similar files; published ones have some KiB
MAX_FILE = 128 * reading.MEBIBYTE  # of files except weights; Gemma-3's tokenizer has 32 MiB
EMBEDDED = "embedded/"  # prefix of shipped agents
_ASSETS = Path(str(resources.files("rmas_jax"))) / "assets"
UNBOUNDED = (".safetensors", ".bin", ".pt", ".pth", ".gguf")  # bounded by their readers


def local_directory(
    path: str | os.PathLike[str], *, patterns: tuple[str, ...], revision: str | None = None
) -> Path:
    """The directory `path`, a shipped agent's directory, or a local snapshot of a hub repository.

    A shipped agent is "embedded/NAME"; a hub id may include its revision: "Qwen/Qwen3-0.6B@main". A
    directory of the same name takes precedence.

    Raises:
      CheckpointError: neither exists, or the hub cannot be reached; or the directory holds pipes,
        devices or sockets; or a file that matches `patterns` is a folder, a broken link, or too
        large.
    """
    directory = Path(path)
    try:
        found = os.stat(directory)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        found = None
    if found is not None and stat.S_ISDIR(found.st_mode):
        _check_files(directory, patterns)
        return directory
    if found is not None:
        raise CheckpointError(f"{path}: must be a directory or a hub id, got a file")
    if str(path).startswith(EMBEDDED):
        return _shipped_directory(str(path))
    repository, _, own_revision = str(path).partition("@")
    if own_revision and revision:
        raise CheckpointError(f"revision must be None, as {path} includes one, got {revision!r}")
    try:
        snapshot = huggingface_hub.snapshot_download(
            repository, revision=own_revision or revision, allow_patterns=list(patterns)
        )
    except Exception as error:  # the hub's errors have no common base
        reason = clipped(" ".join(str(error).split()), 600)
        raise CheckpointError(
            f"{clipped(str(path), 300)}: no such directory, and not available from the hub: "
            f"{reason}"
        ) from error
    _check_files(Path(snapshot), patterns)
    return Path(snapshot)


def _shipped_directory(path: str) -> Path:
    shipped = {EMBEDDED + d.name: d for d in (_ASSETS / EMBEDDED).iterdir() if d.is_dir()}
    if path not in shipped:
        raise CheckpointError(
            f"an embedded agent must be one of {', '.join(sorted(shipped))}, got {shown(path)}"
        )
    return shipped[path]


def _check_files(directory: Path, patterns: tuple[str, ...]) -> None:
    """Refuses files that would block libraries or fill the memory."""
    for file in sorted(directory.iterdir()):
        is_read = any(file.match(pattern) for pattern in patterns)
        if not is_read and not file.exists():
            continue
        if file.is_dir() and not (is_read and file.suffix):  # "tokenizer*" may name a folder
            continue
        at_most = MAX_FILE if is_read and file.suffix not in UNBOUNDED else None
        reading.check_regular(file, at_most=at_most, error=CheckpointError)


def read_json(path: Path, *, at_most: int = MAX_CONFIG) -> dict[str, Any]:
    """A JSON object from a regular file; errors name the file."""
    return reading.read_json(path, at_most=at_most, error=CheckpointError)


def check_no_adapter(directory: Path) -> None:
    """Refuses PEFT adapters, such as LoRA, which transformers would apply to the loaded model.

    Releases of RecursiveMAS have a file of the same name with other content.

    Raises:
      CheckpointError: names the file and the remedy.
    """
    path = directory / ADAPTER_FILE
    if path.exists() and (kind := read_json(path).get("peft_type")) is not None:
        raise CheckpointError(
            f"{path}: peft_type must be absent, as adapters of PEFT are not supported, got "
            f"{shown(kind)}; merge it (in PEFT: merge_and_unload) and save the model anew"
        )
