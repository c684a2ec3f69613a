"""The notebooks of the documentation run, in a kernel of their own, from any folder."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.parametrize("name", ["edges", "train"])
def test_a_notebook_runs(name, tmp_path):
    notebook = nbformat.read(ROOT / f"docs/notebooks/{name}.ipynb", as_version=4)
    where = {"metadata": {"path": str(tmp_path)}}
    client = NotebookClient(notebook, timeout=None, resources=where)
    # An error in a cell, or an assertion, raises.
    quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # compiling takes most of the time
    client.execute(env=os.environ | quick | {"PYTHONPATH": str(ROOT)})
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
