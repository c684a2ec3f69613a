"""Comparisons of runs by question, and the command."""

import json

import numpy as np
import pytest
from made_runs import N, change, items_of, result_rows, write_run

from rmas_jax.cli.compare import main
from rmas_jax.evaluation.metrics import paired_difference
from rmas_jax.host.errors import BAD_INPUT
from rmas_jax.reporting.compare import compare_runs, comparison_table, shared_cells
from rmas_jax.reporting.paper import paper_values
from rmas_jax.reporting.run_directory import read_run


def write(directory, rows, **columns):
    """A run whose results are `rows`, with an item each."""
    write_run(directory)
    rows = [row | columns for row in rows]
    (directory / "results.json").write_text(json.dumps(rows))
    items = [item for row in rows for item in items_of(row)]
    (directory / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return directory


@pytest.fixture
def two(tmp_path):
    rows = [r for r in result_rows() if r["method"] in ("recursive_mas", "recursive_text")]
    rows = [r for r in rows if r["rounds"] == 2]
    other = change(rows, "recursive_mas", correct=100)
    return write(tmp_path / "a", rows), write(tmp_path / "b", other)


def test_cells_are_paired_by_question(two):
    a, b = map(read_run, two)
    found, notes = shared_cells(a, b)
    assert not notes and len(found) == 4  # two methods, two splits
    by_cell = {(c.split.name, c.method): c.pair for c in found}
    right = np.arange(N) < 120, np.arange(N) < 100
    expected = paired_difference(right[0].tolist(), right[1].tolist())
    assert by_cell["test", "recursive_mas"] == expected
    assert by_cell["test_unseen_entities", "recursive_mas"].difference == 0
    back = {(c.split.name, c.method): c.pair for c in shared_cells(b, a)[0]}
    assert back["test", "recursive_mas"].difference == -expected.difference


def test_the_table_corrects_its_p_values(two):
    found, _ = shared_cells(*map(read_run, two))
    table = comparison_table("a", "b", found)
    (line,) = [row for row in table.rows if row[1] == "test" and row[2].startswith("latent")]
    assert line[:2] == ("relay", "test") and line[3:5] == ("2", str(N))
    assert line[5].startswith("+10.0 [") and line[6:8] == ("20 / 0", "< 0.001")
    assert line[-1] == "-"  # the paper has no such benchmark


def test_other_seeds_and_versions(tmp_path):
    rows = [r for r in result_rows() if r["method"] == "recursive_mas" and r["rounds"] == 1]
    first = write(tmp_path / "a", rows, benchmark_version="1")
    seed = write(tmp_path / "b", rows, seed=5, benchmark_version="1")
    found, _ = shared_cells(read_run(first), read_run(seed))
    assert all(c.pair.items == N and c.pair.difference == 0 for c in found) and len(found) == 2
    other = write(tmp_path / "c", rows, benchmark_version="2")
    found, notes = shared_cells(read_run(first), read_run(other))
    assert not found and notes == ["relay: left out, as its questions, grader or metric differ"]


def test_other_sampling_is_named_and_compared_when_asked(tmp_path, capsys):
    rows = [r for r in result_rows() if r["method"] == "recursive_mas" and r["rounds"] == 1]
    greedy = "max_new_tokens 16, temperature 0, top_k 0, top_p 1, rollouts 1"
    drawn = "max_new_tokens 16, temperature 0.6, top_k 0, top_p 0.95, rollouts 1"
    a = write(tmp_path / "a", rows, benchmark_version="1", sampling=greedy)
    b = write(tmp_path / "b", rows, benchmark_version="1", sampling=drawn)
    differs = "its sampling differs: temperature 0, top_p 1 against temperature 0.6, top_p 0.95"
    found, notes = shared_cells(read_run(a), read_run(b))
    assert not found and notes == [f"relay: left out, as {differs} (--any-sampling compares it)"]
    assert main([str(a), str(b)]) == BAD_INPUT
    assert f"got {notes[0]}" in capsys.readouterr().err
    assert main([str(a), str(b), "--any-sampling"]) == 0
    out = capsys.readouterr().out
    assert f"relay: compared although {differs}\n" in out and "a against b" in out
    found, notes = shared_cells(read_run(a), read_run(a), any_sampling=True)
    assert len(found) == 2 and not notes


def test_the_command_prints_and_writes(two, tmp_path, capsys):
    out = tmp_path / "comparison.md"
    assert main([*map(str, two), "--markdown", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "a against b" in printed and "+10.0" in printed
    assert out.read_text().startswith("**a against b**")


def test_runs_that_share_nothing_are_refused(two, tmp_path, capsys):
    rows = [r for r in result_rows() if r["method"] == "no_latents"]
    alien = write(tmp_path / "c", rows)
    assert main([str(two[0]), str(alien)]) == BAD_INPUT
    assert "must share a benchmark" in capsys.readouterr().err
    assert main([str(two[0]), str(tmp_path / "missing")]) == BAD_INPUT
    with pytest.raises(SystemExit):
        main([str(two[0])])


def test_values_of_the_paper_have_a_source():
    values = paper_values("MATH-500", "recursive_mas", 3)
    assert [(v.source, v.system, v.accuracy) for v in values] == [
        ("Table 2", "Sequential Light", 77.8),
        ("Table 2", "Sequential Scaled", 88.2),
        ("Table 3", "Sequential Scaled", 88.0),
    ]
    assert paper_values("relay", "recursive_mas", 3) == []


def test_notes_come_before_the_refusal(two):
    a, b = map(read_run, two)
    (table,) = compare_runs([a, b])
    assert table.title == "a against b"
