"""Identity of a run: digests of its agents, links and files; and its environment."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rmas_jax import __version__
from rmas_jax.config import RunConfig, RuntimeConfig
from rmas_jax.config.paths import relative_path
from rmas_jax.host.inputs import local_input
from rmas_jax.models.directories import CONFIG_FILE, is_gguf, local_checkpoint
from rmas_jax.models.gguf_header import read_header
from rmas_jax.models.stored import weight_files
from rmas_jax.models.tokenizer import FILES as TOKENIZER_FILES
from rmas_jax.team_texts import TeamTexts, load_method_templates


def agent_sources(config: RunConfig) -> dict[str, dict[str, str | None]]:
    """Role -> source and digest of its agent; reads the weights of local checkpoints.

    Returns:
      By role: "source", the directory, GGUF file or hub id; "revision", the commit, from the hub;
      "digest", of all inputs of the agent's states: configuration and weights (or the commit), and
      the storage options in `runtime`.
    """
    return {
        role: _agent_source(source, config.runtime) for role, source in config.system.agents.items()
    }


def _agent_source(source: str, runtime: RuntimeConfig) -> dict[str, str | None]:
    found = local_checkpoint(source, patterns=(CONFIG_FILE,))
    snapshot = _snapshot(found)
    commit = None if snapshot is None else snapshot.name
    digest = hashlib.sha256(f"{runtime.dtype} {runtime.weights} {commit}".encode())
    if snapshot is None:
        files = [found] if is_gguf(found) else [found / CONFIG_FILE, *weight_files(found)]
        for file in files:
            digest.update(f" {file.relative_to(found)} {_file_digest(file)}".encode())
    elif is_gguf(found):  # one of the repository's, with different quantisations
        digest.update(f" {found.relative_to(snapshot)}".encode())
    return {"source": relative_path(source), "revision": commit, "digest": digest.hexdigest()}


def _snapshot(path: Path) -> Path | None:
    """The folder of the commit, if an agent's directory or GGUF file is from the hub."""
    places = path.parents if is_gguf(path) else (path,)
    return next((p for p in places if p.match("models--*/snapshots/*")), None)


def contents(config: RunConfig, texts: TeamTexts) -> dict[str, Any]:
    """Digests of the files that a configuration names, except weights and data.

    Args:
      config: of the run.
      texts: its topology and prompts, as loaded.

    Returns:
      "topology"; "prompts", "tokenizers" and named "chat_templates" by role; "method_prompts" by
      schedule; "corpus", of `evaluation.search`, or None; "loop_lm", of its weights and its
      tokenizer, or None.

    Raises:
      CheckpointError, OSError: a tokenizer or the corpus cannot be read.
    """
    agents, corpus = config.system.agents, config.evaluation.search
    loop_lm = config.evaluation.loop_lm
    return {
        "topology": text_digest(dataclasses.asdict(texts.topology)),
        "prompts": {
            role: text_digest(dataclasses.asdict(prompt))
            for role, prompt in texts.templates.items()
        },
        "method_prompts": {
            schedule: text_digest([dataclasses.asdict(prompts[role]) for role in sorted(prompts)])
            for schedule, prompts in load_method_templates(
                config.system, texts.topology, texts.templates, config.system.task_type
            ).items()
        },
        "tokenizers": {role: _tokenizer_digest(source) for role, source in agents.items()},
        "chat_templates": {
            role: text_digest(texts.tokenizers[role].chat_template)
            for role in config.system.chat_templates or {}
        },
        "corpus": None if corpus is None else _file_digest(local_input(corpus)),
        "loop_lm": None
        if loop_lm is None
        else [_agent_source(loop_lm, config.runtime)["digest"], _tokenizer_digest(loop_lm)],
    }


def text_digest(tree: Any) -> str:
    """A digest of a tree of settings."""
    return hashlib.sha256(json.dumps(tree).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _tokenizer_digest(source: str) -> str:
    """A digest of an agent's tokenizer and end tokens.

    From the hub, the digest of the commit. `config.json` is part of the weights' digest. Of a GGUF
    file, the digest of the metadata about the tokenizer.
    """
    directory = local_checkpoint(source, patterns=TOKENIZER_FILES)
    if is_gguf(directory):
        return text_digest(read_header(directory).section("tokenizer."))
    if _snapshot(directory) is not None:
        return text_digest(directory.name)
    files = {file for pattern in TOKENIZER_FILES for file in directory.glob(pattern)}
    return text_digest(
        [(f.name, _file_digest(f)) for f in sorted(files) if f.is_file() and f.name != CONFIG_FILE]
    )


def weights_digest(agents: Mapping[str, Mapping[str, str | None]], given: Any) -> str:
    """A digest of `agent_sources` and of given links."""
    digest = hashlib.sha256(
        json.dumps({role: agents[role]["digest"] for role in sorted(agents)}).encode()
    )
    for array in jax.tree.leaves(given):
        digest.update(np.asarray(array).tobytes())
    return digest.hexdigest()


def environment() -> dict[str, Any]:
    """Software and devices of the run."""
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")
    return {
        "rmas_jax": __version__,
        **{name: metadata.version(name) for name in packages},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "devices": ", ".join(str(device) for device in jax.devices()),
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
