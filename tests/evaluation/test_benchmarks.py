"""Benchmarks: the shipped files, files of one's own, and what a run takes of them."""

import json
import re

import pytest
from benchmark_files import FILES, write_benchmark

from rmas_jax.config import (
    BenchmarkConfig,
    ConfigError,
    DataConfig,
    load_benchmark_config,
    load_config,
)
from rmas_jax.data.loading import load_dataset
from rmas_jax.evaluation.benchmarks import find_benchmarks, grader_of, own_name, shipped
from rmas_jax.evaluation.benchmarks.loading import checksum_of, load_benchmark
from rmas_jax.evaluation.graders import GRADERS, check_golds
from rmas_jax.evaluation.settings import with_defaults
from rmas_jax.prompts.templates import task_types

DEFINED = shipped()["reasoning-gym"]
CONFIG = "experiments/configs/outer_gain.yaml"  # names no benchmarks


def found(*overrides):
    return find_benchmarks(load_config(CONFIG, overrides))


def refusal(*overrides):
    with pytest.raises(ConfigError) as error:
        with_defaults(load_config(CONFIG, overrides))
    return str(error.value)


def test_the_papers_benchmarks_are_shipped_with_its_settings():
    paper = {
        "MATH-500": (500, 2000, 0.6, 1),
        "AIME-2025": (30, 16000, 0.6, 10),
        "AIME-2026": (30, 16000, 0.6, 10),
        "GPQA-Diamond": (198, 4000, 0.6, 1),
        "MedQA": (300, 4000, 0.6, 1),
        "MBPP+": (378, 4000, 0.2, 1),
        "LiveCodeBench-v6": (1055, 4000, 0.2, 1),
        "HotpotQA": (7405, 4000, 0.6, 1),
        "Bamboogle": (125, 4000, 0.6, 1),
    }
    for name, settings in paper.items():
        benchmark, sampling = shipped()[name], shipped()[name].sampling
        (items,) = benchmark.items.values()
        assert settings == (
            items,
            sampling.max_new_tokens,
            sampling.temperature,
            sampling.rollouts or 1,
        )
        assert sampling.top_p == 0.95 and benchmark.licence
        assert benchmark.metric == ("pass_at_k" if sampling.rollouts else "accuracy")
        assert len(benchmark.data.revision or "") == (0 if name in ("MedQA", "Bamboogle") else 40)


def solution(example, number):
    """A program for a question of the LiveCodeBench file, which adds a number."""
    if example.fields["starter_code"]:
        return (
            f"```python\n{example.fields['starter_code'].strip()}\n        return n + {number}\n```"
        )
    return f"```python\nprint(int(input()) + {number})\n```"


@pytest.mark.parametrize("name", FILES)
def test_a_small_file_in_the_format_of_its_source_is_read_and_its_gold_answers_are_right(
    tmp_path, name
):
    benchmark = load_benchmark_config(write_benchmark(name, tmp_path))
    assert (benchmark.name, benchmark.sampling) == (name, shipped()[name].sampling)
    data = load_benchmark(benchmark, tmp_path / "prepared")
    ((split, count),) = data.sizes.items()
    assert (split,) == benchmark.splits and count == 3 and not data.bad_rows
    examples = data.load(split)
    assert len({example.question for example in examples}) == 3
    check_golds(grader_of(benchmark), {split: examples})
    if name == "LiveCodeBench-v6":  # upstream publishes no solutions
        assert {example.answer for example in examples} == {""}
        tests = [json.loads(example.fields["public_test_cases"]) for example in examples]
        assert all(test[0]["input"] == "0" for test in tests)
        assert all(example.fields["private_test_cases"] for example in examples)
        for example in examples:
            number = re.search(r"Add (\d) to", example.question)[1]
            for text, is_right in (
                (solution(example, number), True),
                (solution(example, 9), False),
            ):
                assert grader_of(benchmark)(text, example).correct == is_right
    else:
        assert all(grader_of(benchmark)(e.answer, e).correct for e in examples)
        others = [examples[i - 1].answer for i in range(3)]
        for example, other in zip(examples, others, strict=True):
            assert grader_of(benchmark)(other, example).correct == (other == example.answer)


@pytest.mark.parametrize("name", shipped())
def test_shipped_benchmarks_can_be_used(name):
    benchmark = shipped()[name]
    assert benchmark.name == name and benchmark.description and benchmark.splits
    assert benchmark.data.grader in GRADERS
    assert benchmark.task_type in (None, *task_types())
    assert not list(benchmark.conflicts()) and not list(benchmark.sampling.conflicts())


def test_a_run_that_names_none_evaluates_its_own_data():
    (relay,) = found()
    assert relay.name == "relay" and relay.splits == ("test", "test_unseen_entities")
    assert relay.data == DataConfig(grader="relay")
    assert (relay.sampling.max_new_tokens, relay.sampling.rollouts) == (16, 1)
    (own,) = found("data.dataset=my/rows.jsonl", "system.task_type=choice", "data.test_share=0.2")
    assert (own.name, own.splits, own.task_type) == ("rows.jsonl", ("test",), "choice")
    assert own.data.test_share == 0.2 and grader_of(own) is GRADERS["choice"]


def test_data_of_a_run_need_not_be_those_of_the_definition_that_has_their_name():
    own = ("data.dataset=reasoning-gym", "data.generators={chain_sum: 20}", "data.seed=1")
    (gym,) = found(*own)
    assert gym.data.grader == "reasoning" and gym.description == DEFINED.description
    assert DEFINED.items and DEFINED.checksum and not gym.items and not gym.checksum
    (gym,) = found(*own, "evaluation.benchmarks=[{name: data, checksum: {test: a}}]")
    assert gym.checksum == {"test": "a"}
    (gym,) = found(*own, "evaluation.benchmarks=[{name: reasoning-gym, checksum: {other: a}}]")
    assert gym.checksum == {**DEFINED.checksum, "other": "a"} and gym.items == DEFINED.items


def test_published_data_has_one_name_with_and_without_its_organisation():
    for dataset in ("Sequential-Math", "RecursiveMAS/Sequential-Math"):
        assert own_name(DataConfig(dataset=dataset)) == "Sequential-Math"
        (own,) = found(f"data.dataset={dataset}", "system.task_type=math")
        assert own.name == "Sequential-Math" and own.data.grader == "math"
        assert own.data.dataset == dataset
    (chosen,) = found("data.dataset=Sequential-Math", "data.grader=text")
    assert chosen.data.grader == "text"


def test_what_a_run_says_of_answers_goes_before_the_benchmark():
    relay, other = found(
        "evaluation.benchmarks=[{name: relay, splits: ['test[:3]']}, {name: Sequential-Math}]",
        "evaluation.sampling.temperature=0.6",
        "evaluation.sampling.rollouts=4",
    )
    assert (relay.splits, other.splits) == (("test[:3]",), ("test",))
    assert (relay.sampling.max_new_tokens, other.sampling.max_new_tokens) == (16, 1000)
    for benchmark in (relay, other):
        sampling = benchmark.sampling
        assert (sampling.temperature, sampling.rollouts, sampling.top_k) == (0.6, 4, 0)
    message = refusal("evaluation.sampling.rollouts=4")
    assert message.startswith("evaluation.sampling.rollouts must be 1 while temperature is 0")


def test_pass_at_k_is_a_metric_that_needs_rollouts():
    drawn = "evaluation.sampling.temperature=0.6", "evaluation.sampling.rollouts=4"
    (relay,) = found(*drawn)
    assert relay.metric == "accuracy"  # rollouts alone are no other metric
    chosen = "evaluation.benchmarks=[{name: relay, metric: pass_at_k}]"
    (relay,) = found(chosen, *drawn)
    assert relay.metric == "pass_at_k" and relay.splits == ("test", "test_unseen_entities")
    message = refusal(chosen)
    assert message.startswith("evaluation.benchmarks.0.metric must be accuracy without several")


def test_a_file_of_ones_own_has_paths_that_count_from_it(tmp_path):
    rows = [{"question": f"{i}?", "label": "B", "options": ["x", "y"]} for i in range(4)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = tmp_path / "letters.yaml"
    file.write_text(
        "name: letters\n"
        "data:\n"
        "  dataset: files\n"
        "  files: {test: questions.jsonl}\n"
        "  columns: {answer: label}\n"
        "  fields: [options]\n"
        "task_type: choice\n"
    )
    (benchmark,) = found(f"evaluation.benchmarks=[{{name: {file}}}]")
    assert isinstance(benchmark, BenchmarkConfig) and benchmark.name == "letters"
    assert grader_of(benchmark) is GRADERS["choice"]
    data = load_dataset(benchmark.data, roles=(), rounds=1, data_dir=tmp_path / "data")
    examples = data.load("test")
    assert sorted((e.question, e.answer) for e in examples) == [(f"{i}?", "B") for i in range(4)]
    assert {e.fields["options"] for e in examples} == {'["x", "y"]'} and not examples[0].texts
    with pytest.raises(ValueError, match="must be one of 'test'"):
        data.load("train")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "[{name: relais}]",
            ["evaluation.benchmarks.0.name must be one of AIME-2025, ", "'relais'"],
        ),
        ("[{name: relay}, {name: data}]", ["evaluation.benchmarks.1.name must be", "'relay'"]),
    ],
)
def test_what_is_no_benchmark_or_one_twice_is_refused(override, words):
    message = refusal(f"evaluation.benchmarks={override}")
    assert all(word in message for word in words)


def test_a_grader_of_the_training_data_is_checked_where_nothing_evaluates_it_too():
    others = "evaluation.benchmarks=[{name: relay}]"
    message = refusal(others, "data.grader=texts")
    assert message.startswith("data.grader must be one of relay, ") and "'texts'" in message
    assert refusal("evaluation.methods=[magic]").startswith("evaluation.methods.0: must be one of")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: a\n", ["data must be a section with dataset"]),
        ("name: a\ndata: {dataset: relay}\ngrader: text\n", ["grader is an unknown key"]),
        ("name: a b\ndata: {dataset: relay}\n", ["name must be text", "'a b'"]),
        ("name: a\ndata: {dataset: relay, grader: texts}\n", ["benchmark a: data.grader must be"]),
        (
            "name: a\ndata: {}\nsampling: {temperature: 0, rollouts: 2}\n",
            ["sampling.rollouts must be 1 while temperature is 0, got 2"],
        ),
        ("name: a\ndata: {}\nmetric: pass_at_k\n", ["metric", "must be accuracy without several"]),
        ("name: a\ndata: {}\nmetric: f1\n", ["metric", "accuracy, pass_at_k"]),
    ],
)
def test_a_bad_file_is_refused_with_its_name(tmp_path, text, words):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        for benchmark in found(f"evaluation.benchmarks=[{{name: {file}}}]"):
            grader_of(benchmark)
    assert all(word in str(error.value) for word in words)
    assert "bad.yaml" in str(error.value) or "benchmark a" in str(error.value)


def test_a_checksum_is_of_questions_and_answers_and_not_of_training(tmp_path):
    rows = [
        {
            "id": f"q{i}",
            "question": f"What is {i}?",
            "answer": str(i),
            "plan": "Count.",
            "hint": "x",
        }
        for i in range(4)
    ]

    def load(rows, roles=("planner", "solver"), rounds=1, **fields):
        for name, part in (("train", rows[:2]), ("test", rows[2:])):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in part))
        files = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "test")}
        config = DataConfig(
            dataset="files", files=files, columns={"planner": "plan"}, validation_share=0, **fields
        )
        return load_dataset(config, roles=roles, rounds=rounds, data_dir=tmp_path / "data")

    first, other = load(rows), load(rows, roles=("solver", "planner", "critic"), rounds=3)
    assert first.version != other.version  # of the training data
    checksum = checksum_of(first.load("test"))
    assert checksum == checksum_of(other.load("test"))
    assert checksum == checksum_of(first.load("test")[::-1])
    # Each of these is another benchmark, in which other answers are right.
    for column, value in (("answer", "30"), ("question", "What is 30?"), ("id", "q30")):
        assert checksum_of(load([*rows[:3], rows[3] | {column: value}]).load("test")) != checksum
    assert checksum_of(load(rows, fields=("hint",)).load("test")) != checksum


def test_programs_that_are_graded_as_texts_give_a_warning(caplog):
    for name, benchmark in shipped().items():
        caplog.clear()
        if benchmark.data.grader in ("text", "code"):
            grader_of(benchmark)
            is_warned = "programs are graded as texts" in caplog.text
            assert is_warned == (name in {"Sequential-Code", "Mixture-Code", "Distillation-Code"})
