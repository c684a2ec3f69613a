"""What is read from a row, and which rows are bad."""

import math
from decimal import Decimal

import pytest

from rmas_jax.data import Example
from rmas_jax.data.rows import FIELDS, DataError, choose_columns, to_example

SEQUENTIAL = ("planner", "critic", "solver")
ROW = {"question": "2 + 2?", "plan": "Add.", "refined_plan": "Add up.", "answer": "4"}


def columns(row, roles=SEQUENTIAL, chosen=None):
    return choose_columns(set(row), roles, chosen or {}, where="file")


def read(row, roles=SEQUENTIAL, chosen=None, rounds=2):
    return to_example(row, columns(row, roles, chosen), place="file:1", rounds=rounds)


def test_a_published_row():
    texts = {"planner": ("Add.",), "critic": ("Add up.",), "solver": ("4",)}
    assert read(ROW) == Example("file:1", "2 + 2?", "4", difficulty=0, texts=texts)


@pytest.mark.parametrize(
    ("roles", "row", "texts"),
    [
        (("math", "summarizer"), {"expert_math": "a", "hie_math_expert": "b"}, {"math": "b"}),
        (("math", "summarizer"), {"expert_math": "a"}, {"math": "a"}),
        (("math", "summarizer"), {"summary": "c"}, {"summarizer": "c"}),
        (("code", "science"), {"code_expert": "a", "science_expert": "b"}, {"code": "a"}),
        (("expert", "learner"), {"refined_plan": "a", "expert_plan": "b"}, {"expert": "a"}),
        (("expert", "learner"), {"learner_answer": "a"}, {"learner": "4"}),
        (("expert", "learner"), {"distill_learner": "a"}, {"learner": "a"}),
        (("reflector", "toolcaller"), {"deliberation_reflector": "a"}, {"reflector": "a"}),
        (("reflector", "toolcaller"), {}, {"reflector": "4", "toolcaller": "4"}),
        (("scout", "judge"), {"scout": "a"}, {"scout": "a", "judge": "4"}),
        (("judge", "scout"), {}, {"scout": "4"}),  # the last role answers; the judge has no text
    ],
)
def test_fields_are_looked_for_in_order(roles, row, texts):
    found = read({"question": "2 + 2?", "answer": "4", **row}, roles)
    for role, text in texts.items():
        assert found.texts[role] == (text,)
    assert "judge" not in found.texts or roles[-1] == "judge"


def test_every_part_and_role_has_a_field():
    assert all(FIELDS.values())


def test_chosen_fields_go_before_all_others():
    row = ROW | {"task": "3 + 3?", "level": 3, "name": 7, "draft": "Five?"}
    chosen = {"question": "task", "difficulty": "level", "id": "name", "solver": "answer"}
    found = read(row, chosen=chosen)
    assert (found.question, found.difficulty, found.id) == ("3 + 3?", 3, "7")
    assert found.texts["solver"] == ("4",) and read(row).texts["solver"] == ("Five?",)


def test_one_text_serves_all_rounds_and_a_list_has_one_for_each():
    texts = ["one", "two", "three"]
    for plan, rounds, kept, unrolled in (
        (texts, 2, ("one", "two"), ("one", "two")),
        (texts, 3, ("one", "two", "three"), ("one", "two", "three")),
        (["one"], 3, ("one",), ("one", "one", "one")),
    ):
        found = read(ROW | {"plan": plan}, rounds=rounds)
        assert found.texts["planner"] == kept
        assert found.in_rounds(rounds).texts["planner"] == unrolled


def test_further_fields_are_kept_as_text():
    row = ROW | {"options": ["a", "b"], "source": "book", "year": 1999, "note": None}
    further = ("options", "source", "year", "note")
    columns = choose_columns(set(row), (), {}, where="file", further=further)
    found = to_example(row, columns, place="file:1", rounds=1)
    assert found.fields == {"options": '["a", "b"]', "source": "book", "year": "1999"}
    with pytest.raises(
        DataError, match=r"fields of the benchmark must be among ans.*, got missing"
    ):
        choose_columns(set(row), (), {}, where="file", further=("missing",))
    with pytest.raises(ValueError, match="source must be valid UTF-8"):
        to_example(row | {"source": "\ud800"}, columns, place="file:1", rounds=1)


def test_a_role_without_texts_learns_the_answer():
    found = read(ROW | {"plan": None}, roles=("scout", "solver"))
    assert "scout" not in found.texts and found.texts_to_learn("scout", "solver") == ("4",)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"question": None}, "question must be given, got none"),
        ({"question": " \n"}, "question must not be empty"),
        ({"question": 7}, "question must be text, got 7"),
        ({"answer": ["4"]}, "answer must be text or a finite number, got ['4']"),
        ({"answer": True}, "answer must be text or a finite number, got True"),
        ({"plan": ""}, "plan must not be empty"),
        ({"plan": {"step": 1}}, "plan must be text"),
        ({"plan": ["a", None]}, "plan must be given, got none"),
        ({"plan": ["a", "b"]}, "plan must be one text, or one per round (3), got 2"),
        ({"plan": []}, "plan must be one text, or one per round (3), got 0"),
        (
            {"refined_plan": "as <<LATENT_PLANNER_SLOT>> says"},
            "slot marker, got '<<LATENT_PLANNER_SLOT>>'",
        ),
        ({"question": "\ue000planner\ue001"}, "question must not hold a slot marker"),
        ({"question": "\ud800"}, "question must be valid UTF-8"),
        ({"answer": math.nan}, "answer must be text or a finite number, got nan"),
        ({"answer": -math.inf}, "answer must be text or a finite number, got -inf"),
        ({"id": math.nan}, "id must be text or a finite number, got nan"),
        ({"plan": math.nan}, "plan must be text, got nan"),
    ],
)
def test_bad_rows(change, reason):
    good = ROW | {"id": 7}
    assert read(good, rounds=3).id == "7"
    with pytest.raises(ValueError) as error:
        read(good | change, rounds=3)
    assert reason in str(error.value)


UNUSABLE = [0.5, "hard", "3", True, math.nan, math.inf, 10**12, 2**31, -(2**31) - 1, [1]]


@pytest.mark.parametrize("value", UNUSABLE)
def test_a_difficulty_that_was_chosen_must_fit_and_another_is_left_out(value):
    row = ROW | {"difficulty": value, "level": value}
    assert read(row).difficulty == 0
    for field in ("difficulty", "level"):
        with pytest.raises(ValueError, match=f"{field} must be a whole number of 32 bits, got"):
            read(row, chosen={"difficulty": field})


@pytest.mark.parametrize("chosen", [{}, {"difficulty": "difficulty"}])
def test_a_difficulty_is_a_whole_number_or_missing(chosen):
    for value, wanted in [(3, 3), (3.0, 3), (-2, -2), (2**31 - 1, 2**31 - 1), (None, 0)]:
        found = read(ROW | {"difficulty": value}, chosen=chosen).difficulty
        assert found == wanted and type(found) is int


@pytest.mark.parametrize("content", [["a"], "text", None, 3])
def test_what_is_no_object_is_a_bad_row(content):
    with pytest.raises(ValueError, match="a row must be an object"):
        to_example(content, columns(ROW), place="file:1", rounds=1)


def test_numbers_are_answers():
    assert read(ROW | {"answer": 4}).answer == "4"
    assert read(ROW | {"answer": 0.5}).texts["solver"] == ("0.5",)


def test_whole_numbers_of_a_column_with_gaps_are_written_without_a_point():
    found = read(ROW | {"answer": 3.0, "id": -12.0})
    assert (found.answer, found.texts["solver"], found.id) == ("3", ("3",), "-12")
    assert read(ROW | {"answer": 1e300}).answer == "1e+300"  # not digits that nobody gave
    assert read(ROW | {"answer": 10**400}).answer == f"1{'0' * 400}"  # no float is as large


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("72.00", "72"),
        ("-0.50", "-0.5"),
        ("1E+3", "1000"),
        ("12345678901234567890.1", "12345678901234567890.1"),
    ],
)
def test_decimals_are_numbers(value, text):
    """As databases have them in parquet."""
    assert read(ROW | {"answer": Decimal(value)}).answer == text
    assert read(ROW | {"difficulty": Decimal("3.00")}).difficulty == 3
    with pytest.raises(ValueError, match="must be text or a finite number"):
        read(ROW | {"answer": Decimal("NaN")})


@pytest.mark.parametrize(
    ("present", "chosen", "words"),
    [
        ({"plan", "answer"}, {}, ["question", "query", "plan"]),
        ({"question", "plan"}, {}, ["answer"]),
        (set(), {}, ["question", "none"]),
        ({"question", "answer"}, {"planner": "outline"}, ["planner", "outline", "columns"]),
    ],
)
def test_a_missing_column_is_named(present, chosen, words):
    with pytest.raises(DataError) as error:
        choose_columns(present, SEQUENTIAL, chosen, where="rows.jsonl")
    assert all(word in str(error.value) for word in ["rows.jsonl", *words])


def test_half_a_question_is_not_taken_for_one():
    """Alpaca's files: the instruction would be left out."""
    present = {"instruction", "input", "answer"}
    with pytest.raises(DataError, match=r"rows.jsonl: the question must be in one field, got ins"):
        choose_columns(present, SEQUENTIAL, {}, where="rows.jsonl")
    for field in ("instruction", "input"):
        chosen = choose_columns(present, SEQUENTIAL, {"question": field}, where="rows.jsonl")
        assert chosen.parts["question"] == field
    assert choose_columns(present | {"prompt"}, SEQUENTIAL, {}, where="x").parts["question"] == (
        "prompt"
    )
