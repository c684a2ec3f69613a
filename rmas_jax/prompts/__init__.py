"""Prompts: templates as data, rendering in an agent's chat template, encoding as arrays."""

from rmas_jax.prompts.chat import SENTINEL, render_chat, split_template, template_of, turn_end
from rmas_jax.prompts.encoding import (
    FIRST,
    LATER,
    StagePrompt,
    declared_width,
    encode_piece,
    encode_stage,
    exact_width,
    left_pad,
    take,
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

__all__ = [
    "FIELD",
    "FIRST",
    "LATER",
    "SENTINEL",
    "TASK_TYPES",
    "PromptError",
    "RolePrompt",
    "StagePrompt",
    "declared_width",
    "encode_piece",
    "encode_stage",
    "exact_width",
    "left_pad",
    "load_method_prompts",
    "load_prompts",
    "render_chat",
    "split_template",
    "take",
    "task_types",
    "template_of",
    "today",
    "turn_end",
]
