"""The tables of a report as CSV files."""

import csv

from made_runs import write_run

from rmas_jax.reporting.report import _named, write_report
from rmas_jax.reporting.table import Table


def test_csv_splits_intervals_and_drops_formatting():
    rows = (("+1.0 [-0.5, +2.5]*", "1,234", "a, b", "0.25x", "< 0.001"),)
    rows += (("-", "-", '"c"', "-", "0.020"),)
    header = ("w", "gain", "n", "words", "ratio", "p")
    table = Table("t", header, tuple(("1,0", *row) for row in rows), name="Gain: x[:6]")
    assert table.stem == "gain-x-6"
    assert list(csv.reader(table.to_csv().splitlines())) == [
        ["w", "gain", "gain low", "gain high", "gain mark", "n", "words", "ratio", "p"],
        ["1,0", "+1.0", "-0.5", "+2.5", "*", "1234", "a, b", "0.25", "< 0.001"],
        ["1,0", "", "", "", "", "", '"c"', "", "0.020"],
    ]
    assert Table("t", ("a", "b"), (), name="empty").to_csv() == "a,b\n"


def test_tables_of_one_name_are_numbered():
    tables = [
        Table("t", ("a",), ((x,),), name=name)
        for x, name in zip("123", ("x", "x:", "y"), strict=True)
    ]
    assert {name: table.rows[0][0] for name, table in _named(tables).items()} == {
        "x": "1",
        "x-2": "2",
        "y": "3",
    }


def test_every_table_of_a_report_is_a_file(tmp_path):
    run = write_run(tmp_path / "run")
    write_report(run)
    page = (run / "report.html").read_text()
    found = {path.stem: path for path in (run / "tables").iterdir()}
    assert len(found) == page.count("<table>")
    assert {"accuracy-relay-test", "cost-relay-test", "paired-relay-test", "methods"} <= set(found)
    assert not any(name.strip("-0123456789") == "" for name in found)
    with found["accuracy-relay-test-unseen-entities"].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:5] == ["method", "rounds", "correct", "correct low", "correct high"]
    by_cell = {(row["method"], row["rounds"]): row for row in rows}
    text = by_cell["text", "2"]
    assert float(text["correct low"]) < float(text["correct"]) == 59.0
    assert ("single solver", "2") not in by_cell  # not measured
    with found["cost-relay-test"].open(newline="") as file:
        costs = [row for row in csv.DictReader(file) if row["method"] == "latent, trained links"]
    assert [float(row["GFLOP / text"]) for row in costs] == [0.4, 0.25, 0.2, 0.17]
    assert {row["trained parameters"] for row in costs} == {"12345"}
