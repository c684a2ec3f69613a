"""Trains one embedded agent from scratch and writes it as a Hugging Face directory.

An agent learns one code book of the relay world, to read a message in its prompt's slot, and to
write the next message. Part of the data trains it to read *vectors*: the embeddings of messages
are blurred with noise and with other tokens, and messages are cut short or followed by end tokens,
so that a slot of any width looks familiar. No question is paired with its answer: a slot's
message and the question around it are drawn independently, so nothing about whole problems can be
learned here.

    python experiments/embedded/pretrain.py --role planner --out rmas_jax/assets/embedded/planner
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from tqdm import tqdm

from experiments.embedded.make_tokenizers import write_tokenizer
from rmas_jax import prompts
from rmas_jax.data import relay
from rmas_jax.models import (
    Decoder,
    config_from_hf,
    load_pretrained,
    load_tokenizer,
    save_pretrained,
)

EDGES = (("planner", "critic"), ("critic", "solver"), ("solver", "planner"))
ARCHITECTURES = {
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
BATCH = (16, 160)  # rows of prompts and of fragments in a step
SLOT_WIDTHS = (4, 8)  # tokens a message is cut or extended to, in part of the data


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Training rows, padded on the left to one width."""

    ids: np.ndarray  # [rows, T] int32
    valid: np.ndarray  # [rows, T] bool
    soft: np.ndarray  # [rows, T] bool; tokens of messages, whose embeddings may be blurred
    target: np.ndarray  # [rows, T] bool; tokens to be predicted


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

    def __init__(self, role: str, tokenizer, seed: int):
        self.role, self.tokenizer = role, tokenizer
        self.world = relay.make_world()
        self.prompt = prompts.load_prompts("relay", EDGES)[role]
        self.rng = np.random.default_rng(seed)
        self.end = [tokenizer.eos_token_id] * 2  # a message ends, and stays ended

    def tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def message(self, phrase: relay.Phrase, left: int) -> list[int]:
        return self.tokens(relay.message(self.world, phrase, left))

    def answer(self, phrase: relay.Phrase, left: int) -> list[tuple[list[int], bool, bool]]:
        return [(self.message(*self.world.pass_gate(self.role, phrase, left)), True, True)]

    def slot(self, phrase: relay.Phrase, left: int) -> list[int]:
        """A received message: whole, cut short, or followed by end tokens."""
        ids = self.message(phrase, left)
        draw = self.rng.random()
        if draw < 0.3:
            return ids
        shortest, longest = SLOT_WIDTHS
        width = shortest if draw < 0.6 else int(self.rng.integers(shortest, longest + 1))
        return (ids + self.end[:1] * width)[:width]

    def state(self, fewest: int = 0) -> tuple[relay.Phrase, int]:
        """A phrase and a number of gates, both drawn at random."""
        first, second = self.rng.integers(sum(relay.CLASS_SIZES), size=2)
        return (int(first), int(second)), int(self.rng.integers(fewest, relay.MAX_GATES + 1))

    def prompts(self, count: int) -> Corpus:
        """Chat prompts: a message in the slot, or (as nothing was received) the question alone."""
        forms = [
            prompts.split_template(self.tokenizer, self.prompt, text)
            for text in (self.prompt.first, self.prompt.later)
        ]
        marker = prompts.SENTINEL.format("question")
        rows = []
        for _ in range(count):
            asked = self.state(fewest=1)
            question = relay.ask(self.world, *asked)
            phrase, left = self.state()
            draw = self.rng.random()
            if len(forms[0]) == 1 and draw < 0.3:  # the first round of a role that starts
                texts, slot, (phrase, left) = forms[0], [], asked
            elif draw < 0.4:
                texts, slot, (phrase, left) = forms[1], [], asked
            else:
                texts, slot = forms[1], self.slot(phrase, left)
            row = []
            for k, text in enumerate(texts[0::2]):
                row += [(slot, True, False)] * bool(k)
                row.append((self.tokens(text.replace(marker, question)), False, False))
            rows.append([*row, *self.answer(phrase, left), (self.end, False, True)])
        return pack(rows)

    def fragments(self, count: int) -> Corpus:
        """The same without the question: the label before the slot, the slot and what follows."""
        before, _, after = prompts.split_template(self.tokenizer, self.prompt, self.prompt.later)
        label = self.tokens(before.split(prompts.SENTINEL.format("question"))[1])
        after = self.tokens(after)
        rows = []
        for _ in range(count):
            phrase, left = self.state()
            read = [(label, False, False), (self.slot(phrase, left), True, False)]
            rows.append(
                [*read, (after, False, False), *self.answer(phrase, left), (self.end, False, True)]
            )
        return pack(rows)


def blur(key: jax.Array, embeds: jax.Array, soft: jax.Array, table: jax.Array) -> jax.Array:
    """Turns message embeddings into vectors that are only near them.

    Half of the rows stay as they are. In the others every soft position is scaled by 0.7 to 1.4,
    mixed with another token (up to 30 %) and gets Gaussian noise of up to 0.7 of its own rms.
    """
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


def token_losses(model, params, batch: Corpus, tail: int, key=None) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy [B, tail] at target tokens and whether each row is right as a whole [B].

    All targets stand in the last `tail` positions, so logits are made for those alone.
    """
    # One-hot products: on CPU the gradient of a gather, a scatter, costs more than both of them.
    vocabulary = jnp.arange(model.config.vocab_size)
    table = model.apply({"params": params}, vocabulary[None], method="embed")[0]
    embeds = jax.nn.one_hot(batch.ids, len(vocabulary)) @ table
    if key is not None:
        blurred, used = key
        embeds = blur(blurred, embeds, batch.soft, jax.lax.stop_gradient(table)[used])
    hidden = model.apply({"params": params}, embeds, batch.valid)
    logits = model.apply({"params": params}, hidden[:, -tail - 1 : -1], method="unembed")
    labels, mask = batch.ids[:, -tail:], batch.target[:, -tail:]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels) * mask
    right = jnp.all((jnp.argmax(logits, -1) == labels) | ~mask, axis=1)
    return losses, right


def pretrain(
    role: str,
    out: Path,
    *,
    steps: int,
    seed: int,
    learning_rate: float,
    start: Path | None = None,
) -> dict:
    """Trains, reports exact-match rates on the role's texts, and writes the directory."""
    world = relay.make_world()
    prompt = prompts.load_prompts("relay", EDGES)[role]
    words = range(sum(relay.CLASS_SIZES))
    texts = []  # everything an agent can meet, for the vocabulary
    for phrase, gates in itertools.product(zip(words, words, strict=True), range(10)):
        texts += ["\n" + relay.message(world, phrase, gates)]
        texts += [
            wording.format(phrase=world.text(phrase), gates=relay.NUMBERS[gates])
            for wording in relay.QUESTIONS
        ]
    texts += [relay.QUESTIONS[0].format(phrase="", gates=" gate ")]
    texts += [prompt.system, prompt.first, prompt.later, "\nsystem", "\nuser", "\nmodel", "\n\n"]
    texts += ["assistant", "user", "system", "model"]
    if start is None:
        write_tokenizer(ARCHITECTURES[role]["model_type"], texts, out, seed=seed + len(role))
    else:  # an agent keeps its vocabulary
        shutil.copytree(start, out, dirs_exist_ok=True)
    tokenizer = load_tokenizer(out)
    config = config_from_hf({**ARCHITECTURES[role], "vocab_size": len(tokenizer)})
    model = Decoder(config)

    writer = Writer(role, tokenizer, seed)
    chats, fragments = writer.prompts(16_000), writer.fragments(24_000)
    tail = max(int(c.target.sum(1).max()) for c in (chats, fragments))
    used = jnp.asarray(np.unique(fragments.ids[fragments.valid]))
    key = jax.random.key(seed, impl="rbg")  # quick on CPU
    dummy = jnp.zeros((1, 2, config.width))
    params = model.init(key, dummy, jnp.ones((1, 2), bool))["params"]
    # Flax's initialiser here is the 0.02 of large models; small ones learn sooner from 1/sqrt(D).
    params = {
        name: value if "norm" in name else value * (50 * config.width**-0.5)
        for name, value in flatten_dict(params, sep="/").items()
    }
    params = unflatten_dict(params, sep="/")
    if start is not None:
        _, params = load_pretrained(start)
    if config.embed_scale != 1.0:
        params["embedding"] = params["embedding"] / config.embed_scale**0.5

    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, 50, steps)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.05)
    )
    parts = jax.device_put([dataclasses.asdict(chats), dataclasses.asdict(fragments)])

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, parts, key):
        keys = jax.random.split(key, 4)

        def loss_fn(params):
            total = 0.0
            for part, size, k in zip(parts, BATCH, keys[:2], strict=True):
                rows = jax.random.randint(k, (size,), 0, part["ids"].shape[0])
                batch = Corpus(**{name: array[rows] for name, array in part.items()})
                losses, _ = token_losses(
                    model, params, batch, tail, (jax.random.fold_in(keys[2], size), used)
                )
                total += losses.sum() / batch.target.sum()
            return total

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    evaluate = jax.jit(functools.partial(token_losses, model, tail=tail))

    def exact(corpus: Corpus, limit: int = 4096) -> float:
        batches = range(0, min(limit, len(corpus.ids)), 512)
        return float(
            np.mean(
                [
                    evaluate(params, jax.tree.map(lambda a: a[i : i + 512], corpus))[1].mean()  # noqa: B023
                    for i in batches
                ]
            )
        )

    jax.tree_util.register_dataclass(Corpus, ["ids", "valid", "soft", "target"], [])
    state = optimizer.init(params)
    started = time.time()
    fresh = Writer(role, tokenizer, seed + 1)
    held = fresh.prompts(4096)
    fr = fresh.fragments(1024)
    bar = tqdm(range(steps), desc=role, mininterval=10)
    for i in bar:
        params, state, loss = step(params, state, parts, jax.random.fold_in(key, i))
        if (i + 1) % 150 == 0:
            print(
                i,
                exact(held, 1024),
                exact(fr, 1024),
                float(loss),
                time.time() - started,
                flush=True,
            )
            bar.set_postfix(loss=f"{loss:.3f}", exact=f"{exact(held, 1024):.3f}")
    report = {
        "role": role,
        "steps": steps,
        "seed": seed,
        "parameters": int(sum(p.size for p in jax.tree.leaves(params))),
        "loss": float(loss),
        "exact_on_prompts": exact(held),
        "exact_on_fragments": exact(fresh.fragments(4096)),
        "minutes": round((time.time() - started) / 60, 1),
    }
    save_pretrained(out, model, params)
    print(json.dumps(report))
    return report


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--role", choices=relay.ROLES, required=True)
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--start", type=Path, help="directory of an agent to train further")
    pretrain(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
