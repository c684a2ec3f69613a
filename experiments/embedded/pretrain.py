"""Trains one embedded agent from scratch and writes it as a Hugging Face directory.

An agent of the team learns one code book of the relay world, to read a message in its prompt's
slot, and to write the next message. Part of the data trains it to read *vectors*: the embeddings of
messages are perturbed with noise and with other tokens, and messages are truncated or followed by
end tokens, so that the agent can read a slot of any width. No question is paired with its answer: a
slot's message and the question around it are drawn independently, so the agent learns nothing about
whole problems. Besides the cross-entropy, a linear map of each state regresses the next token's
embedding; the map is discarded, but makes states that a small link can translate.

The looper is the opposite, for the LoopLM baseline: a looped decoder in the solver's place that
learns whole problems of the train split, with their answers, and to ignore its slot. Steps take
turns in the number of loops, so that it answers after any.

    python -m experiments.embedded.pretrain --role planner --out rmas_jax/assets/embedded/planner
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from experiments.embedded.corpus import (
    EDGES,
    FRAGMENTS,
    PROMPTS,
    SoloWriter,
    Writer,
    vocabulary_texts,
)
from experiments.embedded.make_tokenizers import write_tokenizer
from experiments.embedded.training import exact_share, train
from rmas_jax import prompts
from rmas_jax.agents.agent import Agent
from rmas_jax.data import relay
from rmas_jax.models import (
    Decoder,
    config_from_hf,
    load_tokenizer,
    save_pretrained,
)

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "planner": {
        "model_type": "qwen3",
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 24,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    },
    "critic": {
        "model_type": "llama",
        "hidden_size": 80,
        "intermediate_size": 320,
        "num_hidden_layers": 2,
        "num_attention_heads": 5,
        "num_key_value_heads": 5,
        "head_dim": 16,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    },
    "solver": {
        "model_type": "gemma3_text",
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": 32,
        "layer_types": ["sliding_attention", "full_attention"],
        "hidden_activation": "gelu_pytorch_tanh",
    },
    "looper": {
        "model_type": "ouro",
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 24,
        "rope_theta": 10000.0,
        "total_ut_steps": 3,
        "tie_word_embeddings": True,
    },
}
TOKENIZERS = {"ouro": "qwen3"}  # its own checkpoints have a ChatML template too


@dataclasses.dataclass(frozen=True)
class Task:
    """What a role learns from."""

    seat: str  # the role whose prompts it reads
    writer: type[Writer]
    rows: Mapping[str, int]  # of training, by kind
    batch: tuple[int, ...]  # rows of each kind in a step
    knows: str  # for the card


ONE_GATE = "It knows the code book of one\ncolour of gates and nothing else; it is of no other use."
WHOLE_PROBLEMS = """It is the LoopLM
baseline of the embedded task: it has learnt whole problems, the 4,000 of the train split with their
answers, and to ignore the message in its prompt, in so few steps that it solves few; steps took
turns in the number of loops. Its exit gate is not trained. torch transformers opens this family
with remote code alone, which is not included."""
TASKS = {
    role: Task(role, Writer, {PROMPTS: 16_000, FRAGMENTS: 24_000}, (16, 160), ONE_GATE)
    for role in relay.ROLES
} | {
    "looper": Task(
        "solver",
        SoloWriter,
        {PROMPTS: 32_000},
        (32,),
        WHOLE_PROBLEMS,
    )
}
KINDS = {PROMPTS: "whole prompts", FRAGMENTS: "prompts without their question"}

CARD = """# {role}: an embedded agent of rmas_jax

A `{model_type}` causal language model with {parameters:,} parameters and {vocabulary} tokens, made
for tests and for the first run of a recursive multi-agent system. {knows}

Trained from scratch on generated English-like text (no data of others), from the repository root:

    python -m experiments.embedded.pretrain --role {role} --out DIRECTORY \\
        --seed {seed} --steps {steps} --learning-rate {learning_rate}

Texts predicted exactly on 4,096 fresh rows each: {exact}.
Last loss {loss}; {minutes} minutes on 2 CPU cores. Data, losses and what the noise is for:
`experiments/embedded/README.md`. Apache-2.0.
"""


def start_agent(decoder: Decoder, key: jax.Array) -> Agent:
    """An agent with new weights: embeddings and kernels have variance 1 / D.

    Small models learn faster from it than from the deviation of 0.02 of large ones.
    """
    width = decoder.config.width
    params = decoder.init(key, jnp.zeros((1, 2, width)), jnp.ones((1, 2), bool))["params"]
    scale = 50 * width**-0.5
    flat = flatten_dict(params, sep="/")
    flat = {name: x if "norm" in name else x * scale for name, x in flat.items()}
    # Smaller embeddings in a family that scales them when it reads them.
    flat["embedding"] = flat["embedding"] * decoder.config.embed_scale**-0.5
    return Agent(decoder, unflatten_dict(flat, sep="/"))


def by_loops(decoder: Decoder) -> list[Decoder]:
    """The decoder with each number of loops up to its own, if it is looped."""
    config = decoder.config
    if config.loops is None:
        return [decoder]
    return [
        decoder.clone(config=dataclasses.replace(config, loops=loops))
        for loops in range(1, config.loops + 1)
    ]


def pretrain(role: str, out: Path, *, steps: int, seed: int, learning_rate: float) -> dict:
    """Trains, reports exact-match rates on the role's texts, and writes the directory."""
    task, architecture = TASKS[role], ARCHITECTURES[role]
    prompt, family = prompts.load_prompts("relay", EDGES)[task.seat], architecture["model_type"]
    write_tokenizer(
        TOKENIZERS.get(family, family),
        vocabulary_texts(relay.make_world(), prompt),
        out,
        seed=seed + len(role),
    )
    tokenizer: Any = load_tokenizer(out)  # `len` is its number of tokens
    decoder = Decoder(config_from_hf({**architecture, "vocab_size": len(tokenizer)}))

    writer = task.writer(task.seat, tokenizer, seed)
    parts = writer.corpora(task.rows)
    key = jax.random.key(seed, impl="rbg")  # fast on CPU
    decoders, start, started = by_loops(decoder), start_agent(decoder, key), time.time()
    params, loss = train(
        decoders,
        start.params,
        parts,
        batch=task.batch,
        steps=steps,
        key=key,
        learning_rate=learning_rate,
        name=role,
    )
    minutes = round((time.time() - started) / 60, 1)
    held = writer.held_out().corpora(dict.fromkeys(task.rows, 4096))
    found = [
        f"{exact_share(Agent(of_loops, params), corpus):.2%} of {KINDS[kind]}"
        + (f" after {of_loops.config.num_loops} of its loops" if len(decoders) > 1 else "")
        for kind, corpus in zip(task.rows, held, strict=True)
        for of_loops in decoders
    ]
    report = {
        "role": role,
        "seed": seed,
        "steps": steps,
        "learning_rate": learning_rate,
        "parameters": int(sum(p.size for p in jax.tree.leaves(params))),
        "vocabulary": len(tokenizer),
        "loss": round(loss, 4),
        "exact": ",\n".join(found),
        "minutes": minutes,
    }
    save_pretrained(out, decoder, params)
    (out / "README.md").write_text(CARD.format(**report, model_type=family, knows=task.knows))
    return report


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--role", choices=tuple(TASKS), required=True)
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    print(json.dumps(pretrain(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
