"""The whole algorithm in plain torch, stage by stage, from the description of the upstream code.

One question at a time: no batch, no padding, no cache. Every latent step and every token reads its
whole prompt anew. What upstream loads from its release is random here, and tiny.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import torch
import transformers
import yaml
from oracles import build_torch_model
from released import Adapter, CrossModelAdapter
from systems import QUESTIONS, short_prompts
from torch import nn

from experiments.embedded.make_tokenizers import write_tokenizer
from rmas_jax.config import SystemConfig
from rmas_jax.interop import link_from_state
from rmas_jax.links import Links
from rmas_jax.models import load_tokenizer
from rmas_jax.prompts import RolePrompt
from rmas_jax.team import Team, load_team
from rmas_jax.topology import Topology, edge_name, load_topology

LATENT_STEPS = 3
Edge = tuple[str, str]  # sender, receiver

# --- One agent ------------------------------------------------------------------------------------


def embed(model: transformers.PreTrainedModel, ids: Sequence[int]) -> torch.Tensor:
    """Input embeddings [t, D], scaled where the family scales them."""
    return model.get_input_embeddings()(torch.tensor(ids, dtype=torch.long))


def read(model: transformers.PreTrainedModel, embeds: torch.Tensor) -> torch.Tensor:
    """Hidden states [t, D] after the final norm."""
    out = model(inputs_embeds=embeds[None], output_hidden_states=True, use_cache=False)
    return out.hidden_states[-1][0]


def think(
    model: transformers.PreTrainedModel, inner: nn.Module, embeds: torch.Tensor, steps: int
) -> torch.Tensor:
    """Thoughts [m, D]: the last state is kept, and returns through the inner link."""
    thoughts = []
    for _ in range(steps):
        thoughts.append(read(model, embeds)[-1])
        embeds = torch.cat([embeds, inner(thoughts[-1])[None]])
    return torch.stack(thoughts)


@torch.no_grad()
def write(
    model: transformers.PreTrainedModel,
    embeds: torch.Tensor,
    *,
    ends: Sequence[int],
    max_tokens: int,
) -> list[int]:
    """Greedy tokens; the first that is in `ends` is the last."""
    written: list[int] = []
    while len(written) < max_tokens and not set(written) & set(ends):
        logits = model(inputs_embeds=embeds[None], use_cache=False).logits[0, -1]
        written.append(int(logits.argmax()))
        embeds = torch.cat([embeds, embed(model, written[-1:])])
    return written


def text_loss(
    model: transformers.PreTrainedModel, embeds: torch.Tensor, text: Sequence[int]
) -> torch.Tensor:
    """Mean cross-entropy of a text behind a prompt of embeddings."""
    whole = torch.cat([embeds, embed(model, text)])
    logits = model(inputs_embeds=whole[None], use_cache=False).logits[0, len(embeds) - 1 : -1]
    return nn.functional.cross_entropy(logits, torch.tensor(text))


def cut_prompt(
    tokenizer: Any, prompt: RolePrompt, question: str, *, later: bool
) -> list[list[int] | str]:
    """A rendered prompt, cut at its slots: ids, sender, ids, ..., ids; each piece tokenised alone.

    A chat template that refuses a system role gets system and user text in one turn.
    """
    user = re.sub(r"\{(?!question)(\w+)\}", r"<<\1>>", prompt.later if later else prompt.first)
    user = user.replace("{question}", question)
    options = {"tokenize": False, "add_generation_prompt": True}
    turns = [{"role": "system", "content": prompt.system}, {"role": "user", "content": user}]
    try:
        rendered = tokenizer.apply_chat_template(turns, **options)
    except Exception:
        merged = [{"role": "user", "content": f"{prompt.system}\n\n{user}"}]
        rendered = tokenizer.apply_chat_template(merged, **options)
    pieces = re.split(r"<<(\w+)>>", rendered)
    return [
        piece if i % 2 else tokenizer(piece, add_special_tokens=False)["input_ids"]
        for i, piece in enumerate(pieces)
    ]


# --- The system -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class TorchTeam:
    """Agents and links of a topology."""

    topology: Topology
    models: Mapping[str, transformers.PreTrainedModel]  # by role
    tokenizers: Mapping[str, Any]  # by role
    prompts: Mapping[str, RolePrompt]  # by role
    inner: Mapping[str, nn.Module]  # by role
    outer: Mapping[Edge, nn.Module]


class Rounds(NamedTuple):
    """What the rounds leave behind; one entry per round."""

    received: list[torch.Tensor]  # [S, D] vectors in the answerer's slots
    prompts: list[torch.Tensor]  # [t, D] the answerer's whole prompt, from which it would answer
    sent: list[dict[Edge, torch.Tensor]]  # [m, D'] what crossed each edge


def run_rounds(
    team: TorchTeam,
    question: str,
    *,
    rounds: int,
    texts: Mapping[str, Sequence[Sequence[int]]] | None = None,
) -> Rounds:
    """Latent rounds; differentiable in the links.

    With `texts` (role -> tokens per round) they are teacher-forced: thoughts are not a rollout but
    the states at the last prompt token and the text's first m - 1 tokens. Upstream begins one token
    later, and feeds back the answer itself; the texts decide about the latter.
    """
    answerer = team.topology.answerer
    inbox: dict[Edge, torch.Tensor] = {}
    out = Rounds([], [], [])
    for r in range(rounds):
        out.sent.append({})
        for role in team.topology.order:
            model = team.models[role]
            pieces = cut_prompt(team.tokenizers[role], team.prompts[role], question, later=r > 0)
            filled = [
                inbox[piece, role] if i % 2 else embed(model, piece)
                for i, piece in enumerate(pieces)
            ]
            prompt = torch.cat(filled)
            if role == answerer:
                out.received.append(torch.cat(filled[1::2]))
                out.prompts.append(prompt)
                if r == rounds - 1:
                    continue  # it answers: nothing is fed back
            if texts is None:
                thoughts = think(model, team.inner[role], prompt, LATENT_STEPS)
            else:
                states = read(model, torch.cat([prompt, embed(model, texts[role][r])]))
                thoughts = states[len(prompt) - 1 :][:LATENT_STEPS]
            for edge, link in team.outer.items():
                if edge[0] == role:
                    inbox[edge] = out.sent[r][edge] = link(team.inner[role](thoughts))
    return out


def exchange_texts(
    team: TorchTeam,
    question: str,
    *,
    rounds: int,
    ends: Mapping[str, Sequence[int]],
    max_tokens: int,
) -> list[tuple[int, str, str]]:
    """The same rounds with text in the slots (Recursive-TextMAS).

    Returns (round, role, text) in their order; the last is the answer.
    """
    newest: dict[str, str] = {}
    written = []
    for r in range(rounds):
        for role in team.topology.order:
            tokenizer, model = team.tokenizers[role], team.models[role]
            ids: list[int] = []
            for i, piece in enumerate(
                cut_prompt(tokenizer, team.prompts[role], question, later=r > 0)
            ):
                ids += (
                    tokenizer(newest[piece], add_special_tokens=False)["input_ids"]
                    if i % 2
                    else piece
                )
            tokens = write(model, embed(model, ids), ends=ends[role], max_tokens=max_tokens)
            newest[role] = tokenizer.decode(tokens, skip_special_tokens=True).strip()
            written.append((r, role, newest[role]))
    return written


# --- The same random team in torch and in JAX -----------------------------------------------------

# Pattern -> role -> case of `oracles`, in the manner of the released systems: every agent of a
# pattern is of another family and width.
AGENTS = {
    "sequential": {"planner": "qwen3", "critic": "llama", "solver": "qwen2"},
    "mixture": {
        "math": "qwen2",
        "code": "qwen3",
        "science": "mistral-window",
        "summarizer": "gemma3-mqa-untied",
    },
    "distillation": {"expert": "qwen3_5", "learner": "llama-llama3"},
    "deliberation": {"reflector": "llama-mqa-untied", "toolcaller": "qwen3_5"},
}
WIDTHS = (20, 16, 24, 28)  # by place in the order
TOKENIZERS = {"gemma3": "gemma3_text", "llama": "llama"}  # the others: qwen3
LAYERS = {  # one of each kind; windows from behind a slot back into it
    "gemma3": {"layer_types": ["sliding_attention", "full_attention"]},
    "mistral": {"sliding_window": 12},
    "qwen3_5": {"layer_types": ["linear_attention", "full_attention"]},
}


class Twins(NamedTuple):
    """One team twice: by definition, and ours with its links."""

    torch: TorchTeam
    ours: Team
    links: Links


def build_twins(pattern: str, folder: Path) -> Twins:
    """Random agents, written to `folder` by transformers and read from there by us."""
    topology = load_topology(pattern)
    prompts = short_prompts(topology)
    (folder / "prompts.yaml").write_text(
        yaml.safe_dump(
            {
                role: {"system": prompt.system, "first": prompt.first, "later": prompt.later}
                for role, prompt in prompts.items()
            }
        )
    )
    texts = [text for p in prompts.values() for text in (p.system, p.first, p.later)]
    texts += [*QUESTIONS, "user", "system", "assistant", "model", "\n"]
    models, tokenizers = {}, {}
    for place, (role, case) in enumerate(AGENTS[pattern].items()):
        family = case.partition("-")[0]
        write_tokenizer(TOKENIZERS.get(family, "qwen3"), texts, folder / role, seed=place)
        # Before `config.json` lies beside it: with some model types there, transformers takes its
        # own tokenizer class, which does not know that words are whole tokens.
        tokenizers[role] = load_tokenizer(folder / role)
        models[role] = build_torch_model(
            case,
            hidden_size=WIDTHS[place],
            vocab_size=len(tokenizers[role]),
            num_hidden_layers=2,
            initializer_range=0.3,  # livelier: what is received must change what is thought
            **LAYERS.get(family, {}),
        )
        # They speak in words: bytes make no text that can be read again.
        first_word = 256 + len(tokenizers[role].added_tokens_decoder)
        models[role].get_output_embeddings().weight[:first_word] *= 0.2
        models[role].save_pretrained(folder / role)
    torch.set_num_threads(1)  # such small products only wait for a second one
    width = {role: model.config.hidden_size for role, model in models.items()}
    torch.manual_seed(1)
    inner = {role: _perturbed(Adapter(width[role])) for role in topology.order}
    outer = {(a, b): _perturbed(CrossModelAdapter(width[a], width[b])) for a, b in topology.edges}
    ours = load_team(
        SystemConfig(
            agents={role: str(folder / role) for role in topology.order},
            topology=pattern,
            prompts=str(folder / "prompts.yaml"),
            latent_steps=LATENT_STEPS,
        )
    )
    members = {
        role: dataclasses.replace(member, tokenizer=tokenizers[role])
        for role, member in ours.members.items()
    }
    ours = dataclasses.replace(ours, members=members)
    reference = TorchTeam(topology, models, tokenizers, prompts, inner, outer)
    return Twins(reference, ours, links_of(reference, ours))


def _perturbed(link: nn.Module) -> nn.Module:
    """Norm weights and biases that are not all alike; it can be trained."""
    with torch.no_grad():
        for parameter in link.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return link


def links_of(team: TorchTeam, ours: Team, *, gradients: bool = False) -> Links:
    """The torch links, or their gradients, in our layout."""

    def convert(config, module):
        tensors = dict(module.named_parameters())
        if gradients:  # none where nothing is reached
            tensors = {
                k: torch.zeros_like(p) if p.grad is None else p.grad for k, p in tensors.items()
            }
        # Copied: torch goes on to write into its own memory.
        state = {name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}
        return jax.block_until_ready(link_from_state(config, state, source="torch"))

    system = ours.system
    return Links(
        inner={role: convert(system.inner[role], link) for role, link in team.inner.items()},
        outer={
            edge_name(edge): convert(system.outer[edge_name(edge)], link)
            for edge, link in team.outer.items()
        },
    )
