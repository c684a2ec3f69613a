"""Trains one embedded agent from scratch and writes it as a Hugging Face directory.

An agent learns one code book of the relay world, to read a message in its prompt's slot, and to
write the next message. Part of the data trains it to read *vectors*: the embeddings of messages are
perturbed with noise and with other tokens, and messages are truncated or followed by end tokens, so
that the agent can read a slot of any width. No question is paired with its answer: a slot's message
and the question around it are drawn independently, so the agent learns nothing about whole
problems. Besides the cross-entropy, a linear map of each state regresses the next token's
embedding; the map is discarded, but makes states that a small link can translate.

    python -m experiments.embedded.pretrain --role planner --out rmas_jax/assets/embedded/planner
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict
from tqdm import tqdm

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
from rmas_jax.models.tokenizer import Tokenizer

EDGES = (("planner", "critic"), ("critic", "solver"), ("solver", "planner"))
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
}
PROMPTS, FRAGMENTS = 16_000, 24_000  # training rows
BATCH = (16, 160)  # rows of prompts and of fragments in a step
NEXT_EMBEDDING_WEIGHT = 1.0
SLOT_WIDTHS = (4, 8)  # in part of the data, messages are truncated or padded to such widths


class Corpus(struct.PyTreeNode):
    """Training rows, padded on the left to one width."""

    ids: Any  # [rows, T] int32
    valid: Any  # [rows, T] bool
    soft: Any  # [rows, T] bool; tokens of messages, whose embeddings may be perturbed
    target: Any  # [rows, T] bool; tokens to predict


CARD = """# {role}: an embedded agent of rmas_jax

A `{model_type}` causal language model with {parameters:,} parameters and {vocabulary} tokens, made
for tests and for the first run of a recursive multi-agent system. It knows the code book of one
colour of gates and nothing else; it is of no other use.

Trained from scratch on generated English-like text (no data of others), from the repository root:

    python -m experiments.embedded.pretrain --role {role} --out DIRECTORY \\
        --seed {seed} --steps {steps} --learning-rate {learning_rate}

Role texts predicted exactly on 4,096 fresh rows each: {exact_on_prompts:.2%} of whole prompts,
{exact_on_fragments:.2%} of prompts without their question. Last loss {loss}; {minutes} minutes on
2 CPU cores. Data, losses and what the noise is for: `experiments/embedded/README.md`. Apache-2.0.
"""


def pack(rows: list[list[tuple[list[int], bool, bool]]]) -> Corpus:
    """Rows of (ids, soft, target) pieces -> arrays."""
    width = max(sum(len(ids) for ids, _, _ in row) for row in rows)
    arrays = [np.zeros((len(rows), width), kind) for kind in (np.int32, bool, bool, bool)]
    for i, row in enumerate(rows):
        ids = [t for piece, _, _ in row for t in piece]
        at = slice(width - len(ids), width)
        arrays[0][i, at], arrays[1][i, at] = ids, True
        arrays[2][i, at] = [soft for piece, soft, _ in row for _ in piece]
        arrays[3][i, at] = [target for piece, _, target in row for _ in piece]
    return Corpus(*arrays)


class Writer:
    """Makes training rows of one role."""

    def __init__(self, role: str, tokenizer: Tokenizer, seed: int):
        self.role, self.tokenizer = role, tokenizer
        self.world = relay.make_world()
        self.prompt = prompts.load_prompts("relay", EDGES)[role]
        self.rng = np.random.default_rng(seed)
        assert tokenizer.eos_token_id is not None
        self.end: list[int] = [tokenizer.eos_token_id] * 2  # the end token is also its successor

    def tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def message(self, phrase: relay.Phrase, left: int) -> list[int]:
        return self.tokens(relay.message(self.world, phrase, left))

    def answer(self, phrase: relay.Phrase, left: int) -> list[tuple[list[int], bool, bool]]:
        return [(self.message(*self.world.pass_gate(self.role, phrase, left)), True, True)]

    def slot(self, phrase: relay.Phrase, left: int) -> list[int]:
        """A received message: whole, truncated, or followed by end tokens."""
        ids = self.message(phrase, left)
        draw = self.rng.random()
        if draw < 0.3:
            return ids
        shortest, longest = SLOT_WIDTHS
        width = shortest if draw < 0.6 else int(self.rng.integers(shortest, longest + 1))
        return (ids + self.end[:1] * width)[:width]

    def state(self, fewest: int = 0) -> tuple[relay.Phrase, int]:
        """A random phrase and number of gates."""
        first, second = self.rng.integers(sum(relay.CLASS_SIZES), size=2)
        return (int(first), int(second)), int(self.rng.integers(fewest, relay.MAX_GATES + 1))

    def prompts(self, count: int) -> Corpus:
        """Chat prompts with a message in the slot, or with the question alone."""
        templates = [
            prompts.split_template(self.tokenizer, self.prompt, text)
            for text in (self.prompt.first, self.prompt.later)
        ]
        marker = prompts.SENTINEL.format("question")
        rows = []
        for _ in range(count):
            problem = self.state(fewest=1)
            question = relay.question_of(self.world, *problem)
            phrase, left = self.state()
            draw = self.rng.random()
            slot: list[int]
            if len(templates[0]) == 1 and draw < 0.3:  # the first round of the first role
                texts, slot, (phrase, left) = templates[0], [], problem
            elif draw < 0.4:
                texts, slot, (phrase, left) = templates[1], [], problem
            else:
                texts, slot = templates[1], self.slot(phrase, left)
            row: list[tuple[list[int], bool, bool]] = []
            for k, text in enumerate(texts[0::2]):
                row += [(slot, True, False)] * bool(k)
                row.append((self.tokens(text.replace(marker, question)), False, False))
            rows.append([*row, *self.answer(phrase, left), (self.end, False, True)])
        return pack(rows)

    def fragments(self, count: int) -> Corpus:
        """The same without the question: the label before the slot, the slot and the rest."""
        before, _, after = prompts.split_template(self.tokenizer, self.prompt, self.prompt.later)
        label = self.tokens(before.split(prompts.SENTINEL.format("question"))[1])
        ending = self.tokens(after)
        rows = []
        for _ in range(count):
            phrase, left = self.state()
            read = [(label, False, False), (self.slot(phrase, left), True, False)]
            rows.append(
                [*read, (ending, False, False), *self.answer(phrase, left), (self.end, False, True)]
            )
        return pack(rows)


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


def vocabulary_texts(world: relay.World, prompt: prompts.RolePrompt) -> list[str]:
    """Texts with all words that an agent can read or write."""
    words = range(sum(relay.CLASS_SIZES))
    texts = []
    for phrase, gates in itertools.product(zip(words, words, strict=True), range(10)):
        texts.append("\n" + relay.message(world, phrase, gates))
        texts += [
            wording.format(phrase=world.text(phrase), gates=relay.NUMBERS[gates])
            for wording in relay.QUESTIONS
        ]
    texts += [relay.QUESTIONS[0].format(phrase="", gates=" gate ")]
    texts += [prompt.system, prompt.first, prompt.later, "\nsystem", "\nuser", "\nmodel", "\n\n"]
    return [*texts, "assistant", "user", "system", "model"]


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


def pretrain(role: str, out: Path, *, steps: int, seed: int, learning_rate: float) -> dict:
    """Trains, reports exact-match rates on the role's texts, and writes the directory."""
    prompt = prompts.load_prompts("relay", EDGES)[role]
    architecture = ARCHITECTURES[role]
    write_tokenizer(
        architecture["model_type"],
        vocabulary_texts(relay.make_world(), prompt),
        out,
        seed=seed + len(role),
    )
    tokenizer: Any = load_tokenizer(out)  # `len` is its number of tokens
    decoder = Decoder(config_from_hf({**architecture, "vocab_size": len(tokenizer)}))

    writer = Writer(role, tokenizer, seed)
    parts = writer.prompts(PROMPTS), writer.fragments(FRAGMENTS)
    tail = max(int(part.target.sum(1).max()) for part in parts)
    used = jnp.asarray(np.unique(parts[1].ids[parts[1].valid]))
    key = jax.random.key(seed, impl="rbg")  # fast on CPU
    trained: dict[str, Any] = {
        "agent": start_agent(decoder, key),
        "head": jnp.eye(decoder.config.width),
    }

    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, 50, steps)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.05)
    )

    def loss_fn(trained: Any, parts: Sequence[Corpus], key: jax.Array) -> jax.Array:
        total: Any = 0.0
        for part, size, k in zip(parts, BATCH, jax.random.split(key), strict=True):
            row_key, blur_key = jax.random.split(k)
            rows = jax.random.randint(row_key, (size,), 0, part.ids.shape[0])
            batch = jax.tree.map(lambda array, rows=rows: array[rows], part)
            soften = functools.partial(blur, blur_key, used=used)
            losses, _, hidden, embeds = token_losses(trained["agent"], batch, tail, soften)
            mask = batch.target[:, -tail:]
            total += losses.sum() / mask.sum()
            total += NEXT_EMBEDDING_WEIGHT * next_embedding_loss(
                trained["head"], hidden, embeds, mask
            )
        return total

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(
        trained: Any, state: Any, parts: Sequence[Corpus], key: jax.Array
    ) -> tuple[Any, Any, jax.Array]:
        loss, grads = jax.value_and_grad(loss_fn)(trained, parts, key)
        updates, state = optimizer.update(grads, state, trained)
        return optax.apply_updates(trained, updates), state, loss

    evaluate = jax.jit(lambda agent, corpus: token_losses(agent, corpus, tail)[1])

    def exact(agent: Agent, corpus: Corpus, size: int = 512) -> float:
        starts = range(0, len(corpus.ids), size)
        cut = (jax.tree.map(lambda a, i=i: a[i : i + size], corpus) for i in starts)
        return float(np.concatenate([evaluate(agent, c) for c in cut]).mean())

    fresh = Writer(role, tokenizer, seed + 1)
    held = fresh.prompts(4096), fresh.fragments(4096)
    parts, state, started = jax.device_put(parts), optimizer.init(trained), time.time()
    bar = tqdm(range(steps), desc=role)
    for i in bar:
        trained, state, loss = step(trained, state, parts, jax.random.fold_in(key, i))
        if i % 50 == 0:
            bar.set_postfix(loss=f"{loss:.3f}")
    report = {
        "role": role,
        "seed": seed,
        "steps": steps,
        "learning_rate": learning_rate,
        "parameters": int(sum(p.size for p in jax.tree.leaves(trained["agent"]))),
        "vocabulary": len(tokenizer),
        "loss": round(float(loss), 4),
        "exact_on_prompts": exact(trained["agent"], held[0]),
        "exact_on_fragments": exact(trained["agent"], held[1]),
        "minutes": round((time.time() - started) / 60, 1),
    }
    save_pretrained(out, decoder, trained["agent"].params)
    (out / "README.md").write_text(CARD.format(**report, model_type=architecture["model_type"]))
    return report


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--role", choices=relay.ROLES, required=True)
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    print(json.dumps(pretrain(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
