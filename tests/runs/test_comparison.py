"""Every method in one run: the configuration of the main comparison, cut down to seconds."""

import json

import pytest
from quickstart_runs import TINY

from rmas_jax.config import load_config
from rmas_jax.evaluation.methods import METHODS
from rmas_jax.runs.run import run

CONFIG = "experiments/configs/comparison.yaml"
SMALLER = [
    "inner.repeats=1",
    "tuning.0.steps=2",
    "tuning.0.warmup_steps=1",
    "tuning.1.steps=2",
    "tuning.1.warmup_steps=1",
    "tuning.2.steps=2",
    "tuning.2.warmup_steps=1",
    "tuning.2.vectors=3",
    "evaluation.benchmarks=[{name: data, splits: ['test[:4]']}]",
    "evaluation.rounds=[2]",
    "evaluation.gradient_batch_size=0",
]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    kept = [setting for setting in TINY if not setting.startswith("evaluation.methods")]
    folder = tmp_path_factory.mktemp("comparison")
    return run(load_config(CONFIG, [*kept, *SMALLER, f"output_dir={folder}"]))


def test_every_method_has_a_row_with_its_costs(finished):
    rows = {row["method"]: row for row in finished.measured.results}
    singles = {f"single_{role}" for role in finished.config.system.agents}
    assert set(rows) == {*METHODS} - {"single_agents"} | singles
    for row in rows.values():
        assert row["n"] == 4 and row["flops_per_item"] > 0 and row["tokens_per_item"] > 0
    before_answer = (3 * 2 - 1) * finished.config.system.latent_steps
    refined = rows["self_refinement"]
    assert before_answer < refined["steps_per_item"] == refined["tokens_per_item"]
    for name in ("mixture_of_agents", "textgrad", "majority_vote", "best_of_agents"):
        assert rows[name]["steps_per_item"] < rows[name]["tokens_per_item"]  # side by side
    trained = {name: row["trained_parameters"] for name, row in rows.items()}
    solver_width = 96
    assert trained["answerer_soft_prompt"] == 3 * solver_width
    assert trained["answerer_full"] > trained["recursive_mas"] > trained["answerer_lora"] > 0
    assert trained["recursive_text"] == trained["no_latents"] == trained["loop_lm"] == 0


def test_the_report_has_every_method_and_tables_as_files(finished):
    text = finished.files.markdown.read_text()
    for name, method in METHODS.items():
        assert method.label in text or name == "single_agents"
    tables = sorted((finished.files.root / "tables").glob("*.csv"))
    assert tables and all(table.read_text().count("\n") > 1 for table in tables)
    items = [json.loads(line) for line in finished.files.items.read_text().splitlines()]
    assert all(len(item["prompt_hash"]) == 64 for item in items)
    votes = [item for item in items if item["method"] == "majority_vote"]
    assert votes and all([*item["agents"]] == [*finished.config.system.agents] for item in votes)
