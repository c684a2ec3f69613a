"""Files as data sets: every format, splits, bad rows, and refusals."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from rmas_jax.config import DataConfig
from rmas_jax.data import DataError, Example, sources
from rmas_jax.data.loading import load_dataset
from rmas_jax.topology import load_topology

ROLES = ("planner", "critic", "solver")
COUNT = 60


def row(i, **change):
    texts = {"plan": f"Plan {i}.", "refined_plan": f"Better plan {i}."}
    return {"question": f"How much is {i} + {i}?", **texts, "answer": str(2 * i)} | change


ROWS = [row(i) for i in range(COUNT)]


def write(path, rows):
    """A file of rows, in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def load(tmp_path, *, roles=ROLES, rounds=2, **config):
    config = {"dataset": "files"} | config if "files" in config else config
    config = {name: str(v) if name == "dataset" else v for name, v in config.items()}
    return load_dataset(
        DataConfig(**config), roles=roles, rounds=rounds, data_dir=tmp_path / "data"
    )


def everything(task):
    return [row for split in ("train", "validation", "test") for row in task.load(split)]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet"])
def test_every_form_of_file_holds_the_same_rows(tmp_path, name):
    task = load(tmp_path, dataset=write(tmp_path / name, ROWS))
    found = sorted(everything(task), key=lambda row: int(row.answer))
    assert task.text_roles == ROLES
    assert [row.id for row in found] == [f"{name}:{i + 1}" for i in range(COUNT)]
    texts = {"planner": ("Plan 7.",) * 2, "critic": ("Better plan 7.",) * 2, "solver": ("14",) * 2}
    assert found[7] == Example(f"{name}:8", "How much is 7 + 7?", "14", 0, texts)
    assert not task.bad_rows


def test_rows_under_a_field_of_a_json_file(tmp_path):
    file = tmp_path / "rows.json"
    file.write_text(json.dumps({"version": 1, "data": ROWS}))
    assert len(everything(load(tmp_path, dataset=file))) == COUNT


# The layouts in which the hub holds data sets; the published ones themselves were never read.
LAYOUTS = {
    "parquet shards": {
        "data/train-00000-of-00002.parquet": ROWS[:40],
        "data/train-00001-of-00002.parquet": ROWS[40:],
    },
    "json lines": {"train.jsonl": ROWS, "dataset_infos.json": []},
    "json": {"sequential_math.json": ROWS},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["Sequential-Math", "RecursiveMAS/Sequential-Math"])
def test_a_published_data_set(tmp_path, monkeypatch, layout, name):
    for file, rows in LAYOUTS[layout].items():
        write(tmp_path / "snapshot" / file, rows)
    asked = []

    def snapshot_download(repository, **options):  # the hub, which cannot be reached
        asked.append((repository, options["repo_type"]))
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(sources.huggingface_hub, "snapshot_download", snapshot_download)
    found = everything(load(tmp_path, dataset=name))
    assert asked == [("RecursiveMAS/Sequential-Math", "dataset")]
    assert {row.question for row in found} == {row["question"] for row in ROWS}
    # A local folder replaces it.
    local = everything(load(tmp_path, dataset=tmp_path / "snapshot"))
    assert local == found and len(asked) == 1


# Rows as the release describes them, by topology; all have question and answer.
SHAPES = {
    "sequential": {"planner": "plan", "critic": "refined_plan"},
    "mixture": {f: f"hie_{f}_expert" for f in ("math", "code", "science")},
    "distillation": {"expert": "distill_expert", "learner": "distill_learner"},
    "deliberation": {"reflector": "deliberation_reflector"},
}


@pytest.mark.parametrize("topology", SHAPES)
def test_every_released_topology_finds_its_texts(tmp_path, topology):
    fields, roles = SHAPES[topology], load_topology(topology).order
    rows = [
        {"question": f"{i}?", "answer": f"{i}."} | {f: f"{f} {i}" for f in fields.values()}
        for i in range(COUNT)
    ]
    task = load(tmp_path, dataset=write(tmp_path / "train.parquet", rows), roles=roles, rounds=1)
    assert set(task.text_roles) == set(roles)
    for item in everything(task):
        number = item.question.rstrip("?")
        for role in roles:
            text = f"{fields[role]} {number}" if role in fields else f"{number}."
            assert item.texts[role] == (text,)


def test_without_the_hub_a_published_data_set_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"Mixture-Outer.*nor available from the hub"):
        load(tmp_path, dataset="Mixture-Outer")  # the tests are offline


def test_splits_are_disjoint_and_depend_on_the_question_alone(tmp_path):
    rows = [row(i) for i in range(400)]
    task = load(tmp_path, dataset=write(tmp_path / "a.jsonl", rows), test_share=0.25)
    splits = {split: task.load(split) for split in ("train", "validation", "test")}
    asked = {split: {row.question for row in found} for split, found in splits.items()}
    assert sum(map(len, asked.values())) == len(set().union(*asked.values())) == 400
    assert 70 < len(asked["test"]) < 130 and 20 < len(asked["validation"]) < 65
    # Another order, other texts, more rows and other spaces: every question stays where it was.
    changed = [row(i, plan="P", question=f"How  much is {i} + {i}? ") for i in range(450)][::-1]
    other = load(tmp_path, dataset=write(tmp_path / "b.parquet", changed), test_share=0.25)
    for split, questions in asked.items():
        found = {" ".join(row.question.split()) for row in other.load(split)}
        assert questions < found


def test_a_part_of_a_split(tmp_path):
    task = load(tmp_path, dataset=write(tmp_path / "rows.jsonl", ROWS))
    assert task.load("train[:5]") == task.load("train")[:5]
    assert list(task.read("train")[2:5]) == task.load("train")[2:5]
    assert task.read("train")[2:][-1] == task.load("train")[-1]
    with pytest.raises(ValueError, match=r"'validation'.*'tset'"):
        task.load("tset")


def test_a_file_per_split(tmp_path):
    bare = [{"question": f"{i} * 2?", "answer": 2 * i} for i in range(9)]  # no role texts
    files = {
        "train": write(tmp_path / "a.jsonl", ROWS[:40]),
        "validation": write(tmp_path / "b.json", ROWS[40:]),
        "test": write(tmp_path / "c.jsonl", bare),
        "test_hard": write(tmp_path / "d.jsonl", bare[:3] + ROWS[:2]),
    }
    task = load(tmp_path, files={split: str(file) for split, file in files.items()})
    sizes = {split: len(task.load(split)) for split in files}
    # What is tested is not trained on; of two test files, the first keeps a question.
    assert sizes == {"train": 38, "validation": 20, "test": 9, "test_hard": 2}
    assert [(bad.file, bad.line, bad.reason) for bad in task.bad_rows] == [
        *(("d.jsonl", i, "the same question is in test") for i in (1, 2, 3)),
        *(("a.jsonl", i, "the same question is in test_hard") for i in (1, 2)),
    ]
    assert "planner" not in task.load("test")[0].texts
    # Validation is taken from the training file, where it has no file of its own.
    del files["validation"]
    task = load(tmp_path, files={split: str(file) for split, file in files.items()})
    assert len(task.load("train")) + len(task.load("validation")) == 38


@pytest.mark.parametrize(
    ("copy", "more"),
    [
        ("train copy.jsonl", "test (1).jsonl"),  # of a file manager
        ("all/train.jsonl", "all/test.jsonl"),  # configurations of a data set, as of MMLU
    ],
)
def test_copies_of_files_do_not_count_twice(tmp_path, copy, more):
    tested = [{"question": f"{i} * 2?", "answer": 2 * i} for i in range(9)]
    folder = tmp_path / "rows"
    for name, rows in [("train.jsonl", ROWS), ("test.jsonl", tested)]:
        write(folder / name, rows)
    alone = load(tmp_path, dataset=folder)
    write(folder / copy, ROWS)
    # Another answer to the same question: a second item all the same.
    write(folder / more, [item | {"answer": "none"} for item in tested])
    task = load(tmp_path, dataset=folder)
    for split in ("train", "validation", "test"):
        questions = sorted(row.question for row in alone.load(split))
        assert sorted(row.question for row in task.load(split)) == questions
    assert len(task.bad_rows) == COUNT + 9
    assert {bad.reason.partition(" is in ")[0] for bad in task.bad_rows} == {
        "the same row",
        "the same question",
    }


def test_several_texts_for_a_question_are_all_trained_on(tmp_path):
    folder = tmp_path / "rows"
    write(folder / "train-0.jsonl", ROWS + ROWS[:1])  # twice within a file: its author's will
    write(folder / "train-1.jsonl", [row | {"plan": "Another plan."} for row in ROWS])
    task = load(tmp_path, dataset=folder, test_share=0.0)
    assert len(task.load("train") + task.load("validation")) == 2 * COUNT + 1
    assert not task.bad_rows


def test_roles_without_texts_and_with_texts_of_another(tmp_path):
    file = write(tmp_path / "rows.jsonl", ROWS)
    roles = ("planner", "reviewer", "judge")
    task = load(tmp_path, dataset=file, roles=roles)
    assert task.text_roles == ("planner", "judge")
    assert "reviewer" not in task.load("train[:1]")[0].texts
    task = load(tmp_path, dataset=file, roles=roles, columns={"reviewer": "refined_plan"})
    assert task.load("train[:1]")[0].texts["reviewer"][0].startswith("Better plan")


def test_the_embedded_task_serves_other_roles(tmp_path):
    task = load_dataset(
        DataConfig(columns={"opener": "plan"}),
        roles=("opener", "judge"),
        rounds=2,
        data_dir=tmp_path,
    )
    assert set(task.text_roles) == {"opener", "judge"}
    item = task.load("test[:1]")[0]
    assert item.texts["judge"] == (item.answer,) * 2
    assert len(set(item.texts["opener"])) > 1
    with pytest.raises(DataError, match=r"rounds must be at most 4 .*, got 5"):
        load_dataset(DataConfig(), roles=ROLES, rounds=5, data_dir=tmp_path)


def test_bad_rows_are_listed_and_left_out(tmp_path):
    rows = [*ROWS, row(60, plan=""), row(61, id="x"), row(61, id="x", answer="?")]
    file = write(tmp_path / "rows.jsonl", rows)
    file.write_text(file.read_text() + "\n{not json\n[1]\n")
    for _ in range(2):  # also where the data was prepared before
        task = load(tmp_path, dataset=file)
        bad = {bad.line: bad.reason for bad in task.bad_rows}
        assert set(bad) == {61, 63, 65, 66} and len(everything(task)) == COUNT + 1
        assert bad[61] == "plan must not be empty"
        assert bad[63] == "id must be unique, got 'x' again"
        assert bad[65].startswith("not JSON") and bad[66] == "a row must be an object, got [1]"
    assert {bad.file for bad in task.bad_rows} == {"rows.jsonl"}


def test_changed_files_and_settings_are_other_data(tmp_path):
    file = write(tmp_path / "rows.jsonl", ROWS)
    first = load(tmp_path, dataset=file)
    assert load(tmp_path, dataset=file).version == first.version
    versions = {first.version, load(tmp_path, dataset=file, rounds=3).version}
    versions.add(load(tmp_path, dataset=file, test_share=0.2).version)
    versions.add(load(tmp_path, dataset=file, roles=("planner", "solver")).version)
    write(file, [*ROWS[:-1], row(COUNT - 1, answer="many")])
    changed = load(tmp_path, dataset=file)
    assert len({*versions, changed.version}) == 5
    assert "many" in [row.answer for row in everything(changed)]


@pytest.mark.parametrize(
    ("names", "validation"),
    [
        (["train-00000-of-00002", "train-00001-of-00002", "dev", "test-00000-of-00001"], True),
        (["train/0", "train/1", "validation/0", "test/0"], True),
        (["math_train_a", "math_train_b", "math-valid", "math.test"], True),
        (["rows", "more_rows", "valid", "evaluation"], True),  # what names no split is train
        (["Training1", "Training2", None, "testing"], False),
    ],
)
def test_files_of_a_folder_are_split_by_their_names(tmp_path, names, validation):
    parts = [ROWS[:20], ROWS[20:40], ROWS[40:50], ROWS[50:]]
    for name, rows in zip(names, parts, strict=True):
        if name:
            write(tmp_path / "rows" / f"{name}.jsonl", rows)
    task = load(tmp_path, dataset=tmp_path / "rows")
    asked = {split: {r.question for r in task.load(split)} for split in ("train", "test")}
    assert asked["test"] == {row["question"] for row in parts[3]}
    held = {row.question for row in task.load("validation")}
    if validation:
        assert asked["train"] == {row["question"] for row in ROWS[:40]}
        assert held == {row["question"] for row in parts[2]}
    else:  # taken from the training files
        assert asked["train"] | held == {row["question"] for row in ROWS[:40]}


def test_a_folder_that_leaves_open_what_is_read_is_refused(tmp_path):
    def refused(folder, **config):
        with pytest.raises(DataError) as error:
            load(tmp_path, **config)
        assert str(tmp_path / folder) in str(error.value) and "data.files" in str(error.value)
        return str(error.value)

    write(tmp_path / "formats" / "a.jsonl", ROWS)
    write(tmp_path / "formats" / "more" / "b.parquet", ROWS)
    assert "must be of one format, got .parquet and .jsonl" in refused(
        "formats", dataset=tmp_path / "formats"
    )
    write(tmp_path / "tests" / "test.jsonl", ROWS)
    assert "must include train, got test" in refused("tests", dataset=tmp_path / "tests")
    # A split that is given a folder has all of its files, so they must be of one split.
    both = tmp_path / "both"
    parts = {"train": ROWS[:40], "test": ROWS[40:]}
    files = {split: write(both / f"{split}.jsonl", rows) for split, rows in parts.items()}
    message = refused("both", files={"train": str(both)})
    assert "must be of one split, got train, test" in message
    assert load(tmp_path, files={split: str(file) for split, file in files.items()})
    assert load(tmp_path, files={"train": str(tmp_path / "tests")})  # as configured


@pytest.mark.parametrize(
    ("rows", "config", "words"),
    [
        ([], {}, ["question", "got fields none"]),
        ([row(1, plan="")], {}, ["got 1 bad ones", "line 1: plan must not be empty"]),
        ([{"answer": "1"}], {}, ["the question must be in a field"]),
        (ROWS, {"columns": {"critic": "better"}}, ["critic", "better", "refined_plan"]),
        (
            ROWS,
            {"columns": {"judge": "plan"}},
            ["data.columns must be among", "planner", "got judge"],
        ),
        (ROWS[:2], {}, ["must have a row, got none", "0.1 of 2 rows"]),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_message(tmp_path, rows, config, words):
    with pytest.raises(DataError) as error:
        load(tmp_path, dataset=write(tmp_path / "rows.jsonl", rows), **config)
    assert all(word in str(error.value) for word in words)
    assert not list(tmp_path.glob("data/*/role_texts/[0-9]*"))  # nothing half written


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "rows.csv").write_text("question,answer")
    (tmp_path / "cut.json").write_text("[{")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "two.json").write_text('{"a": [], "b": []}')
    for name, words in {
        "nowhere.jsonl": "must be relay, files",
        "Sequential-Maths": "Sequential-Math",
        "empty": ", got none",
        "rows.csv": "the question must be in a field",
        "cut.json": "cannot be read",
        "cut.parquet": "cannot be read",
        "two.json": "one such list",
    }.items():
        with pytest.raises(DataError) as error:
            load(tmp_path, dataset=tmp_path / name)
        assert words in str(error.value) and name in str(error.value)


def test_validation_has_the_roles_of_training(tmp_path):
    files = {
        "train": str(write(tmp_path / "a.jsonl", ROWS)),
        "validation": str(write(tmp_path / "b.jsonl", [{"question": "1 + 0?", "answer": "1"}])),
    }
    with pytest.raises(DataError, match=r"b\.jsonl: must have texts of critic, planner"):
        load(tmp_path, files=files)


@pytest.mark.parametrize(
    ("indent", "words"),
    [(1, "line 1: must be JSON, got"), (None, "line 1: must be an object, got [")],
)
def test_a_list_in_a_file_of_json_lines_is_told_by_its_first_line(tmp_path, indent, words):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(ROWS, indent=indent))
    with pytest.raises(DataError) as error:
        load(tmp_path, dataset=file)
    assert words in str(error.value) and "got fields" not in str(error.value)
