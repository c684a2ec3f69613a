"""Checkpoint directories and GGUF files, local or from the hub, and their JSON files."""

from __future__ import annotations

import glob
import os
import re
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
GGUF = ".gguf"
# A GGUF file of a hub repository, perhaps in a folder of it.
HUB_FILE = re.compile(r"([\w-][\w.-]*/[\w.-]+)/([^@]+\.gguf)(?:@(.+))?")


def is_gguf(path: Path) -> bool:
    """Whether a result of `local_checkpoint` is a GGUF file instead of a directory."""
    return path.suffix == GGUF and not path.is_dir()


def local_checkpoint(
    path: str | os.PathLike[str], *, patterns: tuple[str, ...], revision: str | None = None
) -> Path:
    """The GGUF file `path`, a local copy of one from the hub, or else `local_directory`.

    A hub id of a file is "OWNER/REPOSITORY/FILE.gguf", perhaps with a revision: "...gguf@main". An
    existing path takes precedence.

    Raises:
      CheckpointError: see `local_directory`; or the file is irregular, or not in the repository.
    """
    file = Path(path)
    if is_gguf(file) and os.path.lexists(file):
        reading.check_regular(file, at_most=None, error=CheckpointError)
        return file
    found = None if os.path.lexists(file) else HUB_FILE.fullmatch(str(path))
    if found is None:
        if is_gguf(file):
            raise CheckpointError(f"{clipped(str(path), 300)}: no such file")
        return local_directory(path, patterns=patterns, revision=revision)
    repository, name, own_revision = found.groups()
    _check_one_revision(path, own_revision, revision)
    folder = _snapshot(path, repository, own_revision or revision, (glob.escape(name),))
    if not (folder / name).exists():
        raise CheckpointError(f"{clipped(str(path), 300)}: no such file in {repository}")
    reading.check_regular(folder / name, at_most=None, error=CheckpointError)
    return folder / name


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
    _check_one_revision(path, own_revision, revision)
    snapshot = _snapshot(path, repository, own_revision or revision, patterns)
    _check_files(snapshot, patterns)
    return snapshot


def _check_one_revision(path: Any, own: str | None, revision: str | None) -> None:
    if own and revision:
        raise CheckpointError(f"revision must be None, as {path} includes one, got {revision!r}")


def _snapshot(
    path: str | os.PathLike[str], repository: str, revision: str | None, patterns: tuple[str, ...]
) -> Path:
    """A local snapshot of some files of a hub repository."""
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repository, revision=revision, allow_patterns=list(patterns)
            )
        )
    except Exception as error:  # the hub's errors have no common base
        reason = clipped(" ".join(str(error).split()), 600)
        kind = "file" if HUB_FILE.fullmatch(str(path)) else "directory"
        raise CheckpointError(
            f"{clipped(str(path), 300)}: no such {kind}, and not available from the hub: {reason}"
        ) from error


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
