"""A run's folder that is damaged, read-only or on a full disk: the right results or one message."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import jax
import pytest
from quickstart_runs import CONFIG, ONE_ROUND

from rmas_jax.cli.ask import main as ask
from rmas_jax.cli.report import main as report
from rmas_jax.cli.run import main
from rmas_jax.config import ConfigError, load_config
from rmas_jax.host import atomic
from rmas_jax.host.errors import BAD_INPUT, MESSAGE_LIMIT
from rmas_jax.interop.link_files import load_links
from rmas_jax.runs import folder as run_folder
from rmas_jax.runs.resolve import resolve
from rmas_jax.runs.run import planned_steps

ROOT = Path(__file__).parents[2]
NEEDS_MOUNT = "mounting a small file system is not permitted here"


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def options(output):
    settings = [f"output_dir={output}", *ONE_ROUND]
    return ["--config", CONFIG, *(part for item in settings for part in ("--set", item))]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The output of a finished run, and a copy of it that stays as it is."""
    output = tmp_path_factory.mktemp("runs")
    os.chdir(ROOT)
    assert main(options(output)) == 0
    return output, shutil.copytree(output, tmp_path_factory.mktemp("copy") / "runs")


@pytest.fixture
def output(undisturbed):
    """The output of a finished run, to be damaged."""
    output, copy = undisturbed
    put_back(output, copy)
    return output


def put_back(output, copy):
    for entry in output.iterdir():
        shutil.rmtree(entry)
    shutil.copytree(copy, output, dirs_exist_ok=True)


def results(output):
    """What a run has found, but for times and order."""
    folder = output / "quickstart"
    rows = json.loads((folder / "results.json").read_text())
    numbers = [
        {k: v for k, v in row.items() if k not in ("seconds_per_item", "crc32")} for row in rows
    ]
    links = [load_links(folder / "links" / f"{n}.safetensors") for n in ("aligned", "trained")]
    return (
        sorted(map(json.dumps, numbers)),
        sorted((folder / "items.jsonl").read_text().splitlines()),
        (folder / "gradients.json").read_text(),
        [leaf.tobytes() for leaf in jax.tree.leaves(jax.tree.map(jax.device_get, links))],
    )


def message_of(capsys):
    """The one error message of a start."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and len(lines[0]) <= MESSAGE_LIMIT
    return lines[0]


def flip(file):
    raw = bytearray(file.read_bytes())
    raw[len(raw) * 2 // 3] ^= 1
    file.write_bytes(raw)


def pipe(file):
    file.unlink()
    os.mkfifo(file)


WHOLE_FILES = {
    "identity.json": "or remove ",
    "timings.json": "delete it and run again: the inner loop then runs again",
    "steps.json": "delete it and run again: measurements are kept",
    "results.json": "delete it and run again: everything is then measured again",
    "gradients.json": "delete it and run the same command again: the gradient norms are then",
    "environment.json": "delete it: the report is then written without it",
    "config.yaml": "delete it: the report is then written without it",
    "links/aligned.safetensors": "delete it and run again: the inner loop then runs again",
    "links/trained.safetensors": "delete it and run again: the outer loop then continues from",
}


@pytest.mark.parametrize("name", WHOLE_FILES)
def test_a_damaged_file_of_a_finished_run_is_one_message_with_the_way_out(output, name, capsys):
    file = output / "quickstart" / name
    before = file.read_bytes()
    for damage in (flip, pipe):
        damage(file)
        assert main(options(output)) == BAD_INPUT
        message = message_of(capsys)
        assert message.startswith(f"error: {file}") and WHOLE_FILES[name] in message
        shutil.rmtree(file) if file.is_dir() else file.unlink()
        file.write_bytes(before)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("identity.json", "[]"),
        ("timings.json", '{"inner loop": "1"}'),
        ("timings.json", '{"inner loop": NaN}'),
        ("timings.json", f'{{"inner loop": {10**400}}}'),
        ("timings.json", '{"inner loop": -5}'),
        ("steps.json", '"x"'),
        ("results.json", '[{"method": "recursive_mas"}]'),
        ("gradients.json", '[{"link": 1, "round": "1", "channel": "latent", "norm": 1}]'),
        ("environment.json", '{"jax": "0.1'),
        ("config.yaml", ""),
    ],
)
def test_a_file_of_another_shape_is_one_message(output, name, content, capsys):
    (output / "quickstart" / name).write_text(content)
    assert main(options(output)) == BAD_INPUT
    assert message_of(capsys).startswith(f"error: {output / 'quickstart' / name}")


def twice(lines):
    return [*lines, lines[0]]


def broken(lines):
    """Half a line, one that is no UTF-8, and one with NULs."""
    no_utf8 = lines[2].replace(b'"', b"\xff", 1)
    return [lines[0], lines[1][:40], no_utf8, *lines[3:-1], lines[-1] + b"\0" * 50]


def other_answer(lines):
    return [lines[0].replace(b'"correct": false', b'"correct": true', 1), *lines[1:]]


@pytest.mark.parametrize("damage", [twice, broken, other_answer])
def test_damaged_items_cost_their_measurement_which_is_made_anew(
    output, damage, caplog, capsys, undisturbed
):
    expected = results(undisturbed[1])
    items = output / "quickstart" / "items.jsonl"
    lines = items.read_bytes().splitlines()
    items.write_bytes(b"\n".join(damage(lines)) + b"\n")
    assert report([str(output / "quickstart")]) == (damage is not twice) * BAD_INPUT
    assert main(options(output)) == 0
    assert results(output) == expected
    assert "evaluation: finished before, runs again: " in caplog.text
    assert "test[:4], seed 0, which is measured again" in caplog.text
    assert "report ..." in caplog.text  # with the new seconds
    assert report([str(output / "quickstart")]) == 0


@pytest.mark.parametrize(
    "names",
    [
        ("items.jsonl", "gradients.json", "metrics.jsonl"),
        ("links/aligned.safetensors", "results.json", "steps.json"),
        ("timings.json", "links/trained.safetensors", "report.html"),
    ],
)
def test_what_is_gone_is_made_anew(output, names, caplog, undisturbed):
    for name in names:
        (output / "quickstart" / name).unlink()
    assert main(options(output)) == 0
    assert results(output) == results(undisturbed[1])
    assert (output / "quickstart" / "report.html").exists()
    if "timings.json" not in names:
        assert f"{output / 'quickstart' / names[0]}: no such file" in caplog.text


def test_results_that_lack_a_measurement_are_completed(output, caplog, undisturbed):
    file = output / "quickstart" / "results.json"
    file.write_text("[]")
    assert main(options(output)) == 0
    assert results(output) == results(undisturbed[1])
    assert "has no row of recursive_mas, rounds 1, relay test[:4], seed 0" in caplog.text


def test_a_broken_line_of_the_curves_is_left_out_with_a_note(output, capsys):
    file = output / "quickstart" / "metrics.jsonl"
    lines = file.read_text().splitlines()
    for broken in (lines[1][:20], "7", lines[1].replace('"step": ', '"step": 1', 1)):
        file.write_text("\n".join([lines[0], broken, *lines[2:]]) + "\n")
        assert main(options(output)) == 0
        assert report([str(output / "quickstart")]) == 0
        printed = capsys.readouterr().out
        assert f"{file} line 2: " in printed and "this row of the curves is left out" in printed


def test_damaged_states_are_read_again_and_a_damaged_checkpoint_costs_its_steps(
    output, caplog, capsys, undisturbed
):
    folder = output / "quickstart"
    (folder / "links" / "trained.safetensors").unlink()
    (folder / "links" / "aligned.safetensors").unlink()
    for states in (output / "states").glob("*/states.npy"):
        flip(states)
    manifest = folder / "checkpoints" / "on_policy" / "2" / "state" / "manifest.ocdbt"
    manifest.write_bytes(b"")
    assert main(options(output)) == BAD_INPUT  # it is the only one
    message = message_of(capsys)
    assert "all checkpoints are damaged (2)" in message and "this phase then starts anew" in message
    assert caplog.text.count("are damaged and read again: their checksum differs") == 3
    shutil.rmtree(folder / "checkpoints" / "on_policy")
    assert main(options(output)) == 0
    assert results(output) == results(undisturbed[1])


def snapshot(output):
    return {str(file): file.lstat().st_mtime_ns for file in output.rglob("*")}


def test_reading_a_finished_run_needs_no_lock_and_writes_nothing(output, monkeypatch, capsys):
    before = snapshot(output)
    monkeypatch.setattr(run_folder.fcntl, "flock", lambda *_: pytest.fail("a lock"))
    monkeypatch.setattr(atomic, "_opened", lambda *_: pytest.fail("a write"))
    assert main(options(output)) == 0
    assert "report.html" in capsys.readouterr().out
    assert main([*options(output), "--dry-run"]) == 0
    assert report([str(output / "quickstart")]) == 0
    assert ask([*options(output), "Where does it end?"]) == 0
    assert snapshot(output) == before


@pytest.fixture
def mounted(request):
    """Function that mounts a small file system over a folder, or changes how it is mounted."""
    done = []

    def mount(folder, how):
        is_new = folder not in done
        how = ["-t", "tmpfs", "-o", how, "tmpfs"] if is_new else ["-o", f"remount,{how}"]
        try:
            subprocess.run(["mount", *how, str(folder)], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip(NEEDS_MOUNT)
        if is_new:
            done.append(folder)

    yield mount
    for folder in done:
        # Lazily: mapped files of objects that wait to be collected keep it busy.
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_finished_run_on_a_read_only_file_system(output, undisturbed, mounted, capsys):
    mounted(output, "size=64m")
    shutil.copytree(undisturbed[1], output, dirs_exist_ok=True)
    mounted(output, "ro")
    assert main(options(output)) == 0
    assert main([*options(output), "--dry-run"]) == 0
    assert report([str(output / "quickstart")]) == 0
    assert ask([*options(output), "Where does it end?"]) == 0
    assert capsys.readouterr().err.count("error") == 0
    assert main([*options(output), "--set", "evaluation.rounds=[1,2]"]) == BAD_INPUT
    assert message_of(capsys).startswith(f"error: {output}/quickstart/lock: Read-only file system")


@pytest.mark.parametrize(
    "size",
    [
        "4600k",  # full in a checkpoint
        *(pytest.param(f"{k}k", marks=pytest.mark.long) for k in (16, *range(600, 6600, 500))),
    ],
)
def test_a_full_disk_is_one_message_and_then_the_run_goes_on(
    tmp_path, size, mounted, capfd, undisturbed
):
    mounted(tmp_path, f"size={size}")
    assert main(options(tmp_path)) == BAD_INPUT
    err = capfd.readouterr().err
    assert err.count("No space left on device") == 1 and "Traceback" not in err
    assert re.search(rf"error: {tmp_path}/\S+: No space left on device; finished files", err)
    mounted(tmp_path, "size=64m")
    assert main(options(tmp_path)) == 0
    assert results(tmp_path) == results(undisturbed[1])


def test_what_a_library_says_of_a_full_disk_is_one_message(tmp_path, monkeypatch, capsys):
    place = tmp_path / "d" / "123"

    def full(*_):
        try:
            raise ValueError(
                f'RESOURCE_EXHAUSTED: Failed writing: "{place}": Failed to write 5 bytes to file '
                "21: No space left on device [os_error_code='28']"
            )
        except ValueError as error:
            raise RuntimeError("Save failed") from error

    monkeypatch.setattr("rmas_jax.runs.resolve.find_data", full)
    assert main(options(tmp_path)) == BAD_INPUT
    assert message_of(capsys).startswith(
        f"error: {place}: {os.strerror(errno.ENOSPC)}; finished files"
    )


def test_a_start_that_bad_input_ends_leaves_no_folder(output, undisturbed, monkeypatch, capsys):
    shutil.rmtree(output / "quickstart")

    def refuse(*_):
        raise ConfigError("a template that fails only now")

    monkeypatch.setattr("rmas_jax.runs.run.encode_inner", refuse)
    assert main(options(output)) == BAD_INPUT
    assert message_of(capsys) == "error: a template that fails only now"
    assert not (output / "quickstart").exists()
    put_back(output, undisturbed[1])  # what is finished stays
    (output / "quickstart" / "timings.json").write_text("{}")
    assert main(options(output)) == BAD_INPUT
    assert (output / "quickstart" / "results.json").exists()


def test_a_run_has_steps_for_what_it_measures(tmp_path):
    settings = [f"output_dir={tmp_path}", "evaluation.gradient_batch_size=0"]
    resolved = resolve(load_config(CONFIG, [*ONE_ROUND, *settings]))
    names = [step.name for step in planned_steps(resolved)]
    assert names == ["inner loop", "outer loop", "evaluation", "report"]
    assert {benchmark.answering.nearest_tokens for benchmark in resolved.benchmarks} == {0}
    asked = resolve(load_config(CONFIG, [*ONE_ROUND, *settings, "evaluation.nearest_tokens=3"]))
    assert {benchmark.answering.nearest_tokens for benchmark in asked.benchmarks} == {3}
