"""The names of a run's files stand in one place."""

import ast
from pathlib import Path

import pytest

import rmas_jax
from rmas_jax.run_files import SHARED_FOLDERS, Name, RunFiles

PACKAGE = Path(rmas_jax.__file__).parent
NAMES = {value.name for value in vars(RunFiles).values() if isinstance(value, Name)}
# A prepared data set keeps its own list of bad rows, which a run copies.
OTHERS = {("data/role_texts.py", "bad_rows.jsonl")}


def literals(source):
    """Texts in code that name a file or folder of a run; docstrings may speak of them."""
    tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    prose = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and isinstance(node.body[0], ast.Expr)
    }
    files = {name for name in NAMES if "." in name}
    folders = {*NAMES, *SHARED_FOLDERS} - files
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield from (name for name in files if name in node.value)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            part = node.right
            if isinstance(part, ast.Constant) and part.value in folders:
                yield part.value


def test_a_name_is_a_text_on_the_class_and_a_path_on_a_value(tmp_path):
    files = RunFiles(tmp_path / "runs" / "mine")
    assert RunFiles.results == "results.json"
    assert files.results == tmp_path / "runs" / "mine" / "results.json"
    assert files.checkpoints_of("phase") == files.root / "checkpoints" / "phase"
    assert (files.data, files.states) == (tmp_path / "runs" / "data", tmp_path / "runs" / "states")
    assert RunFiles(files.root) == files != RunFiles(tmp_path)


def test_no_other_module_spells_a_name():
    found = {
        (str(path.relative_to(PACKAGE)), name)
        for path in PACKAGE.rglob("*.py")
        if path.name != "run_files.py"
        for name in literals(path.read_text())
    }
    assert found - OTHERS == set()


def test_files_of_a_run_are_written_atomically():
    """By `host.atomic`, not by methods of a path that leave half a file where they are killed."""
    rooms = {
        "runs",
        "reporting",
        "evaluation",
        "training",
        "interop",
        "data",
        "cli",
        "checkpoints.py",
    }
    calls = {
        (str(path.relative_to(PACKAGE)), node.attr)
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("write_text", "write_bytes")
    }
    assert calls  # other rooms have some
    assert not {call for call in calls if Path(call[0]).parts[0] in rooms}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('"""Of results.json."""', []),
        ('path = f"{folder}/results.json"', ["results.json"]),
        ('path = folder / "checkpoints" / name', ["checkpoints"]),
        ('text = "checkpoints"', []),
        ('path = folder / "states"', ["states"]),
    ],
)
def test_a_name_that_is_spelt_is_found(source, expected):
    assert list(literals(source)) == expected
