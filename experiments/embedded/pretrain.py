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
import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from tqdm import tqdm

from experiments.embedded.corpus import (
    EDGES,
    FRAGMENTS,
    PROMPTS,
    Corpus,
    SoloWriter,
    Writer,
    vocabulary_texts,
)
from experiments.embedded.make_tokenizers import write_tokenizer
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
NEXT_EMBEDDING_WEIGHT = 1.0

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


def blur(
    key: jax.Array, embeds: jax.Array, soft: jax.Array, table: jax.Array, *, used: jax.Array
) -> jax.Array:
    """Perturbs message embeddings in half of the rows.

    There, every soft position is scaled by 0.7 to 1.4, mixed with another of the `used` tokens (up
    to 30 %) and gets Gaussian noise of up to 0.7 of its rms.
    """
    table = table[used]
    keys = jax.random.split(key, 5)
    rows = embeds.shape[0]
    active = (jax.random.uniform(keys[0], (rows, 1, 1)) < 0.5) & soft[..., None]
    rms = jnp.sqrt(jnp.mean(embeds**2, -1, keepdims=True))
    noise = jax.random.normal(keys[1], embeds.shape)
    level = jax.random.uniform(keys[2], (rows, 1, 1), maxval=0.7)
    other = table[jax.random.randint(keys[3], soft.shape, 0, table.shape[0])]
    share, scale = jax.random.uniform(keys[4], (2, *soft.shape, 1))
    soft_embeds = (1 - 0.3 * share) * embeds + 0.3 * share * other + level * rms * noise
    return jnp.where(active, (0.7 + 0.7 * scale) * soft_embeds, embeds)


def token_losses(
    agent: Agent, batch: Corpus, tail: int, soften: Callable | None = None
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Reads a batch.

    All targets are in the last `tail` positions, and only these have logits.

    Returns:
      Cross-entropy [B, tail], zero except at targets; whether all targets of a row are correct [B];
      the states [B, tail, D] before these tokens, and the tokens' embeddings [B, tail, D].
    """
    # One-hot products: on CPU the gradient of a gather, a scatter, costs more than both products.
    table = agent.embedding_table()
    clean = jax.nn.one_hot(batch.ids, len(table)) @ table
    embeds = clean if soften is None else soften(clean, batch.soft, jax.lax.stop_gradient(table))
    hidden = agent.read(embeds, batch.valid)[0][:, -tail - 1 : -1]
    logits = agent.unembed(hidden)
    labels, mask = batch.ids[:, -tail:], batch.target[:, -tail:]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels) * mask
    right = jnp.all((jnp.argmax(logits, -1) == labels) | ~mask, axis=1)
    return losses, right, hidden, clean[:, -tail:]


def next_embedding_loss(
    head: jax.Array, hidden: jax.Array, embeds: jax.Array, mask: jax.Array
) -> jax.Array:
    """Mean 1 - cos between a linear map of each state and the next token's (fixed) embedding."""
    cosine = optax.cosine_similarity(hidden @ head, jax.lax.stop_gradient(embeds), epsilon=1e-8)
    return ((1 - cosine) * mask).sum() / mask.sum()


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
    tail = max(int(part.target.sum(1).max()) for part in parts)
    used = jnp.asarray(np.unique(parts[-1].ids[parts[-1].valid]))
    key = jax.random.key(seed, impl="rbg")  # fast on CPU
    trained: dict[str, Any] = {
        "params": start_agent(decoder, key).params,
        "head": jnp.eye(decoder.config.width),
    }

    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, 50, steps)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.05)
    )

    def loss_fn(
        trained: Any, decoder: Decoder, parts: Sequence[Corpus], key: jax.Array
    ) -> jax.Array:
        agent, total = Agent(decoder, trained["params"]), jnp.float32(0)
        for part, size, k in zip(parts, task.batch, jax.random.split(key, len(parts)), strict=True):
            row_key, blur_key = jax.random.split(k)
            rows = jax.random.randint(row_key, (size,), 0, part.ids.shape[0])
            batch = jax.tree.map(lambda array, rows=rows: array[rows], part)
            soften = functools.partial(blur, blur_key, used=used)
            losses, _, hidden, embeds = token_losses(agent, batch, tail, soften)
            mask = batch.target[:, -tail:]
            total += losses.sum() / mask.sum()
            total += NEXT_EMBEDDING_WEIGHT * next_embedding_loss(
                trained["head"], hidden, embeds, mask
            )
        return total

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
    def step(
        decoder: Decoder, trained: Any, state: Any, parts: Sequence[Corpus], key: jax.Array
    ) -> tuple[Any, Any, jax.Array]:
        loss, grads = jax.value_and_grad(loss_fn)(trained, decoder, parts, key)
        updates, state = optimizer.update(grads, state, trained)
        return optax.apply_updates(trained, updates), state, loss

    evaluate = jax.jit(lambda agent, corpus: token_losses(agent, corpus, tail)[1])

    def exact(agent: Agent, corpus: Corpus, size: int = 512) -> float:
        starts = range(0, len(corpus.ids), size)
        cut = (jax.tree.map(lambda a, i=i: a[i : i + size], corpus) for i in starts)
        return float(np.concatenate([evaluate(agent, c) for c in cut]).mean())

    decoders = by_loops(decoder)
    held = writer.held_out().corpora(dict.fromkeys(task.rows, 4096))
    parts, state, started = jax.device_put(parts), optimizer.init(trained), time.time()
    bar = tqdm(range(steps), desc=role)
    for i in bar:
        now = decoders[i % len(decoders)]
        trained, state, loss = step(now, trained, state, parts, jax.random.fold_in(key, i))
        if i % 50 == 0:
            bar.set_postfix(loss=f"{loss:.3f}")
    minutes = round((time.time() - started) / 60, 1)
    found = [
        f"{exact(Agent(of_loops, trained['params']), corpus):.2%} of {KINDS[kind]}"
        + (f" after {of_loops.config.num_loops} of its loops" if len(decoders) > 1 else "")
        for kind, corpus in zip(task.rows, held, strict=True)
        for of_loops in decoders
    ]
    report = {
        "role": role,
        "seed": seed,
        "steps": steps,
        "learning_rate": learning_rate,
        "parameters": int(sum(p.size for p in jax.tree.leaves(trained["params"]))),
        "vocabulary": len(tokenizer),
        "loss": round(float(loss), 4),
        "exact": ",\n".join(found),
        "minutes": minutes,
    }
    save_pretrained(out, decoder, trained["params"])
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
