"""Columns of the data in prompts: what fills the fields of a template, apart from slots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

from rmas_jax.config import DataConfig
from rmas_jax.data.evidence import PLANNER
from rmas_jax.host.errors import shown
from rmas_jax.prompts.templates import FIELD, PromptError, RolePrompt

# A question alone, or the texts of a row by field: `question` and the columns of prompts.
Question: TypeAlias = str | Mapping[str, str]


def texts_of(question: Question) -> Mapping[str, str]:
    """The texts of a question by field."""
    return {"question": question} if isinstance(question, str) else question


def check_columns(
    prompts: Mapping[str, RolePrompt], rows: Iterable[tuple[str, Question]], *, source: str
) -> None:
    """Checks that rows have all columns of prompts.

    Args:
      prompts: by role.
      rows: each with its name.
      source: file or name of the prompts.

    Raises:
      PromptError: names the prompts, the role, its template, the column and the row.
    """
    if not any(prompt.columns for prompt in prompts.values()):
        return  # reads no row
    for name, row in rows:
        texts = texts_of(row)
        for role, prompt in prompts.items():
            for column in prompt.columns:
                if column not in texts:
                    raise PromptError(
                        f"{source}: {role}: {template_with(prompt, column)} must have columns that "
                        f"every row has, got {{{column}}}, which is not in {name}"
                    )


def check_unasked(prompts: Mapping[str, RolePrompt], data: DataConfig, *, source: str) -> None:
    """Checks that a planner that is not to know the question does not read it.

    Args:
      prompts: by role.
      data: the configuration of the questions.
      source: file or name of the prompts.

    Raises:
      PromptError: names the prompts and the template.
    """
    if data.evidence is None or data.evidence.asked or PLANNER not in prompts:
        return
    prompt = prompts[PLANNER]
    if "question" in FIELD.findall(prompt.first + prompt.later):
        template = template_with(prompt, "question")
        raise PromptError(
            f"{source}: {PLANNER}: {template} must not have {{question}} with data.evidence.asked: "
            f"false, got {shown(getattr(prompt, template))}"
        )


def template_with(prompt: RolePrompt, column: str) -> str:
    """The template of a prompt that has a column: first or later."""
    return "first" if column in FIELD.findall(prompt.first) else "later"


def filled(question: Question, column: str) -> str:
    """The text of a field.

    Raises:
      PromptError: it has none; `check_columns` names it better, and earlier.
    """
    texts = texts_of(question)
    if column not in texts:
        raise PromptError(
            f"prompts must have columns of the question, {shown(sorted(texts))}, got {{{column}}} "
            f"for {shown(texts.get('question'))}"
        )
    return texts[column]
