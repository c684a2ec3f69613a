"""Shipped benchmarks on small files in their sources' formats, evaluated by one configuration."""

import collections
from pathlib import Path

import jax
import pytest
from benchmark_files import write_benchmark

import rmas_jax
from rmas_jax.config import load_config
from rmas_jax.evaluation import driver
from rmas_jax.evaluation.grading import graded_rows
from rmas_jax.interop.link_files import save_links
from rmas_jax.team import load_team, start_links

ROOT = Path(__file__).parents[2]
NAMES = ("MATH-500", "AIME-2025", "GPQA-Diamond", "MBPP+", "HotpotQA")
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


def with_gold_answers(rollouts):
    """A grading of rollouts in which the last one of the first question is its gold answer."""
    graded = collections.Counter()

    def grade(key, examples, grader, answers):
        graded[key] += 1
        ((role, (written,)),) = answers.by_agent.items()
        if graded[key] == rollouts.get(key.benchmark, 1):
            first = examples[0].answer
            gold = first if key.benchmark == "MBPP+" else rf"Therefore it is \boxed{{{first}}}."
            written = written._replace(opening="", texts=[gold, *written.texts[1:]])
        return graded_rows(key, examples, grader, answers._replace(by_agent={role: [written]}))

    return grade


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of the embedded agents, whose answers are wrong but for one of each benchmark."""
    folder = tmp_path_factory.mktemp("run")
    names = ", ".join(f"{{name: {write_benchmark(name, folder)}}}" for name in NAMES)
    links = folder / "links.safetensors"
    settings = (
        f"system.links={links}",
        f"output_dir={folder / 'runs'}",
        f"evaluation.benchmarks=[{names}]",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(driver, "graded_rows", with_gold_answers({"AIME-2025": 10}))
        config = load_config("quickstart", [*SMALL, *settings])
        team = load_team(config.system)
        save_links(links, start_links(team, start="identity", key=jax.random.key(0)))
        return rmas_jax.run(config)


def test_each_benchmark_has_a_row_by_its_own_grader_and_metric(finished):
    rows = {row["benchmark"]: row for row in finished.measured.results}
    assert tuple(rows) == NAMES
    for name, row in rows.items():
        has_rollouts = name == "AIME-2025"
        assert row["metric"] == ("pass_at_k" if has_rollouts else "accuracy")
        assert row["split"] == ("validation" if name == "HotpotQA" else "test")
        # Of the ten rollouts, only the last one of the first question is right.
        assert (row["n"], row["correct"]) == (3, 0 if has_rollouts else 1)
        assert row["crashed"] == row["timeout"] == 0
        assert row["unparsed"] == {"AIME-2025": 3, "HotpotQA": 0}.get(name, 2)
    assert rows["AIME-2025"]["rollouts"] == 10
    assert rows["AIME-2025"]["pass_at_k"] == pytest.approx(1 / 3)
    assert rows["AIME-2025"]["rollout_accuracy"] == pytest.approx(1 / 30)
    assert rows["HotpotQA"]["scores"]["exact_match"] == pytest.approx(1 / 3)


def test_items_keep_their_answers_and_the_report_names_every_benchmark(finished):
    items = finished.measured.items
    assert [item["benchmark"] for item in items] == [name for name in NAMES for _ in range(3)]
    right = [item for item in items if item["correct"]]
    assert [item["benchmark"] for item in right] == [name for name in NAMES if name != "AIME-2025"]
    (program,) = [item for item in right if item["benchmark"] == "MBPP+"]
    assert program["outcome"] == "correct" and program["prediction"].startswith("def ")
    report = (finished.measured.directory / "report.md").read_text()
    assert "pass@10" in report and all(name in report for name in NAMES)
