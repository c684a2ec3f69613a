"""The data sets that the paper's authors published on the Hugging Face hub.

Not tested on the hub's files, which could not be reached: layout and field names follow the
release's description, and the tests read files of that shape.

Two limits. The per-row task fields of the code sets (`type`, `fn_name`, `task_family`) are ignored:
one `system.task_type` serves the whole training. A run trains on one set, so the four sets of the
mixture's roles (math, code, science, summarizer) cannot train one team in one run.
"""

from __future__ import annotations

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


def repository_of(dataset: str) -> str | None:
    """The repository of a published data set, by its name or hub id; None for other names."""
    name = dataset.removeprefix(f"{ORGANISATION}/")
    return f"{ORGANISATION}/{name}" if name in PUBLISHED else None
