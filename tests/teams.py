"""A tiny team: random agents of three families, each with a tokenizer of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from systems import BASE, CONFIGS, LATENT_STEPS, ROLE_PROMPTS, build_tiny_system, random_params

from experiments.embedded.make_tokenizers import write_tokenizer
from rmas_jax.agents.agent import Agent
from rmas_jax.agents.member import Member
from rmas_jax.links import Links
from rmas_jax.models import Decoder, DecoderConfig, load_tokenizer
from rmas_jax.models.tokenizer import surfaces
from rmas_jax.prompts import RolePrompt, split_template
from rmas_jax.team import Team

QUESTIONS = ("w", "where does the parcel end ?", "from a to b")  # ragged
# Schedule -> role -> prompt, of methods with prompts of their own.
METHOD_PROMPTS = {
    "self_refinement": {
        "solver": RolePrompt("you solve", "{question} solve it", "{question} draft {solver} go on")
    },
    "mixture_of_agents": {
        "planner": RolePrompt(
            "you plan", "{question} go", "{question} {planner} {critic} {solver}"
        ),
        "critic": RolePrompt(
            "", "{question} go on", "about {planner} {critic} {solver} {question}"
        ),
        "solver": RolePrompt(
            "you solve", "{question}", "{question} {solver} {planner} {critic} go"
        ),
    },
    "textgrad": {
        "planner": RolePrompt("you plan", "{question} seen {solver}", "{question} seen {solver}"),
        "critic": RolePrompt("", "about {solver} of {question}", "about {solver} of {question}"),
        "solver": RolePrompt("", "{question} go", "{question} {solver} but {planner} and {critic}"),
    },
}
LOOP_LM = DecoderConfig(
    model_type="ouro",
    width=16,
    num_heads=2,
    num_kv_heads=2,
    head_dim=8,
    rope_theta=100.0,
    sandwich_norms=True,
    loops=2,
    **BASE,
)
CAPACITY = 96  # the reference reads every prompt in an array of this length


def build_team(folder: Path, latent_steps: int = LATENT_STEPS) -> tuple[Team, Links]:
    """A team and its links, random but the same every time; tokenizers are written to `folder`."""
    texts = [*QUESTIONS, "assistant", "user", "system", "model", "\n", "you plan", "you solve"]
    texts += [text for prompt in ROLE_PROMPTS.values() for text in (prompt.first, prompt.later)]
    members = {}
    for seed, (role, config) in enumerate(CONFIGS.items()):
        write_tokenizer(config.model_type, texts, folder / role, seed=seed)
        members[role] = _member(role, config, folder / role, seed)
    write_tokenizer("qwen3", texts, folder / "loop_lm", seed=len(members))
    loop_lm = _member("solver", LOOP_LM, folder / "loop_lm", len(members))
    tiny = build_tiny_system(latent_steps)
    return Team(tiny.system, members, loop_lm=loop_lm), tiny.links


def _member(role: str, config: DecoderConfig, folder: Path, seed: int) -> Member:
    tokenizer: Any = load_tokenizer(folder)
    config = dataclasses.replace(config, vocab_size=len(tokenizer))
    agent = Agent(Decoder(config), talkative(random_params(config, seed), tokenizer))
    return Member(role, agent, tokenizer, ROLE_PROMPTS[role], (tokenizer.eos_token_id,))


def talkative(params: Any, tokenizer: Any) -> Any:
    """Parameters of an agent that rarely writes bytes: they make no text that can be read again."""
    words = set(surfaces(tokenizer).values())
    words = [i in words and len(tokenizer.decode([i]).strip()) > 1 for i in range(len(tokenizer))]
    weight = jnp.where(jnp.asarray(words)[:, None], 1.0, 0.2)
    scaled = {"embedding": params["embedding"] * weight}
    if "unembed_kernel" in params:
        scaled["unembed_kernel"] = params["unembed_kernel"] * weight
    return {**params, **scaled}


def with_agents(team: Team, agents: Mapping[str, Agent], mesh: Any = None) -> Team:
    """The team with other agents for some roles, on a mesh."""
    members = {
        role: dataclasses.replace(member, agent=agents.get(role, member.agent))
        for role, member in team.members.items()
    }
    return dataclasses.replace(team, members=members, mesh=mesh)


def broken(agent: Agent, token: int | None = None) -> Agent:
    """An agent with NaN in its last norm, or in the embedding of a token alone."""
    params = agent.params
    if token is None:
        changed = {"final_norm": {"weight": params["final_norm"]["weight"] * np.nan}}
    else:
        changed = {"embedding": params["embedding"].at[token].set(np.nan)}
    return agent.replace(params=params | changed)


@jax.jit
def _next_token(agent: Agent, ids: jax.Array, length: jax.Array) -> jax.Array:
    hidden, _ = agent.read(agent.embed(ids[None]), jnp.arange(CAPACITY)[None] < length)
    return jnp.argmax(agent.unembed(hidden[:, length - 1][:, None])[0, 0])


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
    prompt: RolePrompt | None = None,
) -> tuple[str, int]:
    """One agent's text and its number of tokens: no cache, no batch, the whole row for each one."""
    tokenizer, prompt = team.members[role].tokenizer, prompt or team.members[role].template
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
        written.append(int(_next_token(team.agents[role], ids, len(row))))
        row.append(written[-1])
    return tokenizer.decode(written, skip_special_tokens=True).strip(), len(written)
