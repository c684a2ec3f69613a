"""The report: its page and its Markdown, the files it is made from, and the command."""

import errno
import html.parser
import json
import math
import os

import pytest
from made_runs import (
    N,
    change,
    item_rows,
    result_row,
    result_rows,
    write_run,
)
from matplotlib.figure import Figure

from rmas_jax.cli.report import main
from rmas_jax.evaluation.record import items_checksum
from rmas_jax.host import atomic
from rmas_jax.reporting.report import headline, write_report
from rmas_jax.reporting.results import ENDINGS, Results
from rmas_jax.reporting.run_directory import RunFileError, read_run


@pytest.fixture
def blank_figures(monkeypatch):
    """For tests that do not look at figures: they are built, but drawing them takes seconds."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **_: file.write(b"blank"))


class Sources(html.parser.HTMLParser):
    """Collects what a page loads, and checks that its tags close."""

    def __init__(self):
        super().__init__()
        self.loaded, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.loaded += [v for name, v in attrs if name in ("src", "href", "data", "srcset")]
        assert tag not in ("script", "link", "iframe")
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def reported_run(tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("runs") / "run")
    assert write_report(run) == run / "report.html"
    return run


def test_report_is_one_page_that_loads_nothing(reported_run):
    page = (reported_run / "report.html").read_text()
    sources = Sources()
    sources.feed(page)
    assert not sources.open
    images = [source for source in sources.loaded if not source.startswith("#")]
    assert len(images) == 5
    assert all(source.startswith("data:image/svg+xml;base64,") for source in images)
    assert "url(" not in page and "@import" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "Not in this report" not in page


def test_markdown_says_the_same_and_its_images_exist(reported_run):
    page = (reported_run / "report.html").read_text()
    markdown = (reported_run / "report.md").read_text()
    titles = [line.removeprefix("## ") for line in markdown.splitlines() if line.startswith("## ")]
    assert all(f"<h2>{title}</h2>" in page for title in titles)
    assert len(titles) == page.count("<h2>")
    linked = {part.split(")")[0] for part in markdown.split("](")[1:]}
    assert linked == {f"figures/{path.name}" for path in (reported_run / "figures").iterdir()}
    for number in ("30.0 [24.1, 36.7]", "+20.0 [", "150"):
        assert number in page and number in markdown


def test_report_is_the_same_twice(tmp_path):
    run = write_run(tmp_path / "run", without=("items.jsonl", "metrics.jsonl"))
    first = write_report(run).read_text()
    assert write_report(run).read_text() == first


def test_headline_is_computed_from_the_rows():
    test, unseen = headline(Results(result_rows()))
    assert "30.0 % [24.1, 36.7]" in test and "29.0 %" in test and "test_unseen_entities" in unseen
    assert "0.08x the generated tokens (8.00 against 96.0)" in test
    assert "0.25x the time (0.500 against 2.00 s)" in test
    changed = headline(Results(change(result_rows(), "recursive_mas", rounds=1, correct=100)))
    assert "50.0 % [" in changed[0] and changed[1] == unseen


def test_headline_and_benchmarks_are_those_of_the_metric(tmp_path, blank_figures):
    passed = {"metric": "pass_at_k", "pass_at_k": 0.5, "rollouts": 4, "description": "A <b> exam."}
    rows = [row | passed for row in result_rows()]
    assert "correctly in one of several tries (pass@4) with" in headline(Results(rows))[0]
    assert "50.0 % [" in headline(Results(rows))[0]
    run = write_run(tmp_path / "run", without=("items.jsonl",))
    (run / "results.json").write_text(json.dumps(rows))
    page = write_report(run).read_text()
    assert "A &lt;b&gt; exam." in page and "pass@4" in page
    for broken in ({"metric": "f1"}, {"pass_at_k": 2.0}, {"pass_at_k": None}):
        (run / "results.json").write_text(json.dumps([row | broken for row in rows]))
        with pytest.raises(
            RunFileError, match="column 'metric' must be one of accuracy, pass_at_k"
        ):
            read_run(run)


def test_headline_without_one_channel():
    rows = [row for row in result_rows() if row["method"] != "recursive_text"]
    assert "with text" not in headline(Results(rows))[0]
    rows = [row for row in rows if row["method"] != "recursive_mas"]
    assert "neither" in headline(Results(rows))[0]


def test_several_seeds_get_their_own_table(tmp_path, blank_figures):
    markdown = tmp_path / "run" / "report.md"
    write_report(write_run(tmp_path / "run", seeds=(0, 1, 2)))
    assert "## Seeds" in markdown.read_text()
    assert "as if all seeds had answered alike" in markdown.read_text()  # not all rows have items
    write_report(write_run(tmp_path / "run"))
    assert "## Seeds" not in markdown.read_text()


FILES = (
    "results.json",
    "items.jsonl",
    "metrics.jsonl",
    "gradients.json",
    "environment.json",
    "config.yaml",
    "timings.json",
)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_and_the_rest_is_reported(tmp_path, name, blank_figures):
    page = write_report(write_run(tmp_path / "run", without=(name,))).read_text()
    assert f"{name} is missing" in page


@pytest.mark.parametrize("name", FILES)
def test_a_single_file_is_enough(tmp_path, name, blank_figures):
    without = [other for other in FILES if other != name]
    page = write_report(write_run(tmp_path / "run", without=without)).read_text()
    assert page.count("is missing") == len(FILES) - 1


@pytest.mark.parametrize("kept", ["recursive_mas", "no_latents", "single_solver"])
def test_results_of_one_method_are_enough(tmp_path, kept, blank_figures):
    run = write_run(tmp_path / "run", without=("items.jsonl",))
    rows = [row for row in result_rows() if row["method"] == kept]
    (run / "results.json").write_text(json.dumps(rows))
    items = [row for row in item_rows() if row["method"] == "aligned_links"]
    (run / "items.jsonl").write_text("\n".join(map(json.dumps, items)))
    write_report(run)
    page = (run / "report.md").read_text()
    measured, _, others = page.partition("Not measured:\n\n")
    assert "no latents at the same rounds)" in others
    rises = "Accuracy rises with rounds: "
    is_measured = kept == "recursive_mas"
    assert (f"**: {rises}" in measured) == is_measured
    assert (f"- {rises}" in others) != is_measured


def test_a_line_that_was_cut_off_is_left_out(tmp_path, blank_figures):
    run = write_run(tmp_path / "run")
    with open(run / "items.jsonl", "a") as file:
        file.write('{"method": "recur')
    assert "is cut off and left out" in write_report(run).read_text()


def test_items_that_are_not_those_that_were_measured_are_refused(tmp_path):
    items = item_rows()[:N]
    row = result_row(items[0]["method"], items[0]["rounds"], items[0]["split"], 0, 60)
    row["items_crc32"] = items_checksum(items)
    run = write_run(tmp_path / "run")
    (run / "results.json").write_text(json.dumps([row]))
    items[3]["correct"] = not items[3]["correct"]
    (run / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    with pytest.raises(RunFileError, match=r"items\.jsonl: the items of .* run the same command"):
        read_run(run)


def test_damaged_lines_of_the_curves_are_left_out_with_a_note(tmp_path):
    run = write_run(tmp_path / "run")
    file = run / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    damaged = [b"\xff\n", b"[1]\n", b'{"loop": 1}\n', b"{\n"]
    file.write_bytes(b"".join([*lines[:2], *damaged, *lines[2:]]))
    read = read_run(run)
    assert len(read.metrics) == len(lines)
    assert [f"metrics.jsonl line {n}: " in " ".join(read.notes) for n in (3, 4, 5, 6)] == [
        *3 * [True],
        False,
    ]
    assert "metrics.jsonl: 1 more damaged lines are left out." in read.notes


def test_a_report_that_is_there_already_is_not_written_again(tmp_path, blank_figures, monkeypatch):
    run = write_run(tmp_path / "run")
    write_report(run)
    monkeypatch.setattr(atomic, "_opened", lambda *_: pytest.fail("a write"))
    write_report(run)


def test_on_a_read_only_disk_the_command_prints_what_it_cannot_write(
    tmp_path, blank_figures, monkeypatch, capsys
):
    def read_only(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    run = write_run(tmp_path / "run")
    (run / "figures").mkdir()
    monkeypatch.setattr(atomic, "_opened", read_only)
    assert main([str(run)]) == 0
    printed = capsys.readouterr()
    assert "30.0 [24.1, 36.7]" in printed.out
    assert printed.err.startswith(f"report not written: {run}/")
    assert printed.err.endswith(": Read-only file system\n")


def test_an_unfinished_measurement_is_left_out_item_by_item(tmp_path, blank_figures):
    run = write_run(tmp_path / "run")
    rows, items = result_rows(), item_rows()
    no_row = ("aligned_links", 2, "test")  # interrupted before its row was written
    too_few = ("recursive_text", 1, "test")
    rows = [r for r in rows if (r["method"], r["rounds"], r["split"]) != no_row]
    kept = [
        item
        for item in items
        if (item["method"], item["rounds"], item["split"]) != too_few or item["id"] != "test-3"
    ]
    (run / "results.json").write_text(json.dumps(rows))
    (run / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in kept))
    read = read_run(run)
    left = {(item["method"], item["rounds"], item["split"]) for item in read.items}
    assert len(left) == 10 and not left & {no_row, too_few}
    assert len(read.items) == 10 * N
    assert any(f"{N} items of aligned_links, rounds 2, relay test" in note for note in read.notes)
    assert any(
        f"{N - 1} items of recursive_text, rounds 1, relay test" in note for note in read.notes
    )
    assert "an unfinished measurement" in write_report(run).read_text()


def test_without_difficulties_there_is_no_such_section(tmp_path, blank_figures):
    run = write_run(tmp_path / "run")
    assert "## Difficulty" in (write_report(run), (run / "report.md").read_text())[1]
    items = [item | {"difficulty": 0} for item in item_rows()]
    (run / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    write_report(run)
    assert "difficulty 0" not in (run / "report.md").read_text()
    assert "## Difficulty" not in (run / "report.md").read_text()


def test_the_report_says_how_answers_ended_where_the_run_does(tmp_path, blank_figures):
    run = write_run(tmp_path / "run")
    ended = {"unparsed": 11, "timeout": 12, "crashed": 13, "at_limit": 14, "answer_retry": 15}
    (run / "results.json").write_text(json.dumps([row | ended for row in result_rows()]))
    page = write_report(run).read_text()
    assert all(f'<th class="number">{name}</th>' in page for name in ENDINGS.values())
    rows = (run / "tables" / "accuracy-relay-test.csv").read_text().splitlines()
    assert rows[1].endswith(",200,11,14,12,13,15")


def test_a_directory_without_a_run_is_an_error(tmp_path):
    with pytest.raises(RunFileError, match="must hold files of a run"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


def without_column(rows, column):
    return [rows[0], {name: value for name, value in rows[1].items() if name != column}]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "results.json",
            json.dumps(without_column(result_rows(), "seconds_per_item")),
            r"results\.json row 2: must have column 'seconds_per_item'",
        ),
        ("results.json", "[{", r"results\.json: must be JSON"),
        ("results.json", "{}", r"results\.json: must be a list of rows, got a JSON object"),
        ("results.json", "[1]", r"results\.json row 1: must be an object, got a JSON number"),
        (
            "results.json",
            json.dumps([result_row("recursive_mas", 1, "test", 0, 10, rounds="1")]),
            r"row 1: column 'rounds' must be int, got '1'",
        ),
        (
            "results.json",
            json.dumps([result_row("recursive_mas", 1, "test", 0, 10, seconds_per_item=None)]),
            r"row 1: column 'seconds_per_item' must be float, got None",
        ),
        (
            "results.json",
            json.dumps([result_row("recursive_mas", 1, "test", 0, 10, tokens_per_item=math.nan)]),
            r"row 1: column 'tokens_per_item' must be finite, got nan",
        ),
        (
            "results.json",
            json.dumps([result_row("recursive_mas", 1, "test", 0, 10, accuracy=5.0)]),
            r"row 1: column 'accuracy' must be 0\.0500, as 10 of 200 are correct, got 5\.0",
        ),
        (
            "results.json",
            json.dumps([result_row("recursive_mas", 1, "test", 0, 10, n=0)]),
            r"row 1: column 'correct' must be from 0 to n=0, got 10",
        ),
        (
            "results.json",
            json.dumps([result_row("recursive_mas", 1, "test", 0, 10)] * 2),
            r"row 2: .* distinct, got recursive_mas, rounds 1, relay test, seed 0 of row 1",
        ),
        (
            "results.json",
            json.dumps(
                [
                    result_row("recursive_mas", 1, "test", 0, 10, latent_steps=4),
                    result_row("recursive_mas", 1, "test", 1, 10, latent_steps=8),
                ]
            ),
            r"row 2: column 'latent_steps' must be 4 .*, got 8",
        ),
        ("items.jsonl", '{"method": 1}\n', r"items\.jsonl line 1: must have columns 'rounds'"),
        ("items.jsonl", "\nno\n", r"items\.jsonl line 2: must be JSON"),
        ("timings.json", "[]", r"timings\.json: must be an object, got a JSON list; put back"),
        (
            "timings.json",
            '{"a": "1"}',
            r"timings\.json: entry 'a' must be float, got '1'; put back",
        ),
        ("timings.json", '{"a": NaN}', r"timings\.json: entry 'a' must be finite, got nan"),
        ("timings.json", '{"a": 1e308, "crc32": "0"}', r"timings\.json: is damaged: its checksum"),
        ("environment.json", '{"jax": "0.1', r"environment\.json: must be JSON: .*; put back"),
        ("config.yaml", "# crc32: 00000000\nseed: 1\n", r"config\.yaml: is damaged: .*; put back"),
        (
            "gradients.json",
            "[[]]",
            r"gradients\.json row 1: must be an object, got a JSON list; put",
        ),
        (
            "results.json",
            json.dumps([result_row("recursive_mas", 1, "test", 0, 10, at_limit="3")]),
            r"row 1: column 'at_limit' must be int, got '3'; put back a copy, or delete it",
        ),
        (
            "results.json",
            json.dumps([result_row("recursive_mas", 1, "test", 0, 10, seconds_per_item=10**400)]),
            r"row 1: column 'seconds_per_item' must be finite, got an integer of 40\d digits",
        ),
        (
            "results.json",
            json.dumps([result_row("recursive_mas", 1, "test", 0, 10) | {"crc32": "0"}]),
            r"results\.json row 1: is damaged: its checksum must be .*, got '0'.* measured again",
        ),
        (
            "results.json",
            json.dumps([result_row("recursive_mas", 1, "test", 0, 10, scores=[0.5])]),
            r"row 1: column 'scores' must be dict, got \[0\.5\]; put back a copy, or delete it",
        ),
        (
            "results.json",
            json.dumps([result_row("recursive_mas", 1, "test", 0, 10, scores={"f1": "0.5"})]),
            r"row 1: column 'scores': entry 'f1' must be float, got '0\.5'; put back a copy",
        ),
        (
            "items.jsonl",
            json.dumps(item_rows()[0] | {"id": [1]}) + "\n",
            r"items\.jsonl line 1: column 'id' must be text or a number, got \[1\]; run the same",
        ),
    ],
)
def test_a_bad_file_is_one_error_that_names_it_and_writes_nothing(tmp_path, name, text, message):
    run = write_run(tmp_path / "run")
    (run / name).write_text(text)
    with pytest.raises(RunFileError, match=message):
        write_report(run)
    assert not (run / "report.html").exists() and not (run / "figures").exists()


# --- the command ---


def test_command_writes_the_report_and_prints_the_table(tmp_path, capsys, blank_figures):
    run = write_run(tmp_path / "run")
    assert main([str(run)]) == 0
    printed = capsys.readouterr().out
    assert "30.0 [24.1, 36.7]" in printed and printed.endswith(f"{run / 'report.html'}\n")


def test_command_says_what_is_wrong(tmp_path, capsys):
    assert main([str(tmp_path / "absent")]) == 2
    assert "absent: must hold files of a run" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "RUN_DIR" in capsys.readouterr().out
