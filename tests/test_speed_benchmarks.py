"""Every benchmark of speed at a tiny size; those of rounds and of evaluations have own files."""

import json
import statistics

import pytest

from experiments.benchmarks import (
    cold_start,
    decoding,
    loading,
    packing,
    refill,
    serving,
    sharing,
    training,
)


def report_of(benchmark, name, folder, capsys, *options, **numbers):
    """Runs a benchmark; returns its report, and its page, which it prints."""
    sizes = [x for key, of in numbers.items() for x in (f"--{key.replace('_', '-')}", str(of))]
    assert benchmark.main(["--out", str(folder), *options, *sizes]) == 0
    page = (folder / f"{name}.md").read_text()
    assert page.strip() in capsys.readouterr().out
    return json.loads((folder / f"{name}.json").read_text()), page


LLAMA = {"parameters": 100_000, "layers": 2, "vocabulary": 128}


@pytest.mark.slow
def test_decoding_is_that_of_torch(tmp_path, capsys):
    sizes = {"prompt": 6, "tokens": 5, "repeats": 3, "threads": 1}
    options = ("--batch", "1", "2", "--weights", "int8")
    report, page = report_of(decoding, "decoding", tmp_path, capsys, *options, **LLAMA, **sizes)
    names = ["torch", "scanned", "unrolled", "int8"]
    found = [(row["batch"], row["phase"], row["contender"]) for row in report["rows"]]
    phases = ("reading", "decoding")
    assert found == [(b, phase, name) for b in (1, 2) for phase in phases for name in names]
    assert report["same_tokens"].keys() == {"1", "2"}
    for same in report["same_tokens"].values():
        assert same["scanned"] == same["unrolled"] == 1 and 0 <= same["int8"] <= 1
    for row in report["rows"]:
        tokens = row["batch"] * {"reading": 6, "decoding": 4}[row["phase"]]
        assert len(row["seconds"]) == 3
        assert row["median_s"] == statistics.median(row["seconds"])
        assert row["tokens_per_s"] == pytest.approx(tokens / row["median_s"])
        assert row["ratio_low"] <= row["ratio_to_torch"] <= row["ratio_high"]
        assert (row["compile_s"] > 0) == (row["contender"] != "torch")
    assert report["setting"]["sizes"]["hidden_size"] == 64
    assert "| 2 | decoding | unrolled |" in page and "scanned 100.0% at batch 1" in page


def test_decoding_fails_where_tokens_differ(tmp_path, capsys, monkeypatch):
    whole = decoding.jax_phases

    def wrong(agent, ids, tokens):
        calls, seconds = whole(agent, ids, tokens)
        return {**calls, decoding.DECODING: lambda: calls[decoding.DECODING]() + 1}, seconds

    monkeypatch.setattr(decoding, "jax_phases", wrong)
    sizes = {**LLAMA, "batch": 1, "prompt": 3, "tokens": 2, "repeats": 1}
    options = [x for name, size in sizes.items() for x in (f"--{name}", str(size))]
    assert decoding.main(["--out", str(tmp_path), *options]) == 1
    assert "must decode the same tokens" in capsys.readouterr().err


def test_packed_rows_have_less_padding(tmp_path, capsys):
    sizes = {**LLAMA, "layers": 1, "dialogues": 24, "mean": 20, "batch_tokens": 256, "repeats": 2}
    report, page = report_of(packing, "packing", tmp_path, capsys, **sizes)
    assert report["parameters"] > 50_000 and report["batch_tokens"] == 256
    assert report["rows"].keys() == {"lognormal", "uniform"}
    for rows in report["rows"].values():
        longest, like, packed = rows
        assert [row["contender"] for row in rows] == ["longest", "like", "packed"]
        assert longest["padding"] > like["padding"] >= 0
        assert longest["padding"] > packed["padding"] >= 0
        assert longest["programs"] == 1 < like["programs"]
        assert like["ratio"] == like["first_ratio"] == 1 and like["ratio_range"] == [1, 1]
        assert all(row["first_seconds"] > row["seconds"] > 0 for row in rows)  # it compiles
    assert "| uniform | like |" in page


@pytest.mark.slow
def test_a_pool_writes_in_fewer_steps_than_batches_of_skewed_lengths(tmp_path, capsys):
    sizes = {"parameters": 100_000, "layers": 1, "items": 12, "batch": 4, "mean": 4, "longest": 16}
    report, page = report_of(refill, "refill", tmp_path, capsys, **sizes, repeats=1)
    skewed, uniform = report["rows"]
    assert skewed["longest"] <= 16
    # A step writes a token for each of four rows at most; first tokens take none.
    least = (12 * skewed["mean"] - 12) / 4
    assert least <= skewed["steps"]["pool"] <= skewed["steps"]["batches"]
    assert uniform["mean"] == uniform["longest"] == 4
    assert uniform["steps"] == {"batches": 9, "pool": 9}  # three batches of three steps
    for row in (skewed, uniform):
        assert row["times_steps"] == row["steps"]["batches"] / row["steps"]["pool"]
        assert min(row["seconds"].values()) > 0 and len(row["times_seconds"]) == 3
    assert "| uniform | 4, 4 | 9, 9 | 1.00 |" in page
    assert report["settings"]["items"] == 12


@pytest.mark.slow
def test_shared_parts_are_computed_once(tmp_path, capsys):
    options = ("--agents", "embedded", "--rounds", "1,2", "--methods", "recursive_mas")
    sizes = {"items": 5, "batch": 3, "latent_steps": 3, "tokens": 4, "repeats": 2}
    name = "sharing_embedded"
    report, page = report_of(sharing, name, tmp_path, capsys, *options, "recursive_text", **sizes)
    [row] = report["rows"]
    shared, alone = row["parts"]["shared"], row["parts"]["alone"]
    # Two batches; rounds of latents of R = 2 continue those of R = 1, and so do messages.
    assert (shared["rounds run"], alone["rounds run"]) == (2 * 2, 2 * (1 + 2))
    assert (shared["messages written"], alone["messages written"]) == (2 * 5, 2 * (2 + 5))
    assert 0 < shared["prefixes read"] < alone["prefixes read"]
    assert row["times"]["low"] <= row["times"]["median"] <= row["times"]["high"]
    assert "| embedded | 1, 2 |" in page and "4 of 6 | 10 of 14" in page


@pytest.mark.slow
def test_processes_load_their_shares(tmp_path, capsys):
    sizes = {**LLAMA, "files": 2, "devices": 2, "processes": 2, "repeats": 2}
    report, page = report_of(loading, "loading", tmp_path, capsys, **sizes)
    whole, split, processes = report["rows"]
    assert whole["held"] == report["checkpoint_bytes"] > 100_000
    assert report["checkpoint_bytes"] <= split["held"] < 1.1 * report["checkpoint_bytes"]
    assert 0.4 < processes["held"] / report["checkpoint_bytes"] < 0.6
    assert whole["largest"] > split["largest"] > 0
    for row in report["rows"]:
        low, high = row["seconds_range"]
        assert 0 < low <= row["seconds"] <= high and row["peak"] > 0
    assert "| split over 2 devices |" in page


@pytest.mark.slow
def test_training_has_the_losses_of_upstream(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # as in this process
    sizes = {"batch": 2, "text": 8, "steps": 1, "repeats": 1}
    report, page = report_of(training, "training", tmp_path, capsys, "--shape", "tiny", **sizes)
    assert [row["contender"] for row in report["rows"]] == ["torch", "ours", "rounds", "parts"]
    assert report["largest_loss_gap"] < 1e-5
    assert all(len(run["losses"]) == 3 for run in report["runs"])
    first, *_, last = report["runs"][0]["losses"]
    assert first != last  # it learns
    for row in report["rows"]:
        assert row["peak_mib"] > 0 and row["first_s"] > 2 / row["samples_per_s"] > 0
    assert "| parts |" in page and "2 rounds, 4 latents, batch 2" in page


def test_texts_of_training_hold_all_latents(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        training.main(["--out", str(tmp_path), "--text", "42"])
    assert ended.value.code == 2
    assert "argument --text: must be at least 43, got 42" in capsys.readouterr().err


@pytest.mark.slow
def test_a_cold_start_has_every_part(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # as in this process
    sizes = {"repeats": 1, "max_tokens": 2}
    report, page = report_of(cold_start, "cold_start", tmp_path, capsys, **sizes)
    seconds = {name: of[0] for name, of in report["seconds"].items()}
    assert list(seconds) == ["jax", "import", "load", "warm", "cold", "ready", "served"]
    assert seconds["jax"] < seconds["load"] < seconds["cold"]
    assert report["setting"]["max_tokens"] == 2
    assert "| warm |" in page


@pytest.mark.slow
def test_clients_at_once_get_the_same_texts(tmp_path, capsys):
    sizes = {"requests": 12, "clients": 4, "tokens": 5, "rows": 4, "batch": 4, "repeats": 1}
    report, page = report_of(serving, "serving", tmp_path, capsys, **sizes)
    names = [serving.AT_ONCE, serving.ONE_BY_ONE, serving.SMALL]
    assert [*report["requests_per_second"]] == [*report["times"]] == names
    assert report["times"][serving.AT_ONCE]["median"] == 1 and report["times"][names[1]]["low"] > 0
    assert report["compilations_after_start"] == 0 and 0 < report["batch_fill"] <= 1
    assert 0 < report["rows_that_write"] <= 1 and report["mean_tokens"] > 0
    assert "one by one, small" in page
