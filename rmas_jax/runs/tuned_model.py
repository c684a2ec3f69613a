"""The tuned answerer of a run as a checkpoint of its own, for any role of other teams."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from rmas_jax.agents.adapters import tuned_agent
from rmas_jax.agents.agent import load_agent
from rmas_jax.config import ConfigError, RunConfig, TuningConfig, load_config, with_budgets
from rmas_jax.host.errors import shown
from rmas_jax.models.derived import save_derived
from rmas_jax.run_files import RunFiles
from rmas_jax.runs.resources import load_run_team
from rmas_jax.runs.tuning import own_adapter
from rmas_jax.team_texts import load_team_texts

WHOLE = ("lora", "full")  # kinds of adapters that become weights of the model


def save_tuned_model(
    run: str | os.PathLike[str],
    method: str,
    path: str | os.PathLike[str],
    *,
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Writes the answerer of a run, with an adapter merged into its weights.

    Tokenizer, chat template and end tokens are those of the run.

    Args:
      run: folder of the run, after its tuning.
      method: name of the adapter, such as "answerer_full".
      path: the new directory; see `save_derived`.
      files: further files, by name.

    Raises:
      ConfigError: the folder has no configuration, or it tunes no such adapter.
      CheckpointError: the adapter is missing or damaged, or as for `save_derived`.
    """
    own = RunFiles(Path(run))
    config = load_config(own.config)
    entry = _entry(config, method)
    texts = load_team_texts(config.system)
    role, runtime = texts.topology.answerer, config.runtime
    adapter = own_adapter(own, load_run_team(config, texts, is_abstract=True), entry)
    agent = load_agent(config.system.agents[role], runtime.dtype, weights=runtime.weights)
    tuned = tuned_agent(agent, adapter)
    save_derived(
        path,
        tuned.decoder,
        tuned.params,
        source=config.system.agents[role],
        tokenizer=texts.tokenizers[role],
        files=files,
    )


def run_of_adapter(path: str | os.PathLike[str]) -> Path | None:
    """The folder of the run that has an adapter's file; None for other files."""
    folder = Path(path).absolute().parent
    is_own = folder.name == RunFiles.tuned and RunFiles(folder.parent).config.exists()
    return folder.parent if is_own else None


def _entry(config: RunConfig, method: str) -> TuningConfig:
    """The entry of a method in `tuning`, whose adapter becomes weights."""
    entries = {e.name: e for e in with_budgets(config.tuning, config.outer) if e.kind in WHOLE}
    if method not in entries:
        raise ConfigError(
            f"tuning must have an entry of kind {' or '.join(WHOLE)} for {shown(method)}, got "
            f"{', '.join(e.kind for e in config.tuning) or 'none'}"
        )
    return entries[method]
