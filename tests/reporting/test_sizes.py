"""Files of runs whose reports would have a thousand figures, or numbers that no figure can show."""

import json

import pytest
from made_runs import gradient_rows, metric_rows, result_rows, write_run

from rmas_jax.reporting.run_directory import RunFileError, read_run

ROWS = {"results.json": result_rows, "gradients.json": gradient_rows, "metrics.jsonl": metric_rows}


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("results.json", "method"),
        ("results.json", "benchmark"),
        ("results.json", "split"),
        ("results.json", "rounds"),
        ("gradients.json", "link"),
        ("metrics.jsonl", "series"),
    ],
)
def test_groups_of_rows_are_limited(tmp_path, name, column):
    row = ROWS[name]()[0]
    values = range(101) if column == "rounds" else map(str, range(101))
    rows = [json.dumps(row | {column: value}) for value in values]
    run = write_run(tmp_path / "run", without=["items.jsonl"])

    def write(rows):
        text = "\n".join(rows) if name.endswith(".jsonl") else f"[{','.join(rows)}]"
        (run / name).write_text(text + "\n")

    write(rows)
    with pytest.raises(RunFileError, match=rf"'{column}' must have at most 100 .* got 101; put"):
        read_run(run)
    write(rows[:100])
    read_run(run)


def test_whole_numbers_are_limited(tmp_path):
    run = write_run(tmp_path / "run", without=["items.jsonl"])
    for value in (2**53 + 1, -(10**29), 10**400):
        row = result_rows()[0] | {"rounds": value}
        (run / "results.json").write_text(json.dumps([row]))
        with pytest.raises(RunFileError, match=r"row 1: column 'rounds' must be at most 9,0"):
            read_run(run)
