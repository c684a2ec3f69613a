"""A tiny team: random agents of three families, each with a tokenizer of its own."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict
from systems import CONFIGS, LATENT_STEPS, ROLE_PROMPTS, build_tiny_system, random_params

from experiments.embedded.make_tokenizers import write_tokenizer
from rmas_jax.models import Decoder, load_tokenizer
from rmas_jax.models.tokenizer import surfaces
from rmas_jax.prompts import StagePrompt, encode_stage, split_template
from rmas_jax.team import Team

QUESTIONS = ("w", "where does the parcel end ?", "from a to b")  # ragged
CAPACITY = 96  # the reference reads every prompt in an array of this length


def build_team(folder: Path, latent_steps: int = LATENT_STEPS) -> tuple[Team, Any]:
    """A team and its links, random but the same every time; tokenizers are written to `folder`."""
    texts = [*QUESTIONS, "assistant", "user", "system", "model", "\n", "you plan", "you solve"]
    texts += [text for prompt in ROLE_PROMPTS.values() for text in (prompt.first, prompt.later)]
    tokenizers, models, agents = {}, {}, {}
    for seed, (role, config) in enumerate(CONFIGS.items()):
        write_tokenizer(config.model_type, texts, folder / role, seed=seed)
        tokenizers[role] = load_tokenizer(folder / role)
        config = dataclasses.replace(config, vocab_size=len(tokenizers[role]))
        models[role] = Decoder(config)
        agents[role] = talkative(random_params(config, seed), tokenizers[role])
    tiny = build_tiny_system(latent_steps)
    system = tiny.system.replace(models=FrozenDict(models))
    ends = {role: (tokenizer.eos_token_id,) for role, tokenizer in tokenizers.items()}
    return Team(system, agents, tokenizers, ROLE_PROMPTS, ends), tiny.links


def talkative(params: Any, tokenizer: Any) -> Any:
    """Parameters of an agent that rarely writes bytes: they make no text that can be read again."""
    words = set(surfaces(tokenizer).values())
    words = [i in words and len(tokenizer.decode([i]).strip()) > 1 for i in range(len(tokenizer))]
    weight = jnp.where(jnp.asarray(words)[:, None], 1.0, 0.2)
    scaled = {"embedding": params["embedding"] * weight}
    if "unembed_kernel" in params:
        scaled["unembed_kernel"] = params["unembed_kernel"] * weight.T
    return {**params, **scaled}


def encode(team: Team, questions: Sequence[str], slot_width: int) -> dict[str, StagePrompt]:
    """Prompts of all roles."""
    return {
        role: encode_stage(team.tokenizers[role], prompt, questions, slot_width=slot_width)
        for role, prompt in team.prompts.items()
    }


@functools.partial(jax.jit, static_argnums=0)
def _next_token(model: Decoder, params: Any, ids: jax.Array, length: jax.Array) -> jax.Array:
    embeds = model.apply({"params": params}, ids[None], method="embed")
    hidden = model.apply({"params": params}, embeds, jnp.arange(CAPACITY)[None] < length)
    logits = model.apply({"params": params}, hidden[:, length - 1][:, None], method="unembed")
    return jnp.argmax(logits[0, 0])


def write_naively(
    team: Team,
    role: str,
    question: str,
    messages: dict[str, str],
    *,
    later: bool,
    ends: Sequence[int],
    max_tokens: int,
    slot_width: int,
) -> tuple[str, int]:
    """One agent's text and its number of tokens: no cache, no batch, the whole row for each one."""
    tokenizer, prompt = team.tokenizers[role], team.prompts[role]
    parts = split_template(tokenizer, prompt, prompt.later if later else prompt.first)
    row: list[int] = []
    for i, part in enumerate(parts):
        text = messages[part] if i % 2 else part.replace("\ue000question\ue001", question)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        row += ids[:slot_width] if i % 2 else ids
    written: list[int] = []
    while len(written) < max_tokens and not set(written) & set(ends):
        ids = np.zeros(CAPACITY, np.int32)
        ids[: len(row)] = row
        model, params = team.system.models[role], team.agents[role]
        written.append(int(_next_token(model, params, ids, len(row))))
        row.append(written[-1])
    return tokenizer.decode(written, skip_special_tokens=True).strip(), len(written)
