"""Questions of reasoning-gym, and its verifiers as a grader."""

import pytest

from rmas_jax.config import DataConfig
from rmas_jax.data import DataError, load_dataset
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
        ("chain_sum", "<think>\\boxed{1}</think>So it is \\boxed{GOLD}.", Outcome.CORRECT, None),
        ("chain_sum", "<think>\\boxed{GOLD}</think>So it is \\boxed{x}.", Outcome.WRONG, 0.0),
        ("chain_sum", "GOLD", Outcome.CORRECT, None),
        ("chain_sum", "\\boxed{GOLD or so}", Outcome.WRONG, 0.1),  # part of a point
        ("countdown", "\\boxed{(GOLD)}", Outcome.CORRECT, 1.0),
        ("countdown", "\\boxed{exec('print(1.0)')}", Outcome.WRONG, None),
        ("mini_sudoku", "\\boxed{GOLD}", Outcome.CORRECT, None),
        ("mini_sudoku", "\\boxed{}", Outcome.UNPARSED, None),
    ]
    for generator, text, outcome, score in pairs:
        example = found[generator]
        verdict = GRADER(text.replace("GOLD", example.answer), example)
        assert verdict.outcome is outcome, (generator, text, verdict)
        if score is not None:
            assert verdict.scores["verifier"] == pytest.approx(score, abs=0.4)
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


def test_nobody_trains_on_generated_questions(tmp_path):
    config = DataConfig(dataset="reasoning-gym", generators={"dice": 3})
    with pytest.raises(DataError, match="must have a split train for training"):
        load_dataset(config, roles=("solver",), rounds=1, data_dir=tmp_path)
