"""Converts links between the released PyTorch layout and ours, without running pickles.

The tuned answerer of a run becomes a model.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from rmas_jax.cli.command import command_parser, exit_code_of
from rmas_jax.host.errors import USER_ERRORS, shown
from rmas_jax.host.writing import check_output_file, check_output_folder
from rmas_jax.interop import (
    links_that_fit,
    read_links,
    read_released_links,
    read_state,
    released_configs,
    write_released_links,
    write_state,
)
from rmas_jax.interop.link_files import save_links
from rmas_jax.interop.released import in_words
from rmas_jax.interop.systems import FoundLinks
from rmas_jax.interop.torch_state import SAFETENSORS
from rmas_jax.links import INNER, VARIANTS
from rmas_jax.models import CheckpointError
from rmas_jax.models.stored import as_float32
from rmas_jax.run_files import RunFiles
from rmas_jax.runs.tuned_model import run_of_adapter, save_tuned_model

SUFFIXES = (".pt", SAFETENSORS)
DESCRIPTION = """\
Convert links SRC between the released PyTorch layout and that of rmas_jax, write them to DST and
list them; or write a tuned answerer as a model. SRC and DST determine the conversion:

  one link         SRC and DST are state dicts, .pt or .safetensors
  from a release   SRC is the directory or hub id of the outer links, --role names the source of
                   each inner link, DST is a .safetensors file (system.links of a run)
  to a release     SRC is a .safetensors file of a run, DST is a directory: it gets a folder for
                   each role and outer/
  to a model       SRC is an adapter of a run, RUN/tuned/answerer_full.safetensors or
                   answerer_lora, DST is a new directory: it gets the tuned answerer as a
                   Hugging Face checkpoint, merged weights, tokenizer and chat template

Neither direction runs a pickle or needs torch.
"""
EXAMPLES = f"""\
rmas convert outer_12.pt outer_12.safetensors
rmas convert RecursiveMAS/Distillation-Outerlinks links.safetensors \\
    --role expert=RecursiveMAS/Distillation-Expert-Qwen3.5-9B \\
    --role learner=RecursiveMAS/Distillation-Learner-Qwen3.5-4B --task-type math
rmas convert runs/mine/{RunFiles.trained_links} released/
rmas convert runs/mine/{RunFiles.tuned}/answerer_full.safetensors my-model/
"""


def parser() -> argparse.ArgumentParser:
    """The command line; its `--help` is the manual."""
    out = command_parser("convert", DESCRIPTION, examples=EXAMPLES)
    out.add_argument("src", metavar="SRC", help="a file, a directory or a hub id")
    out.add_argument("dst", metavar="DST", help="the file or directory to write")
    out.add_argument(
        "--role",
        action="append",
        default=[],
        dest="roles",
        metavar="ROLE=SOURCE",
        help="directory or hub id of a role's agent, with its inner link; once for each role",
    )
    out.add_argument(
        "--task-type",
        choices=("math", "code"),
        help="task type of a release's links, if it has some for each",
    )
    out.add_argument(
        "--inner-link",
        choices=VARIANTS[INNER],
        help="variant of the inner links of a .safetensors file, if its tensors fit several",
    )
    return out


def convert(options: argparse.Namespace) -> None:
    """Converts links according to the options, and prints them; or a tuned answerer.

    Raises:
      InputError, OSError: unusable files or options.
    """
    src, dst = options.src, Path(options.dst)
    is_file = dst.suffix in SUFFIXES
    if is_file:
        check_output_file(dst, option="DST", error=CheckpointError, makes_folder=True)
    else:
        _check_folder(options.dst)
    if options.task_type and not options.roles:
        raise CheckpointError(
            f"--task-type must be unset unless --role is given, got {options.task_type}"
        )
    if options.inner_link and is_file:
        raise CheckpointError(
            f"--inner-link must be unset unless DST is a directory, got {options.inner_link}"
        )
    if options.roles:
        if dst.suffix != SAFETENSORS:
            raise CheckpointError(f"DST must end in {SAFETENSORS} with --role, got {dst}")
        roles = dict(role.split("=", 1) for role in options.roles if "=" in role)
        if len(roles) < len(options.roles):
            raise CheckpointError(
                f"--role must be ROLE=SOURCE, each role once, got {shown(options.roles, 300)}"
            )
        links = read_released_links(src, roles, task=options.task_type)
        source = f"{src} and --role {', '.join(roles)}"
        save_links(dst, links_that_fit(links, released_configs(links), source=source))
        print_links(links)
    elif Path(src).is_dir():
        raise CheckpointError(
            f"SRC must be a file, or a release with --role for each role, got the directory {src}"
        )
    elif not is_file and (run := run_of_adapter(src)) is not None:
        save_tuned_model(run, Path(src).stem, dst)
        print(f"model {dst}")
    elif not is_file:
        links = read_links(src, inner_variant=options.inner_link)
        write_released_links(dst, links)
        print_links(links)
    else:
        state = read_state(src)
        as_float32(state, source=src)  # a check only: a link keeps its dtype
        write_state(dst, state)
        for name, array in state.items():
            print(f"{name:<24} {array.dtype.name:<9} {list(array.shape)}")


def _check_folder(dst: str) -> None:
    """Refuses a DST that cannot be a folder, or has the suffix of a file."""
    check_output_folder(dst, option="DST", error=CheckpointError)
    end = Path(dst).suffix
    if re.fullmatch(r"\.[A-Za-z]{2,5}", end) and not (dst.endswith("/") or Path(dst).is_dir()):
        raise CheckpointError(
            f"DST must end in {' or '.join(SUFFIXES)}, or in / as a new folder, got {dst}"
        )


def print_links(links: FoundLinks) -> None:
    """Prints a line for each link."""
    for kind, named in links.items():
        for name, (config, _) in named.items():
            print(f"{kind} {name:<24} {in_words(config)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for bad input."""
    options = parser().parse_args(arguments)
    return exit_code_of(lambda: convert(options), bad_input=(*USER_ERRORS, ValueError))
