"""Prints the plan of a run: what its programs need, on this machine or on a slice of chips."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
from collections.abc import Sequence

from rmas_jax.cli.command import command_parser, exit_code_of
from rmas_jax.cli.options import (
    add_config_options,
    add_process_options,
    check_limits,
    option_name,
)
from rmas_jax.cli.run import log_to_stderr, print_plan, start
from rmas_jax.config import ConfigError, RunConfig, load_config
from rmas_jax.host.errors import shown
from rmas_jax.planning.chips import Slice, parse_slice
from rmas_jax.planning.slices import slice_devices
from rmas_jax.runs.plan import mesh_sizes
from rmas_jax.runs.plan_inputs import Widths
from rmas_jax.runs.plan_search import ranking, search
from rmas_jax.runs.resources import with_mesh
from rmas_jax.sharding import MESH_AXES, make_mesh

DESCRIPTION = """\
Print agents, links, steps, shapes, memory and output folder of a run without running it.

The command compiles the programs of a run for their longest batches, from shapes: it reads data,
tokenizers and config.json, and no weight. With --slice it compiles for chips that are not at hand
(TPUs by libtpu, extra: tpu), and adds FLOPs, traffic, least times, hours and dollars, which are
estimates. Where tokenizers or data are missing, a slice is planned with assumed widths.
"""
EXAMPLES = """\
rmas plan --config quickstart
rmas plan --config quickstart --set runtime.mesh.data=2 --set outer.phases.0.batch_size=64
rmas plan --config mine/run.yaml --slice v5e:4x4
rmas plan --config mine/run.yaml --slice v5p:4x4x4 --mesh 4,16,1 --prompt-tokens 300
"""
ASSUMED = {"prompt_tokens": "prompt", "body_tokens": "body", "text_tokens": "text"}
MEANINGS = {
    "prompt_tokens": "before the slots, read once",
    "body_tokens": "in every round besides the slots",
    "text_tokens": "in a training text",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for bad input."""
    parser = command_parser("plan", DESCRIPTION, examples=EXAMPLES)
    add_config_options(parser)
    add_process_options(parser)
    parser.add_argument("--json", metavar="FILE", help="also write the plan there")
    parser.add_argument(
        "--executable",
        metavar="FILE",
        help="also write the compiled programs there, for `rmas run --executable`",
    )
    parser.add_argument(
        "--cache",
        metavar="FOLDER",
        help="keep there what the compiler says of each program, and take it from there: an "
        "interrupted plan goes on",
    )
    group = parser.add_argument_group("chips that are not at hand")
    group.add_argument("--slice", metavar="CHIP:SIZES", help="such as v5e:4x4, v5p:4x4x4 or H100:8")
    group.add_argument(
        "--mesh",
        metavar="DATA,FSDP,MODEL",
        help="of the slice; default: runtime.mesh where it has as many devices, else fsdp=16 (or "
        "fewer, or as many as the weights need to fit), data for the rest of the devices that "
        "divide the batch, and model for those that do not",
    )
    for option, field in ASSUMED.items():
        default = getattr(Widths(), field)
        group.add_argument(
            option_name(option),
            type=int,
            metavar="N",
            help=f"assumed where texts are not at hand: {MEANINGS[option]} ({default})",
        )
    group.add_argument(
        "--search",
        type=int,
        metavar="N",
        help="rank meshes, remat, policies and batch sizes by estimated throughput: compile at "
        "most N settings",
    )
    args = parser.parse_args(arguments)
    if args.executable is not None and args.cache is not None:
        parser.error("--executable must be unset with --cache, which holds no executable programs")
    if args.slice is None:
        for option in ("mesh", "search", *ASSUMED):
            if getattr(args, option) is not None:
                parser.error(f"{option_name(option)} must be unset without --slice")
        written = {"json": args.json, "executable": args.executable, "cache": args.cache}
        return start(parser, args, functools.partial(print_plan, **written))
    # A plan has nothing to save: SIGTERM ends it at once.
    log_to_stderr()
    return exit_code_of(functools.partial(plan_slice, args))


def plan_slice(args: argparse.Namespace) -> None:
    """Plans for a slice; to be called before JAX starts a backend."""
    check_limits(args, {**dict.fromkeys(ASSUMED, (1, 1_000_000)), "search": (1, 1000)})
    wanted = parse_slice(args.slice)
    given = {field: getattr(args, option) for option, field in ASSUMED.items()}
    widths = Widths(**{field: value for field, value in given.items() if value is not None})
    config = load_config(args.config, args.overrides)
    devices = slice_devices(wanted)
    if args.search is not None:
        found = search(
            config,
            devices,
            wanted,
            most=args.search,
            widths=widths,
            cache=args.cache,
        )
        print("\n".join(ranking(found)))
        return
    sizes = chosen_sizes(args.mesh, config, wanted)
    fields = [f"runtime.mesh.{axis}={size}" for axis, size in zip(MESH_AXES, sizes, strict=True)]
    config = load_config(args.config, [*args.overrides, *fields])
    try:
        mesh = make_mesh(*sizes, devices=devices)
    except ValueError as error:
        raise ConfigError(f"--mesh: {error}") from None
    written = {"json": args.json, "executable": args.executable, "cache": args.cache}
    print_plan(config, **written, mesh=mesh, wanted=wanted, widths=widths)


def chosen_sizes(option: str | None, config: RunConfig, wanted: Slice) -> tuple[int, ...]:
    """Sizes of the mesh axes."""
    if option is not None:
        sizes = option.split(",")
        if len(sizes) != len(MESH_AXES) or not all(size.isdecimal() for size in sizes):
            raise ConfigError(
                f"--mesh must be DATA,FSDP,MODEL, such as 1,16,1, got {shown(option)}"
            )
        return tuple(map(int, sizes))
    own = with_mesh(config, devices=wanted.devices).runtime.mesh
    filled = tuple(size for size in dataclasses.astuple(own) if size is not None)
    return filled if math.prod(filled) == wanted.devices else mesh_sizes(config, wanted)
