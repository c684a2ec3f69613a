"""The data sets that the paper's authors published on the Hugging Face hub.

Not tested on the hub's files, which could not be reached: layout and field names follow the
release's description, and the tests read files of that shape.

Two limits. The per-row task fields of the code sets (`type`, `fn_name`, `task_family`) are ignored:
one `system.task_type` serves the whole training. A run trains on one set, so the four sets of the
mixture's roles (math, code, science, summarizer) cannot train one team in one run.
"""

from __future__ import annotations

from pathlib import Path

import huggingface_hub

from rmas_jax.data.files import SUFFIXES
from rmas_jax.data.rows import DataError

ORGANISATION = "RecursiveMAS"
PUBLISHED = (
    "Sequential-Math",
    "Sequential-Code",
    "Distillation-Math",
    "Distillation-Code",
    "Mixture-Math",
    "Mixture-Code",
    "Mixture-Science",
    "Mixture-Summarizer",
    "Mixture-Outer",
    "Deliberation",
)


def is_published(dataset: str) -> bool:
    """Whether a name or hub id is that of a published data set."""
    return dataset.removeprefix(f"{ORGANISATION}/") in PUBLISHED


def download(dataset: str) -> Path:
    """A local snapshot of a published data set, downloaded on first use.

    Raises:
      DataError: the hub cannot be reached.
    """
    repository = f"{ORGANISATION}/{dataset.removeprefix(f'{ORGANISATION}/')}"
    try:
        snapshot = huggingface_hub.snapshot_download(
            repository, repo_type="dataset", allow_patterns=[f"*{suffix}" for suffix in SUFFIXES]
        )
    except Exception as error:  # the hub has many errors, and they share no base
        reason = " ".join(str(error).split())
        raise DataError(
            f"data.dataset={dataset!r}: neither a folder nor available from the hub: {reason}"
        ) from error
    return Path(snapshot)
