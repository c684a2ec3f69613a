"""Loads a checkpoint, describes it, and generates text: a first test of a model."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rmas_jax.agents.agent import Agent, load_agent
from rmas_jax.agents.reading import PromptInput, read_body
from rmas_jax.agents.sampling import row_keys, seen_tokens, speak
from rmas_jax.agents.stop_strings import before_stop, stop_table
from rmas_jax.cli.command import command_parser, exit_code_of
from rmas_jax.cli.options import check_limits
from rmas_jax.cli.sampling_options import SAMPLING_LIMITS, add_sampling_options, chosen_sampling
from rmas_jax.host.errors import USER_ERRORS, InputError, shown
from rmas_jax.models import Cache, load_tokenizer
from rmas_jax.models.checkpoint import read_config
from rmas_jax.models.errors import CheckpointError
from rmas_jax.models.generation import SamplingConfig, sampling_defaults
from rmas_jax.models.hf import DTYPES, WEIGHTS
from rmas_jax.models.int8 import is_quantised
from rmas_jax.models.plain_text import check_text
from rmas_jax.models.tokenizer import Tokenizer
from rmas_jax.models.vocabulary import check_ids, check_tokenizer, usable_ends
from rmas_jax.prompts import (
    RolePrompt,
    encode_piece,
    load_chat_template,
    shipped_chat_templates,
    split_template,
    today,
    turn_starts,
)
from rmas_jax.sharding import MESH_AXES, make_mesh

DESCRIPTION = """\
Load a checkpoint as a JAX decoder, describe it, and generate an answer to a prompt.

PATH is a directory with config.json, safetensors weights and a tokenizer, a GGUF file of llama.cpp,
or a hub id (OWNER/NAME, or OWNER/NAME/FILE.gguf), which is downloaded once (HF_HUB_OFFLINE=1 uses
existing downloads). The prompt becomes a user's turn in the checkpoint's chat template. For base
models without one, --chat-template plain renders the turn as text, and --raw continues the prompt
itself.

Sampling follows the checkpoint's generation_config.json (greedy without this file, as with GGUF).
Each option below overrides one rule; --temperature turns sampling on.
"""
EXAMPLES = """\
rmas model embedded/solver --prompt "Kenal Bison, one gate left: blue"
rmas model Qwen/Qwen3-0.6B --prompt "Why is the sky blue?" --dtype bfloat16
rmas model ./my-model --prompt "Once upon a time" --raw --temperature 0.8 --seed 1
rmas model ./my-base --prompt "Why is the sky blue?" --chat-template plain
rmas model ./my-model --prompt "2 + 2 =" --greedy --max-tokens 8 --mesh 1,1,4
rmas model ./my-model --prompt "Hello" --dtype bfloat16 --weights int8
rmas model ./my-model.Q4_K_M.gguf --prompt "Hello" --dtype bfloat16
"""


def parser() -> argparse.ArgumentParser:
    """The command line; its `--help` is the manual."""
    out = command_parser("model", DESCRIPTION, examples=EXAMPLES)
    out.add_argument("path", metavar="PATH", help="directory, GGUF file, or hub id")
    out.add_argument("--prompt", required=True, metavar="TEXT", help="text to answer")
    out.add_argument("--raw", action="store_true", help="do not use the chat template")
    out.add_argument(
        "--chat-template",
        metavar="NAME",
        help=f"instead of the checkpoint's own: {', '.join(shipped_chat_templates())}, or the path "
        "of a jinja file",
    )
    out.add_argument(
        "--date", metavar="DAY", help="YYYY-MM-DD, for chat templates with a date (today)"
    )
    out.add_argument("--dtype", choices=DTYPES, default="float32", help="of weights (float32)")
    out.add_argument("--weights", choices=WEIGHTS, help="matrices in int8, scales in --dtype")
    out.add_argument(
        "--mesh", metavar="D,F,M", help="devices along the mesh axes data, fsdp and model"
    )
    out.add_argument("--revision", help="branch, tag or commit of a hub id")
    add_sampling_options(out, max_tokens=64)
    return out


def chosen_mesh(text: str) -> jax.sharding.Mesh:
    """The mesh of `--mesh`."""
    sizes = text.split(",")
    if len(sizes) != len(MESH_AXES) or not all(size.isdecimal() for size in sizes):
        raise ValueError(
            f"--mesh must be three sizes, such as 1,1,{len(jax.devices())}, got {shown(text)}"
        )
    return make_mesh(*map(int, sizes))


def describe_agent(agent: Agent, seconds: float) -> str:
    """Three lines on the agent: decoder, size, and devices."""
    c = agent.config
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(agent, is_leaf=is_quantised))
    leaves = jax.tree.leaves(agent)
    size = sum(x.nbytes for x in leaves)
    dtypes = sorted({x.dtype.name for x in leaves})
    devices = sorted(set().union(*(x.devices() for x in leaves)), key=lambda d: d.id)
    here = {device: 0 for device in devices}
    for leaf in leaves:
        for shard in leaf.addressable_shards:
            here[shard.device] += shard.data.nbytes
    sharded = sum(not x.sharding.is_fully_replicated for x in leaves)
    places = f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"
    return (
        f"model    {c.model_type}: {c.num_layers} layers, width {c.width}, "
        f"vocabulary {c.vocab_size}\n"
        f"weights  {count:,} parameters, {', '.join(dtypes)}, {size / 2**20:,.1f} MiB, "
        f"loaded in {seconds:.1f} s\n"
        f"devices  {places}, {max(here.values()) / 2**20:,.1f} MiB on the fullest; "
        f"{sharded} of {len(leaves)} arrays are sharded"
    )


def chosen_date(text: str | None) -> str:
    """The date of `--date`, or today."""
    try:
        return today() if text is None else datetime.date.fromisoformat(text).isoformat()
    except ValueError:
        raise ValueError(f"--date must be a day as YYYY-MM-DD, got {shown(text)}") from None


def prompt_ids(tokenizer: Tokenizer, prompt: str, *, raw: bool) -> list[int]:
    """Token ids of a prompt: of a user's turn in the chat template or, if `raw`, of the text alone.

    In a turn, markers are plain letters; in a raw prompt they are special tokens, and the tokenizer
    adds its usual first token.
    """
    check_text(prompt, source="--prompt")
    if raw:
        ids = tokenizer(prompt)["input_ids"]
    else:
        field = "{question}"
        [turn] = split_template(tokenizer, RolePrompt("", field, field), field)
        [ids] = encode_piece(tokenizer, turn, [prompt])
    if not ids:
        raise ValueError(f"--prompt must have at least one token, got {shown(prompt)}")
    return ids


def read(agent: Agent, ids: jax.Array) -> tuple[jax.Array, Cache]:
    """The state at the last token of ids [B, T], and the cache."""
    batch, time = ids.shape
    prompt = PromptInput(
        prefix=agent.empty_cache(batch, 0),
        ids=ids,
        valid=jnp.ones(ids.shape, bool),
        received=jnp.zeros((batch, 0, agent.width)),
        slot_index=(-1,) * time,
    )
    return read_body(agent, prompt)


def timed(function: Any, *args: Any) -> tuple[Any, float, float]:
    """The result of a function of arrays, and its seconds to compile and to run."""
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*args).compile()
    middle = time.perf_counter()
    out = jax.block_until_ready(compiled(*args))
    return out, middle - start, time.perf_counter() - middle


def generate(
    agent: Agent,
    ids: Sequence[int],
    *,
    end_tokens: tuple[int, ...],
    stops: np.ndarray | None,
    max_tokens: int,
    sampling: SamplingConfig,
    seed: int,
) -> tuple[list[int], str]:
    """New token ids after a prompt's, and a line with timings; `stops` as in `speak`."""
    row = jnp.asarray([ids], jnp.int32)
    keys = row_keys(jax.random.key(seed), np.arange(1)) if sampling.temperature else None
    seen = None
    if sampling.repetition_penalty != 1:
        seen = seen_tokens(row, jnp.ones(row.shape, bool), agent.config.vocab_size)
    (hidden, cache), compile_read, run_read = timed(read, agent, row)

    def write(
        agent: Agent, hidden: jax.Array, cache: Cache, keys: Any, seen: Any
    ) -> tuple[jax.Array, ...]:
        rules: dict[str, Any] = {"sampling": sampling, "keys": keys, "seen": seen, "stops": stops}
        state = speak(agent, hidden, cache, end_tokens=end_tokens, max_tokens=max_tokens, **rules)
        return state.tokens, state.lengths, state.finite

    (tokens, lengths, finite), compile_write, run_write = timed(
        write, agent, hidden, cache, keys, seen
    )
    count = int(lengths[0])
    if not finite.all():
        raise InputError(
            f"the model's logits for new token {count} are NaN or infinite: its weights may be "
            f"damaged, or its hidden states exceed the range of {hidden.dtype} (65,504 in float16; "
            "use --dtype float32 or bfloat16)"
        )
    return np.asarray(tokens)[0, :count].tolist(), (
        f"time     compiled in {compile_read + compile_write:.1f} s; "
        f"read {row.size} tokens in {run_read:.3f} s ({row.size / run_read:,.1f}/s), "
        f"wrote {count} in {run_write:.3f} s ({count / run_write:,.1f}/s)"
    )


def run(options: argparse.Namespace) -> None:
    """Loads, describes, generates. Checks options before it reads weights."""
    check_limits(options, SAMPLING_LIMITS)
    if options.raw and options.chat_template is not None:
        raise ValueError("--raw and --chat-template: choose one")
    source = {"revision": options.revision}
    rows = read_config(options.path, **source).vocab_size
    default, end_tokens = sampling_defaults(options.path, **source)
    sampling = chosen_sampling(options, default)
    date = chosen_date(options.date)
    template = options.chat_template
    if template is not None:
        template = load_chat_template(template, option="--chat-template")
    tokenizer = load_tokenizer(
        options.path, needs_chat_template=False, chat_template=template, date=date, **source
    )
    if not options.raw and not tokenizer.chat_template:
        raise CheckpointError(
            f"{options.path}: the tokenizer must have a chat template, got none (a base model?); "
            f"--chat-template names one ({', '.join(shipped_chat_templates())}, or a jinja file), "
            "and --raw continues the plain prompt"
        )
    if tokenizer.eos_token_id is not None:
        end_tokens = tuple(dict.fromkeys((*end_tokens, tokenizer.eos_token_id)))
    check_tokenizer(tokenizer, rows, source=options.path)
    end_tokens = usable_ends(end_tokens, rows, tokenizer=tokenizer, source=options.path)
    ids = prompt_ids(tokenizer, options.prompt, raw=options.raw)
    check_ids(ids, rows, tokenizer=tokenizer, what=f"{options.path}: the prompt")
    strings = () if template is None else turn_starts(tokenizer, end_tokens)

    mesh = None if options.mesh is None else chosen_mesh(options.mesh)
    start = time.perf_counter()
    agent = load_agent(options.path, options.dtype, mesh, weights=options.weights, **source)
    jax.block_until_ready(agent)
    print(describe_agent(agent, time.perf_counter() - start))
    how: dict[str, Any] = dataclasses.asdict(sampling) if sampling.temperature else {"greedy": True}
    if not sampling.temperature and sampling.repetition_penalty != 1:
        how["repetition_penalty"] = sampling.repetition_penalty
    print("sampling " + ", ".join(f"{name}={value}" for name, value in how.items()), end="")
    ends = [*end_tokens, *strings]
    print(f"; ends at {ends}, at most {options.max_tokens} tokens", flush=True)
    tokens, times = generate(
        agent,
        ids,
        end_tokens=end_tokens,
        stops=stop_table(tokenizer, strings) if strings else None,
        max_tokens=options.max_tokens,
        sampling=sampling,
        seed=options.seed,
    )
    print(f"{times}\n")
    if (before := before_stop(tokenizer, tokens, strings)) is not None:
        tokens = before
    print(tokenizer.decode(tokens, skip_special_tokens=True).strip())


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for bad input."""
    options = parser().parse_args(arguments)
    return exit_code_of(lambda: run(options), bad_input=(*USER_ERRORS, ValueError))
