"""The paper's nine benchmarks on small files in their sources' formats, by one command."""

import csv
import json
from pathlib import Path

import jax
import pytest
from benchmark_files import write_benchmark

from rmas_jax.cli.run import main
from rmas_jax.config import load_config
from rmas_jax.interop.link_files import save_links
from rmas_jax.team import load_team, start_links

ROOT = Path(__file__).parents[2]
# Benchmark -> its grader, and whether any text is an answer to it.
NINE = {
    "MATH-500": ("math", False),
    "AIME-2025": ("math", False),
    "AIME-2026": ("math", False),
    "GPQA-Diamond": ("choice", False),
    "MedQA": ("choice", False),
    "MBPP+": ("code", False),
    "LiveCodeBench-v6": ("code", False),
    "HotpotQA": ("qa", True),
    "Bamboogle": ("qa", True),
}
SMALL = [
    "system.latent_steps=1",
    "system.rounds=1",
    "inner.steps=0",
    "outer.phases=[]",
    "evaluation.batch_size=3",
    "evaluation.rounds=[1]",
    "evaluation.methods=[recursive_mas]",
    "evaluation.sampling.max_new_tokens=4",
    "evaluation.answer_retry=false",
    "evaluation.gradient_batch_size=0",
    "runtime.progress=false",
    "runtime.compilation_cache=false",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run of the embedded agents, which solve none of these, and its output."""
    folder = tmp_path_factory.mktemp("run")
    names = ", ".join(f"{{name: {write_benchmark(name, folder)}}}" for name in NINE)
    links = folder / "links.safetensors"
    settings = (
        f"system.links={links}",
        f"output_dir={folder / 'runs'}",
        "name=nine",
        f"evaluation.benchmarks=[{names}]",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        team = load_team(load_config("quickstart", SMALL).system)
        save_links(links, start_links(team, start="identity", key=jax.random.key(0)))
        options = [part for setting in (*SMALL, *settings) for part in ("--set", setting)]
        assert main(["--config", "quickstart", *options]) == 0
    return folder / "runs" / "nine"


@pytest.mark.slow  # a whole run
def test_each_benchmark_has_a_row_by_its_own_grader_and_metric(finished):
    rows = {row["benchmark"]: row for row in json.loads((finished / "results.json").read_text())}
    assert tuple(rows) == tuple(NINE)
    for name, row in rows.items():
        grader, any_text = NINE[name]
        rollouts = 10 if name.startswith("AIME") else 1
        assert row["grader"] == grader and row.get("rollouts", 1) == rollouts
        assert row["metric"] == ("pass_at_k" if rollouts == 10 else "accuracy")
        assert row["split"] == ("validation" if name == "HotpotQA" else "test")
        assert (row["n"], row["correct"]) == (3, 0)
        assert row["crashed"] == row["timeout"] == 0
        assert row["unparsed"] == (0 if any_text else 3 * rollouts)
        assert 0 <= row["at_limit"] <= 3 * rollouts
    assert rows["AIME-2025"]["pass_at_k"] == 0 and rows["HotpotQA"]["scores"]["exact_match"] == 0
    # All ten answers are paid for.
    assert rows["AIME-2025"]["tokens_per_item"] > 2 * rows["MATH-500"]["tokens_per_item"]


@pytest.mark.slow
def test_the_report_has_every_benchmark_and_answer(finished):
    report = (finished / "report.md").read_text()
    assert "pass@10" in report and all(name in report for name in NINE)
    with (finished / "tables" / "items.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["benchmark"] for line in lines] == [
        name for name in NINE for _ in range(30 if name.startswith("AIME") else 3)
    ]
    assert all(len(line["prompt hash"]) == 64 for line in lines)
