import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from rmas_jax.evaluation.graders import GRADERS

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = SETTINGS["project"]


def distribution(name: str) -> str:
    """The name of a distribution in its normal form, without version and extras."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", name)[0]).lower()


def test_every_import_of_the_package_is_a_declared_dependency():
    extras = PROJECT["optional-dependencies"]
    usable = ("eval", "gguf", "int8", "logging", "reasoning", "search", "serve")
    allowed = [*PROJECT["dependencies"], *(name for extra in usable for name in extras[extra])]
    declared = {distribution(name) for name in allowed}
    providers = importlib.metadata.packages_distributions()
    undeclared = set()
    for file in (ROOT / "rmas_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module]
            else:
                continue
            for module in {module.partition(".")[0] for module in modules}:
                known = {distribution(name) for name in providers.get(module, [module])}
                if module not in {*sys.stdlib_module_names, "rmas_jax"} and not known & declared:
                    undeclared.add((str(file.relative_to(ROOT)), module))
    assert not undeclared


def test_dependencies_have_floors_and_no_upper_pins():
    assert all(re.fullmatch(r"[\w-]+>=[\d.]+", name) for name in PROJECT["dependencies"])


def test_extras_that_messages_name_exist():
    texts = [file.read_text() for file in (ROOT / "rmas_jax").rglob("*.py")]
    named = {name for text in texts for name in re.findall(r"rmas_jax\[(\w+)\]", text)}
    named |= {grader.needs.extra for grader in GRADERS.values() if grader.needs}
    assert {"eval", "int8", "logging", "search"} <= named <= set(PROJECT["optional-dependencies"])


def test_extras_hold_the_packages_for_which_messages_name_them():
    """The extra of each missing package, in messages and in the table of graders."""
    extras = PROJECT["optional-dependencies"]
    texts = [file.read_text() for file in (ROOT / "rmas_jax").rglob("*.py")]
    wanted = {(g.needs.distribution, g.needs.extra) for g in GRADERS.values() if g.needs}
    for text in texts:
        wanted |= {*re.findall(r"package (\w+): pip install 'rmas_jax\[(\w+)\]'", text)}
        found = re.findall(r'NEEDS_EXTRA\.format\("[^"]*", "(\w+)"\)', text)
        wanted |= {(package, "search") for package in found}
    assert {("httpx2", "eval"), ("httpx2", "search"), ("bm25s", "search")} <= wanted
    for package, extra in wanted:
        assert distribution(package) in map(distribution, extras[extra]), (package, extra)


def test_make_lists_its_targets():
    listing = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for target in ("quickstart", "test", "lint", "docs", "help"):
        assert f"make {target} " in listing


def test_every_folder_of_the_package_is_imported_by_name():
    # Without __init__.py a folder is invisible to import-linter, and its floor is not held.
    folders = {file.parent for file in (ROOT / "rmas_jax").rglob("*.py")}
    assert not [str(folder) for folder in folders if not (folder / "__init__.py").exists()]
