"""The notebooks of the documentation run, in a kernel of their own, from the repository's root."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
# Compiling takes most of the time, as in conftest.py.
QUICK = {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false",
}


@pytest.mark.parametrize("name", ["edges", "train"])
def test_a_notebook_runs(name):
    notebook = nbformat.read(ROOT / f"docs/notebooks/{name}.ipynb", as_version=4)
    client = NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(ROOT)}})
    client.execute(env=os.environ | QUICK)  # an error in a cell, or an assertion, raises
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
