"""Where the files of a data set come from, and what is said where they do not."""

import csv
import dataclasses
import json
import logging

import httpx2
import huggingface_hub
import pyarrow.parquet
import pytest
from benchmark_files import FILES, write_benchmark, write_data
from huggingface_hub import errors

from rmas_jax.config import (
    BenchmarkConfig,
    ConfigError,
    DataConfig,
    load_benchmark_config,
    load_config,
)
from rmas_jax.data import DataError
from rmas_jax.data.loading import load_dataset
from rmas_jax.data.reading import read_csv_rows
from rmas_jax.evaluation.benchmarks import find_benchmarks, shipped
from rmas_jax.evaluation.benchmarks.loading import checksum_of, load_benchmark

GPQA = shipped()["GPQA-Diamond"]


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """No local copies, and an empty current folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("RMAS_DATA", raising=False)


def load(tmp_path, benchmark=GPQA):
    return load_benchmark(benchmark, tmp_path / "prepared")


def refused(tmp_path, benchmark=GPQA):
    with pytest.raises(DataError) as error:
        load(tmp_path, benchmark)
    message = str(error.value)
    assert message.startswith(f"{benchmark.name}: ") and len(message) < 1000
    return message


def hub(monkeypatch, answer):
    """Puts a function of the request in place of the hub; returns the list of requests."""
    asked = []

    def snapshot_download(repository, **options):
        asked.append((repository, options))
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def of_number(benchmark, count):
    return dataclasses.replace(benchmark, items={split: count for split in benchmark.items})


def test_a_hub_id_is_read_at_its_revision(tmp_path, monkeypatch):
    asked = hub(monkeypatch, write_data("GPQA-Diamond", tmp_path / "snapshot"))
    data = load(tmp_path, of_number(GPQA, 3))
    assert {e.id for e in data.load("test")} == {"rec1", "rec2", "rec3"}
    assert asked == [
        (
            "Idavidrein/gpqa",
            {
                "repo_type": "dataset",
                "revision": GPQA.data.revision,
                "allow_patterns": ["gpqa_diamond.csv"],
            },
        )
    ]


def test_a_local_copy_comes_first_and_is_the_same_data(tmp_path, monkeypatch):
    asked = hub(monkeypatch, write_data("GPQA-Diamond", tmp_path / "snapshot"))
    of_hub = load(tmp_path, of_number(GPQA, 3))
    write_data("GPQA-Diamond", tmp_path / "copies" / "Idavidrein" / "gpqa")
    monkeypatch.setenv("RMAS_DATA", str(tmp_path / "copies"))
    local = load(tmp_path, of_number(GPQA, 3))
    assert len(asked) == 1 and local.version == of_hub.version
    assert local.load("test") == of_hub.load("test")


def http(kind):
    request = httpx2.Request("GET", "https://huggingface.co/api/datasets/Idavidrein/gpqa")
    return kind("no", response=httpx2.Response(403, request=request))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            http(errors.GatedRepoError),
            [
                "it is gated: accept its conditions at https://huggingface.co/datasets/Idavidrein/gpqa"
            ],
        ),
        (http(errors.RepositoryNotFoundError), ["or a private one: correct the id"]),
        (http(errors.RevisionNotFoundError), ["no revision '633f5ee8", "correct data.revision"]),
        (errors.LocalEntryNotFoundError("no"), ["the hub cannot be reached"]),
        (ConnectionError("no"), ["the hub cannot be reached"]),
        (RuntimeError("of\na kind"), ["of a kind"]),
    ],
)
def test_each_error_of_the_hub_says_what_to_do(tmp_path, monkeypatch, error, words):
    hub(monkeypatch, error)
    message = refused(tmp_path)
    assert all(word in message for word in words)
    assert "or put gpqa_diamond.csv into $RMAS_DATA/Idavidrein/gpqa" in message
    assert "RMAS_DATA is not set" in message and "`hf auth login`" in message


def test_without_network_the_real_hub_library_gives_the_same(tmp_path):
    assert "the hub cannot be reached" in refused(tmp_path)  # the tests are offline


def test_a_data_set_that_is_not_on_the_hub_says_how_to_get_it(tmp_path, monkeypatch):
    medqa = shipped()["MedQA"]
    message = refused(tmp_path, medqa)
    assert "a folder's name below $RMAS_DATA, got 'MedQA'" in message
    assert "(access: copy dataset/medqa.json of https://github.com/" in message
    write_data("MedQA", tmp_path / "copies" / "MedQA")
    monkeypatch.setenv("RMAS_DATA", str(tmp_path / "copies"))
    assert load(tmp_path, of_number(dataclasses.replace(medqa, checksum=None), 3)).sizes == {
        "test": 3
    }


def changed(name, folder, change):
    """A benchmark whose first file is changed by a function of its path."""
    file = write_benchmark(name, folder)
    change(folder / "data" / name / next(iter(FILES[name])))
    return load_benchmark_config(file)


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def one_gold_changed(path):
    rows = pyarrow.parquet.read_table(path).to_pylist()
    rows[1]["answer"] += "0"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def without_last_line(path):
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def with_column_renamed(path):
    path.write_text(path.read_text().replace("Correct Answer", "Right Answer", 1))


def without_a_value(path):
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    rows[1]["Incorrect Answer 2"] = ""
    with open(path, "w", newline="") as out:
        writer = csv.DictWriter(out, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("AIME-2026", cut, ["train-00000-of-00001.parquet: cannot be read", "fetch it again"]),
        ("GPQA-Diamond", cut, ["gpqa_diamond.csv: cannot be read: line "]),
        (
            "MATH-500",
            cut,
            ["test must have 3 items, got 2; 1 bad rows", "test.jsonl, line 3: not JSON"],
        ),
        (
            "AIME-2025",
            without_last_line,
            ["test must have 3 items, got 2; its files may be cut off", "a file of your own with"],
        ),
        (
            "GPQA-Diamond",
            with_column_renamed,
            ["(test): the columns must include 'Correct Answer', which", "Right Answer, Subdomain"],
        ),
        (
            "GPQA-Diamond",
            without_a_value,
            ["gpqa_diamond.csv, line 2: Incorrect Answer 2 must be given, got none"],
        ),
        (
            "MATH-500",
            lambda path: path.write_text(path.read_text().replace('"problem"', '"task"')),
            ["the question must be in a field problem, got fields answer"],
        ),
        ("GPQA-Diamond", lambda path: path.unlink(), ["must hold 'gpqa_diamond.csv'"]),
    ],
)
def test_damaged_files_are_refused(tmp_path, name, change, words):
    message = refused(tmp_path, changed(name, tmp_path, change))
    assert all(word in message for word in words), message


def test_more_items_are_refused(tmp_path):
    benchmark = load_benchmark_config(write_benchmark("GSM8K", tmp_path))
    message = refused(tmp_path, dataclasses.replace(benchmark, items={"test": 2}))
    assert "test must have 2 items, got 3; its files may be cut off or of another v" in message


def test_other_questions_are_refused_with_both_checksums_and_the_way_out(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    benchmark = load_benchmark_config(write_benchmark("GSM8K", tmp_path))
    found = checksum_of(load(tmp_path, benchmark).load("test"))
    pinned = f"checksum: {{test: '{found}'}}"
    # Without a checksum, the one to state is named.
    assert "GSM8K: test has no checksum to compare with" in caplog.text and pinned in caplog.text
    caplog.clear()
    load(tmp_path, dataclasses.replace(benchmark, checksum={"test": found}))
    assert "checksum" not in caplog.text
    message = refused(tmp_path, dataclasses.replace(benchmark, checksum={"test": "0" * 16}))
    assert f"the checksum of test must be {'0' * 16}, got {found}" in message
    assert f"fetch its files again, or measure on these with {pinned} in its entry of" in message
    config = load_config("quickstart", [f"evaluation.benchmarks=[{{name: GSM8K, {pinned}}}]"])
    (chosen,) = find_benchmarks(config)
    assert chosen.checksum == {"test": found}
    # One gold answer of 3 differs: the same number, another benchmark.
    other = changed("GSM8K", tmp_path, one_gold_changed)
    refused(tmp_path, dataclasses.replace(other, checksum={"test": found}))


def test_seed_and_rule_make_other_data(tmp_path):
    file = write_benchmark("GPQA-Diamond", tmp_path)
    found = {}
    for seed in (42, 43):
        benchmark = load_benchmark_config(file)
        data = dataclasses.replace(benchmark.data, seed=seed)
        found[seed] = load(tmp_path, dataclasses.replace(benchmark, data=data))
    assert found[42].version != found[43].version
    assert found[42].load("test") != found[43].load("test")


def test_documents_of_hotpotqa_are_an_option(tmp_path):
    benchmark = load_benchmark_config(write_benchmark("HotpotQA", tmp_path))
    data = dataclasses.replace(benchmark.data, rule="hotpotqa_context")
    for example in load(tmp_path, dataclasses.replace(benchmark, data=data)).load("validation"):
        assert example.question.startswith("Documents:\n\n[1] Company 7")
        assert example.answer.startswith("the City of ")


def test_a_rule_serves_training_data_too(tmp_path):
    rows = [
        row | {"question": f"{i}: {row['question']}"}
        for i in range(20)
        for row in FILES["GSM8K"]["main/test-00000-of-00001.parquet"]
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig(
        dataset=str(tmp_path / "train.jsonl"), rule="gsm8k", columns={"solver": "solution"}
    )
    data = load_dataset(config, roles=("planner", "solver"), rounds=1, data_dir=tmp_path)
    for example in data.load("train"):
        assert example.texts["solver"][0].endswith(f"#### {int(example.answer):,}")
    with pytest.raises(DataError, match="the answer must be in a field"):
        write_data("LiveCodeBench-v6", tmp_path / "lcb")
        config = DataConfig(
            dataset=str(tmp_path / "lcb"), patterns={"train": "*.jsonl"}, rule="livecodebench"
        )
        load_dataset(config, roles=("solver",), rounds=1, data_dir=tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1\n", "line 2: must have as many values as the header"),
        ("a,b\n1,2,3\n", "line 2: must have as many values as the header"),
        ('a,b\n1,"2\n', "cannot be read: line 1: unexpected end of data"),
        ("a,b\n1,\udcff\n", "invalid start byte"),
    ],
)
def test_a_csv_file_that_does_not_fit_its_header_is_refused(tmp_path, text, words):
    path = tmp_path / "rows.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=words):
        list(read_csv_rows(path))


def test_rows_of_a_csv_file(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('\ufeffa,b\r\n"x, ""y""\nz",\r\n', newline="")
    assert list(read_csv_rows(path)) == [{"a": 'x, "y"\nz', "b": None}]


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (
            "{dataset: relay, revision: a}",
            "data.revision must be null with dataset: relay, got 'a'",
        ),
        ("{dataset: a/b, patterns: {}}", "data.patterns must name at least one split"),
        ("{dataset: reasoning-gym}", "data.generators must be set with dataset: reasoning-gym"),
        (
            "{dataset: a/b, generators: {dice: 3}}",
            "data.generators must be set with dataset: reasoning-gym",
        ),
        (
            "{dataset: relay, splits: {train: 3}}",
            "data.splits must be null without dataset: reasoning-gym, got train",
        ),
        (
            "{dataset: reasoning-gym, generators: {dice: 3}, splits: {test: 3, train: 2}}",
            "data.splits must be of train, validation or both, got test, train",
        ),
        (
            "{dataset: reasoning-gym, generators: {dice: 3}, splits: {}}",
            "data.splits must be of train, validation or both, got none",
        ),
        (
            "{dataset: reasoning-gym, generators: {dice: 3}, splits: {train: 0}}",
            "data.splits.train must be",
        ),
        (
            "{dataset: a/b, generators: [dice]}",
            "must be a mapping of names to whole numbers or null",
        ),
        (
            "{dataset: relay, rule: gsm8k}",
            "data.rule must be null with dataset: relay, got 'gsm8k'",
        ),
        (
            "{dataset: a/b, rule: gpqa, columns: {answer: b}}",
            "data.columns must leave the answer to the rule gpqa",
        ),
    ],
)
def test_settings_of_no_use_are_refused(tmp_path, section, words):
    file = tmp_path / "mine.yaml"
    file.write_text(f"name: mine\ndata: {section}\n")
    with pytest.raises(ConfigError, match=words):
        load_benchmark_config(file)


@pytest.mark.parametrize("field", ["items", "checksum"])
def test_a_split_that_is_not_there_is_named(tmp_path, field):
    benchmark = load_benchmark_config(write_benchmark("GSM8K", tmp_path))
    values = {"items": {"tset": 2}, "checksum": {"tset": "0" * 16}}[field]
    with pytest.raises(DataError, match=f"GSM8K: {field} must be of the splits .*test.*got tset"):
        load(tmp_path, dataclasses.replace(benchmark, **{field: values}))


def broken_split(folder, kind):
    """A folder with a good test split, and a train split that cannot be used."""
    folder.mkdir(parents=True)
    rows = [{"question": f"{i}?", "answer": str(i)} for i in range(3)]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = folder / "train.jsonl"
    if kind == "cut off":
        train.write_text('{"question": "1')
    elif kind == "other columns":
        train.write_text('{"a": 1}\n')
    elif kind == "a link to nothing":
        train.symlink_to(folder / "gone")
    return train


BROKEN = ("cut off", "other columns", "a link to nothing", "missing")


@pytest.mark.parametrize("named_by", ["the folder", "files", "patterns"])
@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_split_counts_only_where_it_is_used(tmp_path, kind, named_by):
    train = broken_split(tmp_path / "mine", kind)
    if named_by == "the folder" and kind == "missing":
        pytest.skip("then there is no such split")
    data = {
        "the folder": {"dataset": str(tmp_path / "mine")},
        "files": {
            "dataset": "files",
            "files": {"test": str(tmp_path / "mine" / "test.jsonl"), "train": str(train)},
        },
        "patterns": {
            "dataset": str(tmp_path / "mine"),
            "patterns": {"test": "test*.jsonl", "train": "train*.jsonl"},
        },
    }[named_by]
    benchmark = BenchmarkConfig(
        name="mine", data=DataConfig(**data), items={"test": 3, "train": 100}, splits=("test[:2]",)
    )
    found = load(tmp_path, benchmark)
    assert dict(found.sizes) == {"test": 3} and list(found.unread) == ["train"]
    assert len(found.load("test[:2]")) == 2
    refused(tmp_path, dataclasses.replace(benchmark, splits=("test", "train")))


def test_data_are_the_same_whichever_splits_are_read(tmp_path):
    train = broken_split(tmp_path / "mine", "missing")
    train.write_text('{"question": "10?", "answer": "10"}\n')
    benchmark = BenchmarkConfig(
        name="mine", data=DataConfig(dataset=str(tmp_path / "mine"), validation_share=0.0)
    )
    part, both = (
        load(tmp_path, dataclasses.replace(benchmark, splits=splits))
        for splits in (("test",), ("test", "train"))
    )
    assert part.version == both.version and part.load("test") == both.load("test")
    assert dict(part.sizes) == {"test": 3} and dict(both.sizes) == {"test": 3, "train": 1}
    train.write_text('{"question": "11?", "answer": "11"}\n')
    assert load(tmp_path, benchmark).version != part.version


def test_a_revision_of_a_local_folder_is_refused(tmp_path, monkeypatch):
    broken_split(tmp_path / "here" / "mine", "missing")
    message = "data.revision must be null for a local file or folder, got 'v1' for "
    for name in (str(tmp_path / "here" / "mine"), "mine", "mine/test.jsonl"):
        data = DataConfig(dataset=name, revision="v1")
        benchmark = BenchmarkConfig(name="mine", data=data)
        monkeypatch.setenv("RMAS_DATA", str(tmp_path / "copies"))
        assert f"{message}{name!r}" in refused(tmp_path, benchmark)
        with pytest.raises(DataError, match=message):
            load_dataset(data, roles=("solver",), rounds=1, data_dir=tmp_path)
    broken_split(tmp_path / "copies" / "mine", "missing")  # of the hub's data: has its revision
    data = DataConfig(dataset="mine", revision="v1")
    assert dict(load(tmp_path, BenchmarkConfig(name="mine", data=data)).sizes) == {"test": 3}


@pytest.mark.parametrize("pattern", ["../*.jsonl", "/etc/*.json", "a/../../b.jsonl"])
def test_patterns_stay_in_their_folder(tmp_path, pattern):
    (tmp_path / "mine").mkdir()
    config = DataConfig(dataset=str(tmp_path / "mine"), patterns={"test": pattern})
    with pytest.raises(DataError, match=r"data\.patterns\.test must be names of files below"):
        load_dataset(config, roles=(), rounds=1, data_dir=tmp_path / "data")
