"""The wheel, installed alone, holds the whole package and does what the README shows, anywhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from quickstart_runs import ONE_ROUND

ROOT = Path(__file__).parent.parent
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "rmas_jax")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
AS_HERE = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "true", "JAX_NUM_CPU_DEVICES": "8"}  # same programs
ALONE = ("--no-deps", "--no-index", "--no-cache-dir")  # no network


def files(package: Path) -> set[str]:
    """All but what Python compiles."""
    paths = (path for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {path.relative_to(package).as_posix() for path in paths}


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder that holds the wheel's content alone."""
    source, wheels, target = (tmp_path_factory.mktemp(n) for n in ("source", "wheels", "target"))
    for name in SOURCES:  # a copy: setuptools leaves what it built beside the sources
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    subprocess.run(
        [*PIP, "wheel", *ALONE, "--no-build-isolation", "--wheel-dir", wheels, source], check=True
    )
    (wheel,) = wheels.iterdir()
    subprocess.run([*PIP, "install", *ALONE, "--target", target, wheel], check=True)
    return target


@pytest.fixture(scope="module")
def call(installed, tmp_path_factory):
    """Function that runs Python with arguments in a folder that is empty at first."""
    folder = tmp_path_factory.mktemp("empty")
    # Without `site` no .pth file makes the repository importable; its other work is done here.
    path = os.pathsep.join([str(installed), sysconfig.get_path("purelib")])

    def run(*arguments: str | Path) -> str:
        ran = subprocess.run(
            [sys.executable, "-S", *arguments],
            cwd=folder,
            env={**os.environ, **AS_HERE, "PYTHONPATH": path},
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    run.folder = folder
    return run


def test_the_wheel_holds_every_file_of_the_package(installed):
    assert files(installed / "rmas_jax") == files(ROOT / "rmas_jax")


@pytest.mark.slow  # a check of a release
def test_the_example_of_the_readme_runs_where_the_repository_is_not_importable(installed, call):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    shown = call("-c", f"{code}\nprint(rmas.__file__, vectors.shape)\nimport importlib.util\n"
                 "print(importlib.util.find_spec('experiments'))")  # fmt: skip
    first, found = shown.splitlines()[-2:]
    assert Path(first.split()[0]).is_relative_to(installed)
    assert first.endswith("(2, 1, 4, 96)") and found == "None"


@pytest.mark.slow  # a check of a release
def test_the_quickstart_runs_and_its_report_is_written_again(installed, call):
    changes = (part for change in ONE_ROUND for part in ("--set", change))
    printed = call(installed / "bin/rmas", "run", "--config", "quickstart", *changes)
    report = call.folder / "runs/quickstart/report.html"
    assert "report.html" in printed and report.stat().st_size > 0
    report.unlink()
    call(installed / "bin/rmas", "report", "runs/quickstart")
    assert report.stat().st_size > 0
