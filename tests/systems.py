"""Tiny systems of random heterogeneous agents, and what they do by definition.

The references here keep no cache and know no padding: every row is a list of tokens and vectors
that is read anew, whole, for every single step.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

from rmas_jax.agents.agent import Agent
from rmas_jax.agents.member import Member
from rmas_jax.links import INNER, OUTER, LinkConfig, Links, apply_link, link_shapes
from rmas_jax.models import Decoder, DecoderConfig
from rmas_jax.prompts import (
    RolePrompt,
    StagePrompt,
    StageTokens,
    encode_stage,
    split_template,
    stage_tokens,
)
from rmas_jax.team import Team
from rmas_jax.topology import System, Topology, edge_name, load_topology

CAPACITY = 40  # the references read every row in an array of this length
LATENT_STEPS = 3
BASE = {"vocab_size": 37, "ffn_width": 24, "num_layers": 2}
CONFIGS = {
    "planner": DecoderConfig(
        model_type="qwen3",
        width=16,
        num_heads=4,
        num_kv_heads=2,
        head_dim=6,
        rope_theta=100.0,
        qk_norm=True,
        tie_embeddings=True,
        **BASE,
    ),
    "critic": DecoderConfig(
        model_type="llama",
        width=12,
        num_heads=3,
        num_kv_heads=3,
        head_dim=4,
        rope_theta=50.0,
        norm_eps=1e-5,
        **BASE,
    ),
    "solver": DecoderConfig(
        model_type="gemma3_text",
        width=20,
        num_heads=4,
        num_kv_heads=1,
        head_dim=8,
        rope_theta=200.0,
        local_rope_theta=10.0,
        activation="gelu_tanh",
        qk_norm=True,
        unit_offset_norm=True,
        sandwich_norms=True,
        embed_scale=20**0.5,
        query_scale=11**-0.5,  # its square is what config.json says
        window=4,
        sliding_layers=(True, False),
        tie_embeddings=True,
        **BASE,
    ),
}
LINEAR = DecoderConfig(
    model_type="qwen3_5_text",
    vocab_size=20,
    width=12,
    ffn_width=16,
    num_layers=4,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    rope_theta=50.0,
    rotary_fraction=0.5,
    qk_norm=True,
    gated_attention=True,
    linear_layers=(True, False) * 2,
    linear_key_heads=1,
    linear_value_heads=2,
    linear_key_dim=4,
    linear_value_dim=3,
    conv_width=4,
)
ROLE_PROMPTS = {
    "planner": RolePrompt("you plan", "{question} plan it", "{question} seen : {solver} go on"),
    "critic": RolePrompt("", "about {question} plan : {planner} refine", "{planner} of {question}"),
    "solver": RolePrompt("you solve", "{question} refined {critic}", "{question} refined {critic}"),
}
QUESTIONS = ("w", "where does the parcel end ?", "from a to b")  # ragged


class WordTokenizer:
    """One token per word, with a chat template; stands in for a transformers tokenizer."""

    name_or_path = "words"
    added_tokens_decoder: ClassVar[dict] = {}

    chat_template = (
        "<bos> {% for turn in messages %}<{{ turn.role }}> {{ turn.content }} </> {% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )

    def __call__(self, text, add_special_tokens=True, verbose=True):
        assert not add_special_tokens
        if isinstance(text, str):
            return {"input_ids": self.ids(text)}
        return {"input_ids": [self.ids(row) for row in text]}

    def ids(self, text: str) -> list[int]:
        return [zlib.crc32(word.encode()) % BASE["vocab_size"] for word in text.split()]


@dataclasses.dataclass(frozen=True, eq=False)
class TinySystem:
    """A system filled in, with prompts and the naive way to run it."""

    system: System
    agents: dict[str, Agent]  # by role
    links: Links
    tokenizer: WordTokenizer
    role_prompts: Mapping[str, RolePrompt]

    def prompts(self, questions: Sequence[str] = QUESTIONS) -> dict[str, StagePrompt]:
        steps = self.system.latent_steps
        return {
            role: encode_stage(self.tokenizer, prompt, questions, slot_width=steps)
            for role, prompt in self.role_prompts.items()
        }

    def prompt_tokens(self, questions: Sequence[str] = QUESTIONS) -> dict[str, StageTokens]:
        """`prompts` without padding."""
        steps = self.system.latent_steps
        return {
            role: stage_tokens(self.tokenizer, prompt, questions, slot_width=steps)
            for role, prompt in self.role_prompts.items()
        }

    def team(self, agents: Mapping[str, Agent] | None = None, mesh: Any = None) -> Team:
        """The system with its agents, or others, on a mesh; one tokenizer serves all."""
        agents = self.agents if agents is None else agents
        members = {
            role: Member(role, agents[role], self.tokenizer, prompt, (0,))
            for role, prompt in self.role_prompts.items()
        }
        return Team(self.system, members, mesh)

    def embed(self, role: str, ids: Sequence[int]) -> np.ndarray:
        """Input embeddings [t, D] of token ids."""
        table = np.asarray(self.agents[role].params["embedding"])
        scale = self.agents[role].config.embed_scale
        return table[np.asarray(ids, int)] * table.dtype.type(scale)

    def slots(self, role: str, *, later: bool) -> list[str]:
        """Senders whose vectors stand in a role's prompt, from left to right."""
        return self._parts(role, later=later)[1::2]

    def body(self, role: str, question: str, *, later: bool, inbox: Any) -> np.ndarray:
        """A role's whole prompt as embeddings [t, D]; `inbox` holds vectors [M, D] by sender."""
        rows = []
        for i, part in enumerate(self._parts(role, later=later)):
            ids = self.tokenizer.ids(part.replace("\ue000question\ue001", question))
            rows.append(inbox[part] if i % 2 else self.embed(role, ids))
        return np.concatenate(rows)

    def _parts(self, role: str, *, later: bool) -> list[str]:
        prompt = self.role_prompts[role]
        return split_template(self.tokenizer, prompt, prompt.later if later else prompt.first)


def random_agent(config: DecoderConfig, seed: int) -> Agent:
    """A decoder with `random_params`."""
    return Agent(Decoder(config), random_params(config, seed))


def random_params(config: DecoderConfig, seed: int) -> dict:
    """Parameters with a lot of effect: kernels of gain above one, norms that are not all alike."""
    shapes = jax.eval_shape(
        Decoder(config).init,
        jax.random.key(0),
        jnp.zeros((1, 2, config.width)),
        jnp.ones((1, 2), bool),
    )["params"]
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        name = jax.tree_util.keystr(path)
        noise = _drawn(rng, [key.key for key in path], leaf.shape).astype(np.float32)
        if "norm" in name:
            return jnp.asarray(0.3 * noise + (0 if config.unit_offset_norm else 1), jnp.float32)
        # Embeddings are small beside what layers add: tied ones would repeat their token.
        scale = 0.3 / config.embed_scale if "embedding" in name else 0.4
        return jnp.asarray(scale * noise, jnp.float32)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def _drawn(rng, path, shape):
    """Normal numbers; a kernel [*out, *in] is drawn with its inputs first."""
    name, inputs = path[-1], 0
    if name.endswith("_kernel") and name not in ("conv_kernel", "exit_kernel"):
        inputs = 2 if name in ("o_kernel", "out_kernel") else 1
    start = int(path[0] == "layers")
    first, last = range(start, start + inputs), range(-inputs, 0)
    turned = np.moveaxis(np.empty(shape), last, first).shape
    return np.moveaxis(rng.normal(size=turned), first, last)


def random_link(config: LinkConfig, seed: int) -> dict:
    """Link parameters with a lot of effect."""
    rng = np.random.default_rng(seed)
    params = {}
    for name, shapes in link_shapes(config).items():
        values = {part: rng.normal(size=shape) for part, shape in shapes.items()}
        if "scale" in values:
            params[name] = {"scale": 1 + 0.3 * values["scale"], "bias": 0.3 * values["bias"]}
        else:
            fan_in = shapes["kernel"][0]
            params[name] = {"kernel": values["kernel"] * fan_in**-0.5, "bias": values["bias"]}
    return jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params)


def build_tiny_system(latent_steps: int = LATENT_STEPS) -> TinySystem:
    """Random agents and links in the sequential pattern; the same every time."""
    return build_team_of(load_topology("sequential"), CONFIGS, ROLE_PROMPTS, latent_steps)


def build_pattern(name: str) -> TinySystem:
    """A shipped topology, with decoders of several families and short prompts."""
    topology = load_topology(name)
    families = itertools.cycle(CONFIGS.values())
    prompts = short_prompts(topology)
    return build_team_of(topology, dict(zip(topology.order, families, strict=False)), prompts)


def short_prompts(topology: Topology) -> dict[str, RolePrompt]:
    """Prompts in which what is received is most of what there is to read."""
    prompts = {}
    for role in topology.order:
        senders = topology.senders(role)
        first = [s for s in senders if (s, role) not in topology.feedback_edges]
        texts = [" ".join(f"{s} says {{{s}}} ;" for s in names) for names in (first, senders)]
        prompts[role] = RolePrompt(f"you {role}", *(f"{{question}} {text} go" for text in texts))
    return prompts


def build_team_of(
    topology: Topology,
    configs: Mapping[str, DecoderConfig],
    role_prompts: Mapping[str, RolePrompt],
    latent_steps: int = LATENT_STEPS,
) -> TinySystem:
    """Random agents and links; the second role's links have no norms."""
    width = {role: config.width for role, config in configs.items()}
    plain = topology.order[1]
    inner = {
        role: LinkConfig(INNER, "mlp_res" if role == plain else "ln_res", d, d)
        for role, d in width.items()
    }
    outer = {
        edge_name((sender, receiver)): LinkConfig(
            OUTER, "mlp_res" if sender == plain else "ln_res", width[sender], width[receiver]
        )
        for sender, receiver in topology.edges
    }
    links = Links(
        inner={role: random_link(config, i) for i, (role, config) in enumerate(inner.items())},
        outer={
            name: random_link(config, len(inner) + i)
            for i, (name, config) in enumerate(outer.items())
        },
    )
    return TinySystem(
        system=System(
            topology=topology,
            inner=FrozenDict(inner),
            outer=FrozenDict(outer),
            latent_steps=latent_steps,
        ),
        agents={role: random_agent(config, i) for i, (role, config) in enumerate(configs.items())},
        links=links,
        tokenizer=WordTokenizer(),
        role_prompts=role_prompts,
    )


_apply_link = jax.jit(apply_link, static_argnums=0)


@jax.jit
def _read(agent: Agent, embeds: jax.Array, valid: jax.Array) -> jax.Array:
    return agent.read(embeds, valid)[0]


def read_whole(agent: Agent, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Hidden states [t, D] of ragged rows of embeddings [t, D], without a cache."""
    embeds = np.zeros((len(rows), CAPACITY, rows[0].shape[-1]), rows[0].dtype)
    valid = np.zeros((len(rows), CAPACITY), bool)
    for i, row in enumerate(rows):
        embeds[i, : len(row)], valid[i, : len(row)] = row, True
    hidden = np.asarray(_read(agent, embeds, valid))
    return [states[: len(row)] for states, row in zip(hidden, rows, strict=True)]


def naive_thoughts(
    agent: Agent, feed: Callable, rows: Sequence[np.ndarray], steps: int
) -> np.ndarray:
    """Latent thoughts [B, M, D]: the whole row is read again for each."""
    thoughts = []
    for _ in range(steps):
        hidden = np.stack([states[-1] for states in read_whole(agent, rows)])
        thoughts.append(hidden)
        fed = np.asarray(feed(hidden[:, None]))
        rows = [np.concatenate([row, new]) for row, new in zip(rows, fed, strict=True)]
    return np.stack(thoughts, axis=1)


def naive_text(agent: Agent, rows: Sequence[np.ndarray], max_tokens: int) -> np.ndarray:
    """Greedy tokens [B, W], never ending: the whole row is read again for each."""
    params, config = agent.params, agent.config
    kernel = params["embedding" if config.tie_embeddings else "unembed_kernel"].T
    kernel, table = np.asarray(kernel), np.asarray(params["embedding"])
    tokens = []
    for _ in range(max_tokens):
        hidden = np.stack([states[-1] for states in read_whole(agent, rows)])
        tokens.append(np.argmax(hidden @ kernel, axis=-1))
        fed = table[tokens[-1]] * np.float32(config.embed_scale)
        rows = [np.concatenate([row, new[None]]) for row, new in zip(rows, fed, strict=True)]
    return np.stack(tokens, axis=1)


def cut_at_ends(tokens: np.ndarray, ends: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Zeros after each row's first end token, and how many tokens each row has."""
    is_end = np.isin(tokens, ends)
    before = np.cumsum(is_end, axis=1) - is_end == 0
    return np.where(before, tokens, 0), before.sum(axis=1)


def run_naively(tiny, *, rounds, texts=None, teacher_forced=False, deliver=None):
    """What the rounds are by definition.

    `deliver(edge, round, vectors)` gives the vectors [B, m, D] that a receiver reads instead.
    Returns the answerer's received vectors [R, B, S, D]; with texts, the answerer's losses [R, B];
    and the answerer's prompts of the last round, as embeddings.
    """
    system, agents, links = tiny.system, tiny.agents, tiny.links
    topology, steps = system.topology, system.latent_steps
    inbox, received, losses = {}, [], []
    for r in range(rounds):
        for role in topology.order:
            agent = agents[role]
            senders = tiny.slots(role, later=r > 0)
            mail = {s: inbox[s, role] for s in senders}
            if deliver is not None:
                mail = {s: deliver((s, role), r, vectors) for s, vectors in mail.items()}
            bodies = [
                tiny.body(role, question, later=r > 0, inbox={s: mail[s][i] for s in senders})
                for i, question in enumerate(QUESTIONS)
            ]
            feed = functools.partial(_apply_link, system.inner[role], links.inner[role])
            if texts is not None:
                wholes = [
                    np.concatenate([body, tiny.embed(role, text[r])])
                    for body, text in zip(bodies, texts[role], strict=True)
                ]
                read = read_whole(agent, wholes)
                # The state at the last prompt token, then those at the tokens of the text.
                states = [s[len(body) - 1 :] for s, body in zip(read, bodies, strict=True)]
            if teacher_forced:
                thoughts = np.stack([s[:steps] for s in states])
            else:
                thoughts = naive_thoughts(agent, feed, bodies, steps)
            for edge in topology.edges:
                if edge[0] == role:
                    sent = thoughts if system.sent_vectors == "outer_of_hidden" else feed(thoughts)
                    name = edge_name(edge)
                    sent = _apply_link(system.outer[name], links.outer[name], sent)
                    inbox[edge] = np.asarray(sent)
            if role == topology.answerer:
                received.append(np.concatenate([inbox[s, role] for s in senders], axis=1))
                if texts is not None:
                    kernel = np.asarray(
                        agent.params["embedding"]
                    ).T  # the solver's embeddings are tied
                    logits = [s[:-1] @ kernel for s in states]
                    losses.append(
                        [
                            np.mean(
                                [_cross_entropy(*pair) for pair in zip(z, text[r], strict=True)]
                            )
                            for z, text in zip(logits, texts[role], strict=True)
                        ]
                    )
    return np.stack(received), np.array(losses), bodies


def _cross_entropy(logits: np.ndarray, token: int) -> float:
    return np.log(np.sum(np.exp(logits - logits.max()))) + logits.max() - logits[token]
