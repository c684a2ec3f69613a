"""Chat templates by name: shipped ones, and jinja files of users."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

from rmas_jax.host.errors import shown
from rmas_jax.host.inputs import local_input
from rmas_jax.host.reading import read_text
from rmas_jax.models.tokenizer import MOST_TEMPLATE
from rmas_jax.prompts.templates import PromptError

SUFFIX = ".jinja"


def shipped_chat_templates() -> dict[str, Path]:
    """Name -> file of the shipped chat templates."""
    folder = Path(str(resources.files("rmas_jax.prompts")))
    return {file.stem: file for file in sorted(folder.glob(f"*{SUFFIX}"))}


def load_chat_template(name_or_path: str, *, option: str) -> str:
    """Reads a shipped chat template by name, or a jinja file.

    Args:
      name_or_path: "plain", or a path.
      option: that names it, for errors.

    Raises:
      PromptError: there is no such file, or it is empty, too large or not UTF-8.
    """
    shipped = shipped_chat_templates()
    path = shipped.get(name_or_path) or local_input(name_or_path)
    if not os.path.exists(path):  # False for impossible paths too
        raise PromptError(
            f"{option} must be a path to a jinja file or one of {', '.join(shipped)}, got "
            f"{shown(name_or_path, 200)}"
        )
    text = read_text(path, at_most=MOST_TEMPLATE, error=PromptError)
    if not text.strip():
        raise PromptError(f"{option}: {path} must be a chat template, got an empty file")
    return text
