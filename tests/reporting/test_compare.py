"""Comparisons of runs by question, and the command."""

import json

import numpy as np
import pytest
from made_runs import CORRECT, SPLITS, N, change, items_of, result_rows, write_run

from rmas_jax.cli.compare import main
from rmas_jax.evaluation.benchmarks import shipped
from rmas_jax.evaluation.comparisons import seed_effect
from rmas_jax.evaluation.methods import METHODS as METHOD_ENTRIES
from rmas_jax.evaluation.metrics import paired_difference
from rmas_jax.host.errors import BAD_INPUT
from rmas_jax.reporting.compare import compare_runs, comparison_table, shared_cells
from rmas_jax.reporting.paper import _values, paper_values
from rmas_jax.reporting.run_directory import read_run
from rmas_jax.topology import load_topology

METHODS = ("recursive_mas", "recursive_text")
SHIPPED_TOPOLOGIES = ("sequential", "mixture", "distillation", "deliberation")


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
    by_cell = {(c.first.split.name, c.first.method): c.pair for c in found}
    right = np.arange(N) < 120, np.arange(N) < 100
    expected = paired_difference(right[0].tolist(), right[1].tolist())
    assert by_cell["test", "recursive_mas"] == expected
    assert by_cell["test_unseen_entities", "recursive_mas"].difference == 0
    back = {(c.first.split.name, c.first.method): c.pair for c in shared_cells(b, a)[0]}
    assert back["test", "recursive_mas"].difference == -expected.difference


def test_the_table_corrects_its_p_values(two):
    found, _ = shared_cells(*map(read_run, two))
    table = comparison_table("a", "b", found)
    (line,) = [row for row in table.rows if row[1] == "test" and row[2].startswith("latent")]
    assert line[:2] == ("relay", "test") and line[3:5] == ("2", str(N))
    assert line[5].startswith("+10.0 [") and line[7:9] == ("20 / 0", "< 0.001")
    # An independent bootstrap of the same differences, of a fifth of which 20 of 200 are 1.
    values = (np.arange(N) < 120).astype(float) - (np.arange(N) < 100)
    draws = np.random.default_rng(1).choice(values, (9_999, N)).mean(axis=1)
    low, high = (float(end) for end in line[6].partition("[")[2].strip("]").split(", "))
    assert np.allclose((low, high), 100 * np.quantile(draws, (0.025, 0.975)), atol=1.2)
    (same,) = [row for row in table.rows if row[1] == "test" and row[2] == "text"]
    assert same[6] == "-"  # no resample differs from another


def test_other_seeds_and_versions(tmp_path):
    rows = [r for r in result_rows() if r["method"] == "recursive_mas" and r["rounds"] == 1]
    first = write(tmp_path / "a", rows, benchmark_version="1")
    seed = write(tmp_path / "b", rows, seed=5, benchmark_version="1")
    found, _ = shared_cells(read_run(first), read_run(seed))
    assert all(c.pair.items == N and c.pair.difference == 0 for c in found) and len(found) == 2
    other = write(tmp_path / "c", rows, benchmark_version="2")
    found, notes = shared_cells(read_run(first), read_run(other))
    why = "left out, as its questions, gold answers, grader or metric differ"
    assert not found and notes == [f"relay {split}: {why}" for split in SPLITS]


def test_other_sampling_is_named_and_compared_when_asked(tmp_path, capsys):
    rows = [r for r in result_rows() if r["method"] == "recursive_mas" and r["rounds"] == 1]
    greedy = "max_new_tokens 16, temperature 0, top_k 0, top_p 1, rollouts 1"
    drawn = "max_new_tokens 16, temperature 0.6, top_k 0, top_p 0.95, rollouts 1"
    a = write(tmp_path / "a", rows, benchmark_version="1", sampling=greedy)
    b = write(tmp_path / "b", rows, benchmark_version="1", sampling=drawn)
    differs = "its sampling differs: temperature 0, top_p 1 against temperature 0.6, top_p 0.95"
    found, notes = shared_cells(read_run(a), read_run(b))
    hint = "(--any-sampling compares it)"
    assert not found
    assert notes == [f"relay {split}: left out, as {differs} {hint}" for split in SPLITS]
    assert main([str(a), str(b)]) == BAD_INPUT
    assert f"got {notes[0]}" in capsys.readouterr().err
    assert main([str(a), str(b), "--any-sampling"]) == 0
    out = capsys.readouterr().out
    assert f"relay test: compared although {differs}\n" in out and "a against b" in out
    found, notes = shared_cells(read_run(a), read_run(a), any_sampling=True)
    assert len(found) == 2 and not notes


def test_the_command_prints_and_writes(two, tmp_path, capsys):
    out = tmp_path / "comparison.md"
    assert main([*map(str, two), "--markdown", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "a against b" in printed and "+10.0" in printed
    assert out.read_text().startswith("**a against b**")


def test_runs_that_share_nothing_are_refused(two, tmp_path, capsys):
    rows = [r for r in result_rows() if r["method"] == "no_latents" and r["rounds"] in (1, 3)]
    alien = write(tmp_path / "c", rows)
    assert main([str(two[0]), str(alien)]) == BAD_INPUT
    error = capsys.readouterr().err
    assert "must share a benchmark" in error and "c has no_latents at 1, 3 rounds" in error
    assert main([str(two[0]), str(alien), "--method", "recursive_mas", "no_latents"]) == BAD_INPUT
    assert main([str(two[0]), str(alien), "--rounds", "1", "2", "3"]) == BAD_INPUT
    assert "--rounds must have 1 value, or one per run (2)" in capsys.readouterr().err
    assert main([str(two[0]), str(tmp_path / "missing")]) == BAD_INPUT
    with pytest.raises(SystemExit):
        main([str(two[0])])


def cell(method, rounds):
    return [r for r in result_rows() if (r["method"], r["rounds"]) == (method, rounds)]


def test_runs_of_one_method_or_one_number_of_rounds_need_no_option(tmp_path, capsys):
    latent = write(tmp_path / "latent", cell("recursive_mas", 2), benchmark_version="1")
    text = write(tmp_path / "text", cell("recursive_text", 2), benchmark_version="1")
    once = write(tmp_path / "once", cell("recursive_mas", 1), benchmark_version="1")
    both = write(tmp_path / "both", cell("recursive_text", 1) + cell("recursive_text", 2))
    right = CORRECT["recursive_mas"][2]
    for other, correct, shown in (
        (text, CORRECT["recursive_text"][2], ("latent, trained links - text", "2")),
        (once, CORRECT["recursive_mas"][1], ("latent, trained links", "2 - 1")),
    ):
        found, _ = shared_cells(read_run(latent), read_run(other))
        pairs = {c.first.split.name: c.pair for c in found}
        expected = paired_difference((np.arange(N) < right).tolist(), (np.arange(N) < correct))
        assert pairs["test"] == expected and len(found) == 2
        assert comparison_table("a", "b", found).rows[0][2:4] == shown
        assert main([str(latent), str(other)]) == 0
    # Two numbers of rounds are a choice: methods differ, rounds do not.
    many = write(tmp_path / "many", cell("recursive_mas", 1) + cell("recursive_mas", 2))
    found, _ = shared_cells(read_run(many), read_run(both))
    assert [(c.first.rounds, c.second.rounds) for c in found] == [(1, 1), (2, 2)] * 2
    capsys.readouterr()
    assert main([str(many), str(both), "--rounds", "2", "1", "--method", *METHODS]) == 0
    out = capsys.readouterr().out
    assert "latent, trained links - text" in out and "2 - 1" in out
    assert f"+{(right - CORRECT['recursive_text'][1]) / 2:.1f} [" in out


def test_each_run_has_its_results_with_endings_and_the_papers_value(tmp_path):
    ended = {"unparsed": 5, "at_limit": 4, "timeout": 3, "crashed": 2, "rollouts": 10}
    rows = [r | ended | {"benchmark": "GPQA-Diamond"} for r in cell("recursive_mas", 3)]
    ours = write(tmp_path / "a", rows)
    tuned = {"method": "answerer_lora", "rounds": 1, "correct": 20, "accuracy": 0.1}
    theirs = write(tmp_path / "b", [row | tuned for row in rows])
    _, table = compare_runs([read_run(ours), read_run(theirs)])
    lines = [dict(zip(table.header, line, strict=True)) for line in table.rows]
    assert [line["run"] for line in lines] == ["a", "b"] * 2
    endings = ("answers", "unparsed", "cut off", "timed out", "crashed")
    for line in lines:
        assert [line[name] for name in endings] == ["2,000", "5", "4", "3", "2"]
    assert lines[0]["correct"].startswith("90.0 [") and lines[1]["correct"].startswith("10.0 [")
    assert "66.2 (Sequential Scaled, Table 3)" in lines[0]["paper"]
    assert "65.0 (Deliberation, Table 8)" in lines[0]["paper"]
    assert lines[1]["paper"] == "62.0 (Sequential Scaled, Table 3)"


def test_three_seeds_are_a_random_effect(tmp_path):
    random = np.random.default_rng(0)
    runs, right = [], {}
    for name, chance in (("a", 0.7), ("b", 0.4)):
        rows, items = [], []
        for seed in range(3):
            right[name, seed] = random.random(N) < chance
            (row,) = (r for r in cell("recursive_mas", 1) if r["split"] == "test")
            correct = int(right[name, seed].sum())
            rows.append(row | {"seed": seed, "correct": correct, "accuracy": correct / N})
            for item, is_right in zip(items_of(rows[-1]), right[name, seed], strict=True):
                items.append(item | {"correct": bool(is_right)})
        folder = write(tmp_path / name, rows)
        (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
        runs.append(read_run(folder))
    table, _ = compare_runs(runs)
    shown = dict(zip(table.header, table.rows[0], strict=True))
    effect = seed_effect([right["a", s].astype(float) - right["b", s] for s in range(3)])
    low, high = (100 * end for end in effect.interval)
    expected = f"{100 * effect.difference:+.1f} [{low:+.1f}, {high:+.1f}]"
    assert shown["points over seeds"] == expected != shown["a - b"]
    assert shown["deviation of seeds"] == f"{100 * effect.seed_deviation:.1f}"


def test_values_of_the_paper_have_a_source():
    values = paper_values("MATH-500", "recursive_mas", 3)
    assert [tuple(value) for value in values] == [
        ("Table 2", "Sequential Light", 77.8),
        ("Table 2", "Sequential Scaled", 88.2),
        ("Table 3", "Sequential Scaled", 88.0),
    ]
    assert [v.value for v in paper_values("Bamboogle", "single_toolcaller", 1)] == [49.8]
    assert [v.value for v in paper_values("MedQA", "loop_lm", 3)] == [56.4]
    assert [v.value for v in paper_values("MATH-500", "recursive_text", 2, "tokens")] == [
        *(2117, 2794)
    ]
    assert paper_values("relay", "recursive_mas", 3) == []


def test_the_papers_values_are_of_shipped_benchmarks_and_known_methods():
    roles = {r for name in SHIPPED_TOPOLOGIES for r in load_topology(name).order}
    names = {*METHOD_ENTRIES, *(f"single_{role}" for role in roles)}
    for quantity, benchmark, method, rounds in _values():
        assert benchmark in shipped() and method in names, (benchmark, method)
        assert rounds >= METHOD_ENTRIES.get(method, METHOD_ENTRIES["loop_lm"]).min_rounds
        assert quantity in ("accuracy", "tokens", "seconds")


def test_notes_come_before_the_refusal(two):
    a, b = map(read_run, two)
    table, answers = compare_runs([a, b])
    assert table.title == "a against b" and answers.title.startswith("a and b: ")
