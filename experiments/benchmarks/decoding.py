"""Reading and decoding speed against torch transformers, on one CPU with the same weights.

    python -m experiments.benchmarks.decoding --out runs/decoding

Both libraries load a random Llama of about --parameters weights, which torch saves. Each contender
reads a prompt of --prompt tokens (all hidden states, the last logits) and then decodes --tokens
tokens greedily, one cached step at a time. The contenders are

    torch       transformers, eager mode, DynamicCache, its default attention
    scanned     rmas_jax, layers in a loop: compiled once for all layers
    unrolled    rmas_jax, `Agent.unrolled`: layers one after another, each with its own arrays
    int8        with --weights int8: as scanned, from matrices in int8

Contenders run in turn in every repeat, so that changes in the machine's load affect all of them.
The report has the median of the repeats without compile time (torch has none), and the ratio to
torch's time in the same repeat, as median and range; rmas_jax is faster above 1. All contenders
must decode the same tokens, except int8, whose weights are rounded. Writes decoding.json and
decoding.md into --out. Run nothing else meanwhile: on a busy machine, threads wait for each other,
some libraries' more than others'.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rmas_jax.agents.agent import Agent, load_agent
from rmas_jax.agents.sampling import speak
from rmas_jax.host.atomic import write_atomic
from rmas_jax.models import Cache, seal
from rmas_jax.models.hf import WEIGHTS

TORCH = "torch"
CONTENDERS = {"scanned": False, "unrolled": True}  # -> unroll_layers
HEAD_DIM = 64
VOCABULARY = 32000
PHASES = ("reading", "decoding")


def llama_sizes(parameters: int, layers: int, vocabulary: int) -> dict[str, int]:
    """Sizes of a Llama of this depth whose number of parameters is nearest to `parameters`."""

    def sizes(heads: int) -> dict[str, int]:
        width = heads * HEAD_DIM
        return {
            "vocab_size": vocabulary,
            "hidden_size": width,
            "intermediate_size": -(-width * 8 // 3 // 64) * 64,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads // 3 if heads % 3 == 0 else heads,
            "head_dim": HEAD_DIM,
            "tie_word_embeddings": True,
        }

    def count(of: dict[str, int]) -> int:
        width, kv = of["hidden_size"], of["num_key_value_heads"] * HEAD_DIM
        layer = 2 * width * (width + kv + 1) + 3 * width * of["intermediate_size"]
        return of["vocab_size"] * width + layers * layer + width

    return min(map(sizes, range(1, 65)), key=lambda of: abs(count(of) - parameters))


def build_torch_model(sizes: dict[str, Any], positions: int) -> Any:
    """A random float32 Llama of transformers."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **sizes,
        initializer_range=0.05,  # at the default, the logits of two tokens hardly differ
        max_position_embeddings=positions,
        bos_token_id=None,
        eos_token_id=None,
    )
    return transformers.LlamaForCausalLM(config).eval().requires_grad_(False)


def torch_contender(model: Any, ids: np.ndarray, tokens: int) -> Callable[[], dict[str, Any]]:
    """A function that reads and decodes once, and returns the seconds of each and the text."""
    import torch

    given = torch.tensor(ids, dtype=torch.long)

    @torch.inference_mode()
    def once() -> dict[str, Any]:
        start = time.perf_counter()
        out = model(given, use_cache=True, logits_to_keep=1)
        middle = time.perf_counter()
        text = [out.logits[:, -1].argmax(-1, keepdim=True)]
        for _ in range(tokens - 1):
            out = model(text[-1], past_key_values=out.past_key_values, use_cache=True)
            text.append(out.logits[:, -1].argmax(-1, keepdim=True))
        end = time.perf_counter()
        text = torch.cat(text, dim=1).numpy()
        return {"reading": middle - start, "decoding": end - middle, "text": text}

    return once


def jax_contender(
    agent: Agent, ids: np.ndarray, tokens: int
) -> tuple[Callable[[], dict[str, Any]], dict[str, float]]:
    """As `torch_contender`, with the seconds of compilation."""

    def read(agent: Agent, ids: jax.Array) -> tuple[jax.Array, jax.Array, Cache]:
        hidden, cache = agent.read(agent.embed(ids), jnp.ones(ids.shape, bool))
        # As in torch, the logits of the last token; `speak` computes them once more.
        logits = agent.unembed(hidden[:, -1:])
        return hidden[:, -1], logits, seal(cache, agent.config, tokens - 1)

    def write(agent: Agent, hidden: jax.Array, cache: Cache) -> jax.Array:
        return speak(agent, hidden, cache, end_tokens=(), max_tokens=tokens).tokens

    ids = jnp.asarray(ids, jnp.int32)
    hidden, _, cache = jax.eval_shape(read, agent, ids)
    compiled, seconds = {}, {}
    for name, function, args in (
        ("reading", read, (agent, ids)),
        ("decoding", write, (agent, hidden, cache)),
    ):
        start = time.perf_counter()
        compiled[name] = jax.jit(function).lower(*args).compile()
        seconds[name] = time.perf_counter() - start

    def once() -> dict[str, Any]:
        start = time.perf_counter()
        hidden, _, cache = jax.block_until_ready(compiled["reading"](agent, ids))
        middle = time.perf_counter()
        text = np.asarray(compiled["decoding"](agent, hidden, cache))
        end = time.perf_counter()
        return {"reading": middle - start, "decoding": end - middle, "text": text}

    return once, seconds


def measure(
    contenders: dict[str, Callable[[], dict[str, Any]]], repeats: int
) -> dict[str, list[dict[str, Any]]]:
    """Runs all contenders in turn, once to warm up and then `repeats` times."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    names = list(contenders)
    for repeat in range(repeats + 1):
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            result = contenders[name]()
            if repeat:
                runs[name].append(result)
    return runs


def summarise(
    runs: dict[str, list[dict[str, Any]]],
    compile_seconds: dict[str, dict[str, float]],
    tokens_of: dict[str, int],
) -> list[dict[str, Any]]:
    """A row per contender and phase."""
    rows = []
    for phase in PHASES:
        torch_seconds = np.array([run[phase] for run in runs[TORCH]])
        for name, repeats in runs.items():
            seconds = np.array([run[phase] for run in repeats])
            ratios = torch_seconds / seconds
            rows.append(
                {
                    "phase": phase,
                    "contender": name,
                    "compile_s": compile_seconds.get(name, {}).get(phase, 0.0),
                    "median_s": float(np.median(seconds)),
                    "tokens_per_s": tokens_of[phase] / float(np.median(seconds)),
                    "ratio_to_torch": float(np.median(ratios)),
                    "ratio_low": float(ratios.min()),
                    "ratio_high": float(ratios.max()),
                    "seconds": seconds.tolist(),
                }
            )
    return rows


def markdown(report: dict[str, Any]) -> str:
    """The report as a page with one table."""
    setting = report["setting"]
    lines = [
        "# Reading and decoding on a CPU",
        "",
        f"Llama with {setting['parameters']:,} float32 parameters in {setting['layers']} layers; "
        f"prompts of {setting['prompt']} tokens, {setting['tokens']} written; "
        f"{setting['repeats']} interleaved repeats, medians; {setting['cores']} CPU cores "
        f"({setting['machine']}, load {setting['load_before']:.1f} before the start); "
        f"torch {setting['torch']}, transformers "
        f"{setting['transformers']}, jax {setting['jax']}.",
        "",
        "| batch | phase | contender | tokens/s | times torch (range) | compile s |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        lines.append(
            f"| {row['batch']} | {row['phase']} | {row['contender']} | {row['tokens_per_s']:,.1f} "
            f"| {row['ratio_to_torch']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f}) "
            f"| {row['compile_s']:.1f} |"
        )
    shares = ", ".join(
        f"{name} {share:.1%} at batch {batch}"
        for batch, of in report["same_tokens"].items()
        for name, share in of.items()
    )
    return "\n".join([*lines, "", f"Tokens equal to torch's: {shares}.", ""])


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.decoding",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    number = functools.partial(out.add_argument, type=int, metavar="N")
    number("--parameters", default=100_000_000, help="approximate number (100000000)")
    number("--layers", default=12, help="of the decoder (12)")
    number("--vocabulary", default=VOCABULARY, help=f"tokens ({VOCABULARY})")
    number("--batch", nargs="+", default=[1, 8], help="batch sizes (1 8)")
    number("--prompt", default=128, help="tokens to read (128)")
    number("--tokens", default=64, help="tokens to decode, at least 2 (64)")
    number("--repeats", default=7, help="measured repeats, after one for warmup (7)")
    number("--threads", default=os.cpu_count(), help="of torch; XLA uses all cores (all)")
    out.add_argument("--weights", choices=WEIGHTS, help="adds a contender with such weights")
    out.add_argument("--out", type=Path, required=True, help="folder for the report")
    return out


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints the table and writes it; returns the exit code."""
    args = parser().parse_args(arguments)
    if args.tokens < 2 or min(args.prompt, args.repeats, *args.batch) < 1:
        print(
            "error: --tokens must be at least 2, --prompt, --repeats and --batch at least 1",
            file=sys.stderr,
        )
        return 2
    import torch  # only this benchmark and the tests need it
    import transformers

    torch.set_num_threads(args.threads)
    sizes = llama_sizes(args.parameters, args.layers, args.vocabulary)
    theirs = build_torch_model(sizes, args.prompt + args.tokens)
    with tempfile.TemporaryDirectory() as directory:
        theirs.save_pretrained(directory)
        agent = load_agent(directory)
        ours = {
            name: agent.unrolled() if is_unrolled else agent
            for name, is_unrolled in CONTENDERS.items()
        }
        if args.weights:
            ours[args.weights] = load_agent(directory, weights=args.weights)
    report: dict[str, Any] = {
        "setting": {
            "parameters": sum(x.size for x in jax.tree.leaves(agent)),
            **{name: getattr(args, name) for name in ("layers", "prompt", "tokens", "repeats")},
            "sizes": sizes,
            "threads": args.threads,
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "load_before": os.getloadavg()[0],
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "jax": jax.__version__,
        },
        "same_tokens": {},
        "rows": [],
    }
    for batch in args.batch:
        ids = np.random.default_rng(0).integers(0, sizes["vocab_size"], (batch, args.prompt))
        contenders = {TORCH: torch_contender(theirs, ids, args.tokens)}
        compile_seconds = {}
        for name, contender in ours.items():
            contenders[name], compile_seconds[name] = jax_contender(contender, ids, args.tokens)
        runs = measure(contenders, args.repeats)
        expected = runs[TORCH][0]["text"]
        same = {name: float(np.mean(runs[name][0]["text"] == expected)) for name in ours}
        report["same_tokens"][str(batch)] = same
        tokens_of = {"reading": batch * args.prompt, "decoding": batch * (args.tokens - 1)}
        for row in summarise(runs, compile_seconds, tokens_of):
            report["rows"].append({"batch": batch, **row})
    args.out.mkdir(parents=True, exist_ok=True)
    write_atomic(args.out / "decoding.json", json.dumps(report, indent=2) + "\n")
    page = markdown(report)
    write_atomic(args.out / "decoding.md", page)
    print(page)
    if min(of[name] for of in report["same_tokens"].values() for name in CONTENDERS) < 1:
        print("error: all contenders must decode the same tokens, got others", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
