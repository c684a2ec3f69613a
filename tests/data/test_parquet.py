"""Parquet: the same rows as pyarrow's own reader, within bounds, and whatever is damaged."""

import random

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from rmas_jax.data import DataError, parquet
from rmas_jax.data.parquet import decoded_size, open_parquet

COUNT = 300
ROWS = [
    {
        "text": f"text {i % 7}",
        "texts": [f"one {i}", "two"] if i % 3 else None,
        "whole": i,
        "part": i / 2,
        "object": {"a": "x" * (i % 5)},
        "none": None,
        "lists": [["a"], ["b", None]],
        "bytes": b"x",
        "gaps": None if i % 2 else "z",
        "a.b": f"dotted {i}",
    }
    for i in range(COUNT)
]
OTHERS = {
    "dictionary": pyarrow.array(["k"] * COUNT).dictionary_encode(),
    "numbers": pyarrow.array([7] * COUNT).dictionary_encode(),
    "large": pyarrow.array(["k"] * COUNT, pyarrow.large_string()),
    "view": pyarrow.array(["k" * 30] * COUNT, pyarrow.string_view()),
    "time": pyarrow.array([10**15] * COUNT, pyarrow.timestamp("us")),
    "map": pyarrow.array([[("a", "b")]] * COUNT, pyarrow.map_(pyarrow.string(), pyarrow.string())),
    "decimal": pyarrow.array(["1.5"] * COUNT).cast(pyarrow.decimal128(10, 2)),
    "large_list": pyarrow.array([["x"]] * COUNT, pyarrow.large_list(pyarrow.large_string())),
    "pair": pyarrow.array([["x", "y"]] * COUNT, pyarrow.list_(pyarrow.string(), 2)),
    "null": pyarrow.nulls(COUNT),
}
TABLE = pyarrow.Table.from_pylist(ROWS)
for _name, _column in OTHERS.items():
    TABLE = TABLE.append_column(_name, _column)


def read(path, fields=None):
    with open_parquet(path) as file:
        return list(file.rows(file.fields if fields is None else fields))


def refused(path, fields=None):
    with pytest.raises(DataError) as error:
        read(path, fields)
    assert str(path) in str(error.value) and len(str(error.value)) < 2000
    return str(error.value)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dictionary": False},
        {"row_group_size": 70},
        {"dictionary_pagesize_limit": 200, "data_page_size": 300},  # dictionaries are given up
        {"compression": "zstd", "version": "1.0", "data_page_version": "2.0"},
    ],
)
def test_rows_are_those_of_pyarrow(tmp_path, monkeypatch, options):
    monkeypatch.setattr(parquet, "BATCH_ROWS", 64)
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(TABLE, path, **options)
    assert read(path) == pyarrow.parquet.read_table(path).to_pylist()
    texts = [{"text": row["text"], "a.b": row["a.b"]} for row in ROWS]
    assert read(path, ["a.b", "elsewhere", "text"]) == texts


@pytest.mark.parametrize("name", ["text", "texts", "object", "lists", "large_list", "pair"])
def test_sizes_are_those_of_the_values(name):
    def size(value):
        if isinstance(value, str):
            return len(value)
        inner = value.values() if isinstance(value, dict) else value or ()
        return sum(map(size, inner))

    column = TABLE[name].combine_chunks()
    texts = size(column.to_pylist())
    found = decoded_size(column.slice(0, 0)), decoded_size(column)
    assert found[0] < 64 and texts <= found[1] <= texts + 64 * COUNT  # offsets are counted, too


def test_a_value_counts_as_often_as_it_is_used():
    value = "x" * 1000
    one = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 500, "int32"), [value])
    assert decoded_size(one) == 500_000 and decoded_size(one.slice(0, 3)) == 3000
    gaps = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0, None, 0], "int32"), [value])
    assert decoded_size(gaps) == 2000


def test_three_hundred_million_nulls_are_refused_unread(tmp_path):
    path, count = tmp_path / "nulls.parquet", 3 * 10**7
    schema = pyarrow.schema([("question", pyarrow.string())])
    table = pyarrow.table({"question": pyarrow.nulls(count, pyarrow.string())})
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for _ in range(10):
            writer.write_table(table, row_group_size=count)
    assert "must have at most 5,000,000 rows, has 300,000,000" in refused(path)
    one = pyarrow.array([[None] * (parquet.VALUE_LIMIT + 1)], pyarrow.list_(pyarrow.string()))
    pyarrow.parquet.write_table(pyarrow.table({"plan": one}), path)
    assert "plan.list.element must have at most 5,000,000 values" in refused(path)
    assert read(path, []) == [{}]  # of columns that nobody reads nothing is said


@pytest.mark.parametrize("is_list", [False, True])
def test_one_large_value_in_ten_thousand_rows_is_refused_undecoded(tmp_path, is_list):
    path, count = tmp_path / "bomb.parquet", 10_000
    places = pyarrow.array([0] * count, "int32")
    column = pyarrow.DictionaryArray.from_arrays(places, ["x" * 10**6])  # 10 GB
    if is_list:  # in one row
        column = pyarrow.ListArray.from_arrays(pyarrow.array([0, count], "int32"), column)
    pyarrow.parquet.write_table(pyarrow.table({"question": column}), path)
    assert path.stat().st_size < 10**6
    before = pyarrow.default_memory_pool().max_memory()
    assert "must decode to at most 1 GiB" in refused(path)
    assert pyarrow.default_memory_pool().max_memory() < before + 2**27


def test_a_packed_column_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "DECODED_LIMIT", 10**6)
    path = tmp_path / "bomb.parquet"
    table = pyarrow.table({"question": ["x" * 10**6 + str(i) for i in range(3)], "a": [1, 2, 3]})
    pyarrow.parquet.write_table(table, path, compression="zstd", use_dictionary=False)
    assert "must decode to at most 976.6 KiB" in refused(path)
    assert read(path, ["a"]) == [{"a": 1}, {"a": 2}, {"a": 3}]


def test_a_value_that_cannot_be_read_is_its_rows_fault(tmp_path):
    path = tmp_path / "a.parquet"
    texts = pyarrow.array([b"good", b"\xff\xfe", b"\xed\xa0\x80"]).view(pyarrow.string())
    times = pyarrow.array([0, 0, 2**62], pyarrow.timestamp("us"))
    pyarrow.parquet.write_table(pyarrow.table({"question": texts, "when": times}), path)
    good, *bad = read(path, ["question"])
    assert good == {"question": "good"}
    assert all(isinstance(row, ValueError) and "question: cannot" in str(row) for row in bad)
    assert read(path, ["when"])[0].keys() == {"when"}
    assert "when: cannot be read" in str(read(path, ["when"])[2])


def test_a_column_that_is_there_twice_is_refused_where_it_is_read(tmp_path):
    path = tmp_path / "a.parquet"
    table = pyarrow.Table.from_arrays(
        [pyarrow.array(["a"])] * 3, ["question", "question", "answer"]
    )
    pyarrow.parquet.write_table(table, path)
    assert "more than one column called 'question'" in refused(path)
    assert read(path, ["answer"]) == [{"answer": "a"}]


@pytest.mark.parametrize("seed", range(4))
def test_no_change_of_bytes_ends_in_another_error(tmp_path, seed):
    path, draw = tmp_path / "a.parquet", random.Random(seed)
    pyarrow.parquet.write_table(TABLE, path)
    whole = path.read_bytes()
    is_read = 0
    for _ in range(50):
        content = bytearray(whole)
        for _ in range(draw.choice([1, 1, 3, 20])):
            tail = draw.random() < 0.5  # where the file says what it holds
            place = (
                len(content) - 1 - draw.randrange(6000) if tail else draw.randrange(len(content))
            )
            content[place] = draw.choice([content[place] ^ (1 << draw.randrange(8)), 0, 255, 127])
        if draw.random() < 0.2:
            del content[draw.randrange(len(content)) :]
        path.write_bytes(content)
        try:
            read(path)
            is_read += 1
        except DataError as error:
            assert str(path) in str(error)
    assert 0 < is_read < 50


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_texts_that_are_written_as_differences_are_read(tmp_path, encoding):
    """As Spark and Arrow's Rust writer have them in version 2 of parquet."""
    path = tmp_path / "x.parquet"
    table = TABLE.select(["text", "gaps", "whole"])
    options = {"column_encoding": {"text": encoding, "gaps": encoding}}
    pyarrow.parquet.write_table(table, path, use_dictionary=False, row_group_size=100, **options)
    assert read(path) == table.to_pylist()


def test_a_text_that_differences_repeat_is_bounded(tmp_path, monkeypatch):
    path = tmp_path / "x.parquet"
    table = pyarrow.table({"text": ["x" * 10**5] * 2000})
    options = {"column_encoding": "DELTA_BYTE_ARRAY", "compression": "none"}
    pyarrow.parquet.write_table(table, path, use_dictionary=False, **options)
    assert path.stat().st_size < 10**6
    monkeypatch.setattr(parquet, "DECODED_LIMIT", 10**7)
    before = pyarrow.total_allocated_bytes()
    peaks = []
    monkeypatch.setattr(
        parquet,
        "decoded_size",
        lambda array: peaks.append(pyarrow.total_allocated_bytes()) or decoded_size(array),
    )
    assert "must decode to at most" in refused(path)
    assert max(peaks) - before < 2 * 10**7  # of 2 x 10^8


def test_small_floats_are_the_numbers_that_were_written(tmp_path):
    path = tmp_path / "x.parquet"
    numbers = [0.1, 58.1, None, 3.0, float("inf")]
    for kind in (pyarrow.float16(), pyarrow.float32(), pyarrow.float64()):
        column = pyarrow.array([None if x is None else np.float64(x) for x in numbers]).cast(kind)
        pyarrow.parquet.write_table(pyarrow.table({"a": column}), path)
        assert [row["a"] for row in read(path)] == numbers
