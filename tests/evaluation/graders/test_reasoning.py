"""Questions of reasoning-gym, and its verifiers as a grader."""

import pytest

from rmas_jax.config import DataConfig
from rmas_jax.data import DataError
from rmas_jax.data.loading import load_dataset
from rmas_jax.evaluation.benchmarks import shipped
from rmas_jax.evaluation.benchmarks.loading import load_benchmark
from rmas_jax.evaluation.graders import GRADERS, check_golds
from rmas_jax.evaluation.graders.verdict import Outcome

GRADER = GRADERS["reasoning"]


def examples(tmp_path, **settings):
    config = DataConfig(dataset="reasoning-gym", **settings)
    return load_dataset(config, roles=(), rounds=1, data_dir=tmp_path).load("test")


def test_the_shipped_questions_are_the_defined_ones_and_their_answers_are_right(tmp_path, caplog):
    benchmark = shipped()["reasoning-gym"]
    data = load_benchmark(benchmark, tmp_path)
    assert data.sizes == benchmark.items == {"test": 500} and not caplog.text
    check_golds(GRADER, {"test": data.load("test")})
    assert not caplog.text


def test_seed_and_settings_make_other_questions(tmp_path):
    same, again, other, longer = (
        {e.id: e.question for e in examples(tmp_path, generators={"chain_sum": 5}, **more)}
        for more in (
            {},
            {},
            {"seed": 1},
            {"generator_settings": {"chain_sum.min_terms": 6, "chain_sum.max_terms": 6}},
        )
    )
    assert same == again and len({*same.values(), *other.values()}) == 10
    assert all(question.count(" + ") + question.count(" - ") == 5 for question in longer.values())


def test_verdicts(tmp_path):
    generators = {"chain_sum": 1, "countdown": 1, "mini_sudoku": 1, "rush_hour": 1}
    found = {e.fields["generator"]: e for e in examples(tmp_path, generators=generators)}
    pairs = [
        ("chain_sum", "<think>\\boxed{1}</think>So it is \\boxed{GOLD}.", Outcome.CORRECT, 1.0),
        ("chain_sum", "<think>\\boxed{GOLD}</think>So it is \\boxed{x}.", Outcome.WRONG, 0.0),
        ("chain_sum", "GOLD", Outcome.CORRECT, 1.0),
        ("chain_sum", "\\boxed{GOLD or so}", Outcome.WRONG, 0.1),  # part of a point
        ("countdown", "\\boxed{(GOLD)}", Outcome.CORRECT, 1.0),
        ("countdown", "\\boxed{exec('print(1.0)')}", Outcome.WRONG, None),
        ("mini_sudoku", "\\boxed{GOLD}", Outcome.CORRECT, 1.0),
        ("mini_sudoku", "\\boxed{}", Outcome.UNPARSED, None),
    ]
    for generator, text, outcome, score in pairs:
        example = found[generator]
        verdict = GRADER(text.replace("GOLD", example.answer), example)
        assert verdict.outcome is outcome, (generator, text, verdict)
        if score is not None:
            tolerance = 0.0 if outcome is Outcome.CORRECT else 0.4
            assert verdict.scores["verifier"] == pytest.approx(score, abs=tolerance)
    assert found["rush_hour"].answer == ""  # the verifier knows no single answer
    assert GRADER("\\boxed{F+10}", found["rush_hour"]).outcome is Outcome.WRONG


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"generators": {"dices": 3}}, r"data\.generators must be among ab, .*, got 'dices'"),
        (
            {"generators": {"dice": 3}, "generator_settings": {"num_dice": 3}},
            r"must name GENERATOR\.SETTING, of data\.generators, got 'num_dice'",
        ),
        (
            {"generators": {"dice": 3}, "generator_settings": {"dice.sides": 3}},
            r"data\.generator_settings: dice: .*'sides'",
        ),
    ],
)
def test_bad_settings_are_refused(tmp_path, settings, words):
    with pytest.raises(DataError, match=words):
        examples(tmp_path, **settings)


SPLITS = {"train": 12, "validation": 8}


def trained_on(tmp_path, roles=("planner", "solver"), rounds=2, **settings):
    config = DataConfig(dataset="reasoning-gym", **settings)
    return load_dataset(config, roles=roles, rounds=rounds, data_dir=tmp_path)


def test_splits_of_training_leave_the_test_questions_as_they_are(tmp_path):
    generators = {"chain_sum": 5, "countdown": 4}
    alone = trained_on(tmp_path, roles=(), generators=generators)
    data = trained_on(tmp_path, generators=generators, splits=SPLITS)
    assert data.sizes == {"test": 9, "validation": 16, "train": 24}
    plain = [(e.id, e.question, e.answer, e.fields) for e in alone.load("test")]
    assert plain == [(e.id, e.question, e.answer, e.fields) for e in data.load("test")]
    questions = [e.question for split in data.sizes for e in data.load(split)]
    assert len(set(questions)) == len(questions) == 49 and not data.bad_rows
    # The answerer learns the answers, in every round.
    assert data.text_roles == ("solver",)
    assert all(e.texts == {"solver": (e.answer,) * 2} for e in data.load("train"))
    assert data.version != alone.version
    other = trained_on(tmp_path, generators=generators, splits={**SPLITS, "train": 3})
    assert other.load("train")[:3] != [] and other.version != data.version
    check_golds(GRADER, {split: data.load(split) for split in data.sizes})


def test_verifiers_make_questions_of_training_again(tmp_path):
    data = trained_on(tmp_path, generators={"countdown": 2}, splits=SPLITS, seed=7)
    for split in data.sizes:
        for example in data.load(split):
            assert GRADER(f"\\boxed{{{example.answer}}}", example).outcome is Outcome.CORRECT
    others = [data.load("test")[0], *data.load("train")[1:]]
    first = data.load("train")[0]
    assert all(GRADER(f"\\boxed{{{e.answer}}}", first).outcome is Outcome.WRONG for e in others)


def test_a_question_of_two_splits_stays_in_the_first(tmp_path):
    small = {
        "generators": {"chain_sum": 60},
        "generator_settings": {
            "chain_sum.min_terms": 2,
            "chain_sum.max_terms": 2,
            "chain_sum.min_digits": 1,
            "chain_sum.max_digits": 1,
        },
    }
    data = trained_on(tmp_path, **small, splits={"train": 150, "validation": 60})
    questions = {split: {e.question for e in data.load(split)} for split in data.sizes}
    assert not questions["test"] & questions["validation"]
    assert not (questions["test"] | questions["validation"]) & questions["train"]
    assert data.sizes["test"] == 60
    assert data.sizes["train"] + data.sizes["validation"] + len(data.bad_rows) == 210
    reasons = {row.reason for row in data.bad_rows}
    assert reasons == {f"the same question is in {split}" for split in ("test", "validation")}
    assert {row.file for row in data.bad_rows} == {
        f"reasoning-gym: chain_sum: {split}" for split in ("train", "validation")
    }


def test_a_question_without_an_answer_is_tested_but_not_trained_on(tmp_path):
    generators = {"rush_hour": 2, "chain_sum": 1}
    data = trained_on(tmp_path, generators=generators, splits={"train": 2})
    assert data.sizes == {"test": 3, "train": 2}
    assert {(row.file, row.reason) for row in data.bad_rows} == {
        ("reasoning-gym: rush_hour: train", "answer must be given, got none")
    }
    with pytest.raises(DataError, match="train must have a question that no earlier split has"):
        trained_on(tmp_path, generators={"rush_hour": 2}, splits={"train": 2})


@pytest.mark.parametrize("splits", [None, {"validation": 3}])
def test_nobody_trains_on_test_questions(tmp_path, splits):
    with pytest.raises(DataError, match=r"data\.splits must have train for training with"):
        trained_on(tmp_path, generators={"dice": 3}, splits=splits)
