"""Reading and decoding speed against torch transformers, on one CPU with the same weights.

    python -m experiments.benchmarks.decoding --out runs/decoding

Both libraries load a random Llama of about --parameters weights, which torch saves. Each contender
reads a prompt of --prompt tokens (all hidden states, the last logits), and decodes --tokens tokens
greedily after it, one cached step at a time. The contenders are

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
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import harness
from experiments.benchmarks.harness import Number
from experiments.benchmarks.llamas import VOCABULARY, llama_sizes
from rmas_jax.agents.agent import Agent, load_agent
from rmas_jax.agents.sampling import speak
from rmas_jax.models import Cache, seal
from rmas_jax.models.hf import WEIGHTS

TORCH = "torch"
CONTENDERS = {"scanned": False, "unrolled": True}  # -> unroll_layers
READING, DECODING = "reading", "decoding"
NUMBERS = {
    "parameters": Number(100_000_000, "approximate number"),
    "layers": Number(12, "of the decoder"),
    "vocabulary": Number(VOCABULARY, "tokens"),
    "batch": Number((1, 8), "batch sizes"),
    "prompt": Number(128, "tokens to read"),
    "tokens": Number(64, "tokens to decode", least=2),
    "repeats": Number(7, "measured, after one to warm up"),
    "threads": Number(os.cpu_count() or 1, "of torch; XLA uses all cores"),
}
Phases = dict[str, Callable[[], Any]]  # phase -> a call of it, which waits for its result


def build_torch_model(sizes: dict[str, Any], positions: int) -> Any:
    """A random float32 Llama of transformers."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **sizes,
        initializer_range=0.05,  # at the default, the logits of two tokens hardly differ
        max_position_embeddings=positions,
        bos_token_id=None,
        eos_token_id=None,
    )
    return transformers.LlamaForCausalLM(config).eval().requires_grad_(False)


def torch_phases(model: Any, ids: np.ndarray, tokens: int) -> Phases:
    """Reading ids [B, T], and decoding tokens [B, W] after them."""
    import torch

    from experiments.benchmarks import torch_team

    given = torch.tensor(ids, dtype=torch.long)

    @torch.inference_mode()
    def read() -> tuple[Any, Any]:
        hidden, cache = torch_team.read(model, model.get_input_embeddings()(given))
        model.lm_head(hidden)
        return hidden, cache

    hidden, cache = read()

    def decode() -> np.ndarray:
        torch_team.rewind(cache, ids.shape[1])
        return torch_team.write(model, hidden, cache, tokens).numpy()

    return {READING: read, DECODING: decode}


@functools.partial(jax.jit, static_argnums=2)
def _read(agent: Agent, ids: jax.Array, tokens: int) -> tuple[jax.Array, jax.Array, Cache]:
    hidden, cache = agent.read(agent.embed(ids), jnp.ones(ids.shape, bool))
    # As in torch, the last logits; `speak` computes them once more.
    logits = agent.unembed(hidden[:, -1:])
    return hidden[:, -1], logits, seal(cache, agent.config, tokens - 1)


@functools.partial(jax.jit, static_argnums=3)
def _decode(agent: Agent, hidden: jax.Array, cache: Cache, tokens: int) -> jax.Array:
    return speak(agent, hidden, cache, end_tokens=(), max_tokens=tokens).tokens


def jax_phases(agent: Agent, ids: np.ndarray, tokens: int) -> tuple[Phases, dict[str, float]]:
    """As `torch_phases`, and the seconds in which each was compiled."""
    given = jnp.asarray(ids, jnp.int32)
    read = harness.compiled(_read, agent, given, tokens)
    hidden, _, cache = read.call(agent, given)
    decode = harness.compiled(_decode, agent, hidden, cache, tokens)
    calls: Phases = {
        READING: functools.partial(read.call, agent, given),
        DECODING: functools.partial(decode.call, agent, hidden, cache),
    }
    programs = {READING: read, DECODING: decode}
    return calls, {name: of.lower_s + of.compile_s for name, of in programs.items()}


def measure(
    phases: Mapping[str, Phases],
    compile_seconds: Mapping[str, Mapping[str, float]],
    tokens_of: Mapping[str, int],
    repeats: int,
) -> Iterator[dict[str, Any]]:
    """A row per phase and contender.

    Args:
      phases: by contender.
      compile_seconds: by contender and phase; torch has none.
      tokens_of: by phase.
      repeats: after one to warm up.
    """
    for phase, tokens in tokens_of.items():
        calls = {name: of[phase] for name, of in phases.items()}
        seconds = harness.in_turn(calls, repeats=repeats)
        for name, of in seconds.items():
            median, ratio = harness.summary(of).median, harness.speedup(seconds[TORCH], of)
            yield {
                "phase": phase,
                "contender": name,
                "compile_s": compile_seconds.get(name, {}).get(phase, 0.0),
                "median_s": median,
                "tokens_per_s": tokens / median,
                "ratio_to_torch": ratio.median,
                "ratio_low": ratio.low,
                "ratio_high": ratio.high,
                "seconds": of,
            }


def markdown(report: dict[str, Any]) -> str:
    """The report as a page with one table."""
    setting = report["setting"]
    lines = [
        "# Reading and decoding on a CPU",
        "",
        f"Llama with {setting['parameters']:,} float32 parameters in {setting['layers']} layers; "
        f"prompts of {setting['prompt']} tokens, {setting['tokens']} written; "
        f"{setting['repeats']} interleaved repeats, medians; {setting['cores']} CPU cores "
        f"({setting['processor']}, load {setting['load_before']:.1f} before the start); "
        f"torch {setting['torch']}, transformers "
        f"{setting['transformers']}, jax {setting['jax']}.",
        "",
    ]
    columns = ("batch", "phase", "contender", "tokens/s", "times torch (range)", "compile s")
    rows = (
        (
            str(row["batch"]),
            row["phase"],
            row["contender"],
            f"{row['tokens_per_s']:,.1f}",
            harness.Times(row["ratio_to_torch"], row["ratio_low"], row["ratio_high"]).shown(),
            f"{row['compile_s']:.1f}",
        )
        for row in report["rows"]
    )
    lines += harness.markdown_table(columns, rows)
    shares = ", ".join(
        f"{name} {share:.1%} at batch {batch}"
        for batch, of in report["same_tokens"].items()
        for name, share in of.items()
    )
    return "\n".join([*lines, "", f"Tokens equal to torch's: {shares}.", ""])


def load_both(args: argparse.Namespace) -> tuple[Any, dict[str, Agent]]:
    """A model of torch, and the agents of our contenders with its weights."""
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
    return theirs, ours


def compare(
    theirs: Any, ours: Mapping[str, Agent], batch: int, args: argparse.Namespace
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The share of tokens that equal torch's, by contender, and the rows of a batch size."""
    ids = np.random.default_rng(0).integers(0, args.vocabulary, (batch, args.prompt))
    phases, compile_seconds = {TORCH: torch_phases(theirs, ids, args.tokens)}, {}
    for name, agent in ours.items():
        phases[name], compile_seconds[name] = jax_phases(agent, ids, args.tokens)
    text = {name: np.asarray(of[DECODING]()) for name, of in phases.items()}
    same = {name: float(np.mean(text[name] == text[TORCH])) for name in ours}
    tokens_of = {READING: batch * args.prompt, DECODING: batch * (args.tokens - 1)}
    rows = measure(phases, compile_seconds, tokens_of, args.repeats)
    return same, [{"batch": batch, **row} for row in rows]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints the table and writes it; returns the exit code."""
    parser = harness.command_line("decoding", __doc__, NUMBERS)
    parser.add_argument("--weights", choices=WEIGHTS, help="adds a contender with such weights")
    args = parser.parse_args(arguments)
    import torch  # only benchmarks and tests need it
    import transformers

    machine = harness.machine()
    torch.set_num_threads(args.threads)
    theirs, ours = load_both(args)
    setting = {
        "parameters": sum(x.size for x in jax.tree.leaves(ours["scanned"])),
        **{name: getattr(args, name) for name in ("layers", "prompt", "tokens", "repeats")},
        "sizes": llama_sizes(args.parameters, args.layers, args.vocabulary),
        "threads": args.threads,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    report: dict[str, Any] = {"setting": machine | setting, "same_tokens": {}, "rows": []}
    for batch in args.batch:
        report["same_tokens"][str(batch)], rows = compare(theirs, ours, batch, args)
        report["rows"] += rows
    page = markdown(report)
    harness.write_report(args.out, "decoding", report, page)
    print(page)
    if min(of[name] for of in report["same_tokens"].values() for name in CONTENDERS) < 1:
        print("error: all contenders must decode the same tokens, got others", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
