"""Prompts: templates as data, rendering in an agent's chat template, encoding as arrays."""

from rmas_jax.prompts.chat import (
    SENTINEL,
    render_chat,
    split_template,
    template_of,
    turn_end,
    turn_starts,
)
from rmas_jax.prompts.chat_templates import load_chat_template, shipped_chat_templates
from rmas_jax.prompts.columns import Question, check_columns, check_unasked, template_with
from rmas_jax.prompts.encoding import (
    FIRST,
    LATER,
    StagePrompt,
    StageTokens,
    declared_width,
    encode_piece,
    encode_stage,
    exact_width,
    stage_tokens,
    take,
    tiled_width,
)
from rmas_jax.prompts.method_prompts import load_method_prompts
from rmas_jax.prompts.rendering import today
from rmas_jax.prompts.templates import (
    FIELD,
    TASK_TYPES,
    PromptError,
    RolePrompt,
    load_prompts,
    task_types,
)
from rmas_jax.prompts.token_rows import TokenRows, left_pad

__all__ = [
    "FIELD",
    "FIRST",
    "LATER",
    "SENTINEL",
    "TASK_TYPES",
    "PromptError",
    "Question",
    "RolePrompt",
    "StagePrompt",
    "StageTokens",
    "TokenRows",
    "check_columns",
    "check_unasked",
    "declared_width",
    "encode_piece",
    "encode_stage",
    "exact_width",
    "left_pad",
    "load_chat_template",
    "load_method_prompts",
    "load_prompts",
    "render_chat",
    "shipped_chat_templates",
    "split_template",
    "stage_tokens",
    "take",
    "task_types",
    "template_of",
    "template_with",
    "tiled_width",
    "today",
    "turn_end",
    "turn_starts",
]
