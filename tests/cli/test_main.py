"""The command `rmas`: what all its commands have in common."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rmas_jax import __version__
from rmas_jax.cli.__main__ import COMMANDS, main
from rmas_jax.cli.command import MEANINGS, exit_code_of
from rmas_jax.cli.run import print_plan, print_run
from rmas_jax.host.errors import BAD_INPUT, DIVERGED, PREEMPTED, InputError
from rmas_jax.host.preemption import PreemptedError
from rmas_jax.training.divergence import DivergedError

ROOT = Path(__file__).parents[2]


def ended(arguments, capsys):
    """The exit code of a command line that argparse ends, and what it prints."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    return stop.value.code, *capsys.readouterr()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_in_one_layout(command, capsys):
    code, help_, _ = ended([command, "--help"], capsys)
    assert code == 0 and help_.startswith(f"usage: rmas {command} [-h]")
    described, _, rest = help_.partition("examples:\n")
    examples, _, codes = rest.partition("exit codes:\n")
    assert len(described.splitlines()) > 5 and f"  rmas {command} " in examples
    assert f"  {BAD_INPUT}   {MEANINGS[BAD_INPUT]}" in codes
    options = re.findall(r"(?<![\w-])--[\w-]+", described)
    assert "--help" in options and not any("_" in option for option in options)


def test_the_help_of_all_lists_the_commands(capsys):
    code, help_, _ = ended(["--help"], capsys)
    assert code == 0
    for command, (_, text) in COMMANDS.items():
        assert f"  {command:<12}{text}\n" in help_


def test_every_module_of_a_command_is_listed_and_starts_by_the_command_alone():
    folder = ROOT / "rmas_jax" / "cli"
    mains = {p.stem for p in folder.glob("*.py") if "\ndef main(" in p.read_text()}
    assert mains - {"__main__"} == {module for module, _ in COMMANDS.values()}
    assert [p.stem for p in folder.glob("*.py") if '__name__ == "__main__"' in p.read_text()] == [
        "__main__"
    ]


def test_the_version(capsys):
    assert ended(["--version"], capsys)[:2] == (0, f"rmas_jax {__version__}\n")


@pytest.mark.parametrize("arguments", [["runn", "--config", "quickstart"], ["x" * 10_000]])
def test_an_unknown_command_lists_the_commands(arguments, capsys):
    code, _, message = ended(arguments, capsys)
    assert code == BAD_INPUT and len(message) < 1000
    assert f"COMMAND must be one of {', '.join(COMMANDS)}, got '{arguments[0][:4]}" in message


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("x must be 1, got 2"), BAD_INPUT, "error: x must be 1, got 2\n"),
        (FileNotFoundError(2, "No such file", "a"), BAD_INPUT, "error: a: No such file\n"),
        (DivergedError("loss is NaN"), DIVERGED, "error: loss is NaN\n"),
        (
            PreemptedError("saved"),
            PREEMPTED,
            "stopped: saved; the same command resumes from there\n",
        ),
        (RuntimeError("No space left on device"), BAD_INPUT, "error: No space left on device"),
    ],
)
def test_errors_end_in_one_message_and_their_code(error, code, message, capsys):
    def work():
        raise error

    assert exit_code_of(work) == code and code in MEANINGS
    assert capsys.readouterr().err.startswith(message)


def test_ctrl_c_is_a_line_and_no_traceback(capsys):
    def work():
        raise KeyboardInterrupt

    assert exit_code_of(work) == 130
    assert capsys.readouterr().err == "stopped: interrupted\n"


def test_faults_of_ours_are_no_bad_input():
    def work():
        raise KeyError("x")

    with pytest.raises(KeyError):
        exit_code_of(work)
    assert exit_code_of(lambda: None) == 0 and exit_code_of(lambda: BAD_INPUT) == BAD_INPUT


@pytest.mark.parametrize("command", [["-m", "rmas_jax.cli", "run"], ["experiments/run.py"]])
def test_a_run_starts_as_a_module_and_as_a_file(command):
    shown = subprocess.run(
        [sys.executable, *command, "--help"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    assert "--config FILE" in shown


def test_help_waits_for_no_import_of_a_command():
    code = "import sys; from rmas_jax.cli.__main__ import parser; parser(); print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"jax", "numpy"} & {name.partition(".")[0] for name in run.stdout.split()}


def test_a_plan_is_a_dry_run(monkeypatch):
    seen = []
    for name in ("run", "plan"):
        module = importlib.import_module(f"rmas_jax.cli.{name}")
        monkeypatch.setattr(
            module, "start", lambda parser, args, work: seen.append((args.overrides, work)) or 0
        )
    common = ["--config", "quickstart", "--set", "seed=1"]
    assert main(["run", *common, "--dry-run"]) == main(["plan", *common]) == 0
    assert main(["run", *common]) == 0
    dry, plan, real = (work for _, work in seen)
    assert dry is print_plan is plan.func and real.func is print_run
    assert [overrides for overrides, _ in seen] == 3 * [["seed=1"]]
