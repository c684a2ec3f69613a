"""What `import rmas_jax` hands out."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import rmas_jax


def test_importing_the_package_imports_nothing_else():
    code = "import sys, rmas_jax; rmas_jax.__version__; dir(rmas_jax); print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in run.stdout.split()}
    assert "rmas_jax" in loaded and not loaded & {"jax", "jaxlib", "flax", "numpy", "yaml"}


def test_names_come_from_their_modules():
    assert set(rmas_jax._HOMES) <= set(dir(rmas_jax))
    for name, home in rmas_jax._HOMES.items():
        assert getattr(rmas_jax, name) is getattr(importlib.import_module(home), name)
    with pytest.raises(AttributeError, match="no attribute 'load_everything'"):
        rmas_jax.load_everything  # noqa: B018


def test_type_checkers_see_the_same_names():
    (block,) = [node for node in ast.parse(Path(rmas_jax.__file__).read_text()).body
                if isinstance(node, ast.If)]  # fmt: skip
    seen = {alias.asname: node.module for node in block.body for alias in node.names}
    assert seen == rmas_jax._HOMES
    assert (Path(rmas_jax.__file__).parent / "py.typed").exists()
