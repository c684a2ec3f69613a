"""Claims, tables, figures and the report, on run directories made up here."""

import html.parser
import json
import math

import pytest
from matplotlib.figure import Figure

from rmas_jax.reporting import figures, tables
from rmas_jax.reporting.__main__ import main
from rmas_jax.reporting.claims import FAILS, HOLDS, NOT_MEASURED, check_claims
from rmas_jax.reporting.report import headline, write_report
from rmas_jax.reporting.run_directory import RunFileError

SPLITS = ("test", "test_unseen_entities")
N = 200
ITEMS_PER_HOP = 20
# Correct answers of N by round, in a run in which every claim holds.
CORRECT = {
    "recursive_mas": {1: 60, 2: 120, 3: 180, 4: 184},
    "aligned_links": {1: 20, 2: 30, 3: 30, 4: 32},
    "recursive_text": {1: 58, 2: 118, 3: 176, 4: 180},
    "truncated_text": {1: 30, 2: 50, 3: 60, 4: 62},
    "no_latents": {1: 10, 2: 12, 3: 10, 4: 14},
    "shuffled_latents": {1: 4, 2: 3, 3: 5, 4: 6},
    "single_planner": {1: 40},
    "single_critic": {1: 0},
    "single_solver": {1: 50},
}


def result_row(method, rounds, split, seed, correct, /, **changes):
    is_text = "text" in method
    row = {
        "method": method,
        "rounds": rounds,
        "latent_steps": 0 if is_text or method == "no_latents" else 4,
        "split": split,
        "n": N,
        "correct": correct,
        "accuracy": correct / N,
        "ci_low": 0.0,
        "ci_high": 1.0,
        "tokens_per_item": 24.0 * rounds if is_text else 8.0,
        "steps_per_item": 30.0 * rounds if is_text else 8.0 + 12 * rounds,
        "seconds_per_item": 0.5 * rounds if is_text else 0.1 + 0.1 * rounds,
        "seed": seed,
    }
    return row | changes


def result_rows(seeds=(0,)):
    return [
        result_row(method, rounds, split, seed, correct + (seed if correct else 0))
        for seed in seeds
        for split in SPLITS
        for method, by_rounds in CORRECT.items()
        for rounds, correct in by_rounds.items()
    ]


def change(rows, method, *, rounds=None, split="test", **changes):
    """The rows with columns of one method changed; accuracy follows `correct`."""
    changed = []
    for row in rows:
        hit = row["method"] == method and row["split"] == split
        if hit and rounds in (None, row["rounds"]):
            row = row | changes
            row["accuracy"] = row["correct"] / row["n"]
        changed.append(row)
    assert changed != rows
    return changed


def item_rows(seeds=(0,)):
    rows = []
    for split in SPLITS:
        for method in ("recursive_mas", "recursive_text", "aligned_links"):
            for rounds in (1, 2):
                for number in range(6 * ITEMS_PER_HOP):
                    hops = 1 + number % 6
                    reach = 3 * rounds if method != "aligned_links" else 1
                    for seed in seeds:
                        rows.append(
                            {
                                "method": method,
                                "rounds": rounds,
                                "split": split,
                                "seed": seed,
                                "id": f"{split}-{number}",
                                "question": "Where | does <it> end?",
                                "prediction": "Ash Bay",
                                "gold": "Ash Bay",
                                "correct": hops <= reach,
                                "difficulty": hops,
                                "tokens": 8,
                                "steps": 20,
                            }
                        )
    return rows


def metric_rows():
    rows = [
        {"stage": "inner", "series": agent, "step": step, "loss": math.exp(-step / 40)}
        for agent in ("planner", "critic", "solver")
        for step in range(0, 200, 2)
    ]
    return rows + [
        {"stage": "outer", "series": "links", "step": s, "loss": 2 / (1 + s), "accuracy": s / 99}
        for s in range(100)
    ]


def gradient_rows():
    return [
        {"link": link, "round": number, "channel": channel, "norm": norm}
        for link in ("planner->critic", "critic->solver")
        for number in (1, 2, 3)
        for channel, norm in (("latent", 0.5), ("softmax", 1e-5 * (number - 1)))
    ]


def write_run(directory, seeds=(0,), without=()):
    contents = {
        "results.json": json.dumps(result_rows(seeds)),
        "items.jsonl": "".join(json.dumps(row) + "\n" for row in item_rows(seeds)),
        "metrics.jsonl": "".join(json.dumps(row) + "\n" for row in metric_rows()),
        "gradients.json": json.dumps(gradient_rows()),
        "environment.json": json.dumps({"jax": "0.10.2", "cpus": 2, "note": "<b>&"}),
        "config.yaml": "seed: 0\nname: <script>alert(1)</script>\n",
        "timings.json": json.dumps({"train": 100.0, "evaluate": 50.0}),
    }
    directory.mkdir(exist_ok=True)
    for name, text in contents.items():
        if name not in without:
            (directory / name).write_text(text)
    return directory


@pytest.fixture
def blank_figures(monkeypatch):
    """For tests that do not look at figures: they are built, but drawing them takes seconds."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **_: file.write(b"blank"))


# --- claims ---


def verdicts(rows):
    return {claim.name: claim.verdict for claim in check_claims(rows)}


def test_every_claim_holds_in_a_run_made_so():
    assert set(verdicts(result_rows()).values()) == {HOLDS}


@pytest.mark.parametrize(
    ("claim", "method", "changes"),
    [
        ("rises_with_rounds", "recursive_mas", {"rounds": 2, "correct": 181}),
        ("at_least_text", "recursive_text", {"rounds": 2, "correct": 121}),
        ("above_best_single", "single_critic", {"correct": 184}),
        ("fewer_tokens", "recursive_text", {"rounds": 1, "tokens_per_item": 8.0}),
        ("less_time", "recursive_text", {"rounds": 3, "seconds_per_item": 0.39}),
        ("trained_above_aligned", "aligned_links", {"rounds": 1, "correct": 61}),
        ("trained_above_aligned", "aligned_links", {"rounds": 4, "correct": 184}),
        ("collapses_without_latents", "no_latents", {"rounds": 4, "correct": 93}),
        ("collapses_with_shuffled_latents", "shuffled_latents", {"rounds": 4, "correct": 93}),
    ],
)
def test_a_claim_fails_alone_when_its_numbers_flip(claim, method, changes):
    for split in SPLITS:  # on either split: one failure is enough
        rows = change(result_rows(), method, split=split, **changes)
        failed = {name for name, verdict in verdicts(rows).items() if verdict == FAILS}
        assert failed == {claim, "every_split"}
        by_name = {claim.name: claim for claim in check_claims(rows)}
        assert {f.split for f in by_name[claim].findings if f.verdict == FAILS} == {split}


def test_equal_accuracy_is_at_least_text_and_half_is_a_collapse():
    rows = change(result_rows(), "recursive_text", rounds=2, correct=120)
    rows = change(rows, "no_latents", rounds=4, correct=92)
    assert set(verdicts(rows).values()) == {HOLDS}


def test_accuracy_that_stays_flat_does_not_rise():
    rows = change(result_rows(), "recursive_mas", correct=184)
    assert verdicts(rows)["rises_with_rounds"] == FAILS


def test_nothing_collapses_from_zero():
    rows = change(result_rows(), "recursive_mas", rounds=4, correct=0)
    rows = change(rows, "no_latents", rounds=4, correct=0)
    assert verdicts(rows)["collapses_without_latents"] == FAILS


@pytest.mark.parametrize(
    ("missing", "claims"),
    [
        ("recursive_text", {"at_least_text", "fewer_tokens", "less_time"}),
        ("aligned_links", {"trained_above_aligned"}),
        ("no_latents", {"collapses_without_latents"}),
        ("shuffled_latents", {"collapses_with_shuffled_latents"}),
        ("single_", {"above_best_single"}),
    ],
)
def test_what_was_not_measured_is_neither_held_nor_refuted(missing, claims):
    rows = [row for row in result_rows() if not row["method"].startswith(missing)]
    not_measured = {name for name, verdict in verdicts(rows).items() if verdict == NOT_MEASURED}
    assert not_measured == claims


def test_one_split_says_nothing_about_every_split():
    rows = [row for row in result_rows() if row["split"] == "test"]
    assert verdicts(rows)["every_split"] == NOT_MEASURED


def test_claims_say_whether_intervals_are_apart():
    claims = {claim.name: claim.findings[0].numbers for claim in check_claims(result_rows())}
    assert "30.0 → 60.0 → 90.0 → 92.0 %" in claims["rises_with_rounds"]
    assert "intervals apart" in claims["rises_with_rounds"]
    assert "30.0 / 29.0, 60.0 / 59.0, 90.0 / 88.0, 92.0 / 90.0 %" in claims["at_least_text"]
    assert "intervals overlap" in claims["at_least_text"]
    assert "intervals apart at 1, 2, 3, 4 rounds" in claims["trained_above_aligned"]
    assert "92.0 / 7.0 % at 4 rounds" in claims["collapses_without_latents"]
    assert "8.00 / 72.0, 8.00 / 96.0 tokens at 1, 2, 3, 4" in claims["fewer_tokens"]


def test_rounds_of_one_method_only_are_named():
    rows = [r for r in result_rows() if (r["method"], r["rounds"]) != ("recursive_text", 4)]
    claims = {claim.name: claim.findings[0].numbers for claim in check_claims(rows)}
    assert "only one of the two measured at 4 rounds" in claims["at_least_text"]


def test_seeds_are_pooled():
    seeds = (0, 8)
    rows = [row for row in result_rows(seeds) if row["method"] != "recursive_text"]
    # Text wins under one seed and loses by more under the other.
    rows += [
        result_row("recursive_text", rounds, split, seed, correct + (3 if seed == 0 else -20))
        for seed in seeds
        for split in SPLITS
        for rounds, correct in CORRECT["recursive_mas"].items()
    ]
    assert verdicts(rows)["at_least_text"] == HOLDS
    first = [row for row in rows if row["seed"] == 0]
    assert verdicts(first)["at_least_text"] == FAILS


# --- tables ---


def test_accuracy_table_has_percentages_and_wilson_intervals():
    table = tables.accuracy_tables(result_rows())[0]
    latent = dict(zip(table.header, table.rows[0], strict=True))
    # (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n) with p = 0.3, n = 200, z = 1.959964
    assert latent["1 round"] == "30.0 [24.1, 36.7]"
    assert latent["method"] == "latent, trained links"
    assert dict(zip(table.header, table.rows[-1], strict=True))["2 rounds"] == tables.ABSENT


def test_rollout_table_has_pass_at_k():
    drawn = {"rollouts": 4, "rollout_accuracy": 0.25, "pass_at_k": 0.5}
    rows = [result_row("recursive_mas", r, "test", 3, 60, **drawn) for r in (2, 1)]
    table = tables.rollout_table([*rows, result_row("no_latents", 1, "test", 3, 20)])
    start = ("test", "latent, trained links")
    assert table.rows == tuple((*start, r, "3", "4", "30.0", "25.0", "50.0") for r in "12")
    assert tables.rollout_table(result_rows()) is None


def test_cost_table_has_ratios_to_text_at_the_same_rounds():
    table = tables.cost_tables(result_rows())[0]
    cells = {line[:2]: line[2:] for line in table.rows}
    assert cells["latent, trained links", "2"] == (
        *("8.00", "32.0", "0.300"),
        *("0.17x", "0.53x", "0.30x"),
    )
    assert cells["text", "2"][3:] == ("1.00x",) * 3


def test_pooled_costs_weigh_items_not_rows():
    rows = [
        result_row("recursive_mas", 1, "test", 0, 10, n=100, accuracy=0.1, tokens_per_item=10.0),
        result_row("recursive_mas", 1, "test", 1, 30, n=300, accuracy=0.1, tokens_per_item=20.0),
    ]
    assert tables.cost_tables(rows)[0].rows[0][2] == "17.5"


def test_difficulty_table_counts_by_hops():
    table = tables.difficulty_tables(item_rows())[0]
    assert table.header == ("method", "rounds", "1 hop", *(f"{h} hops" for h in range(2, 7)))
    assert table.rows[0] == ("latent, trained links", "1", *["100.0"] * 3, *["0.0"] * 3)
    assert f"{ITEMS_PER_HOP} to {ITEMS_PER_HOP}" in table.note


def test_paired_table_pairs_by_item_and_seed():
    items = item_rows(seeds=(0, 1))
    items = [i for i in items if (i["method"], i["seed"]) != ("aligned_links", 1)]
    table = tables.paired_table(items[::-1])  # the order of lines does not matter
    cells = {line[:3]: line[3:] for line in table.rows}
    n, only_latent = 6 * ITEMS_PER_HOP, 2 * ITEMS_PER_HOP
    assert cells["test", "latent, aligned links", "1"][:3] == (str(n), str(only_latent), "0")
    assert cells["test", "latent, aligned links", "1"][3].startswith("+33.3 [")
    assert cells["test", "latent, aligned links", "1"][4] == "< 0.001"
    assert cells["test", "text", "1"][:3] == (str(2 * n), "0", "0")
    assert cells["test", "text", "1"][4] == "1.000"


def test_across_seeds_is_the_students_interval():
    rows = [result_row("recursive_mas", 1, "test", seed, c) for seed, c in enumerate((50, 60, 70))]
    (spread,) = tables.across_seeds(rows)
    assert (spread.seeds, spread.mean, spread.low, spread.high) == (3, 0.3, 0.25, 0.35)
    half = 4.302653 * 0.05 / math.sqrt(3)  # t quantile with two degrees of freedom
    assert spread.interval == pytest.approx((0.3 - half, 0.3 + half), abs=1e-6)


def test_across_seeds_of_one_seed_has_no_interval_and_of_equal_seeds_no_width():
    assert tables.across_seeds(result_rows())[0].interval is None
    rows = [result_row("recursive_mas", 1, "test", seed, 50) for seed in (0, 1)]
    assert tables.across_seeds(rows)[0].interval == (0.25, 0.25)
    assert tables.seed_table(result_rows()) is None


def test_terminal_table_is_aligned_and_fits():
    rows = result_rows()
    rows += [result_row("single_the_agent_with_a_very_long_name_indeed", 1, "test", 0, N)]
    rows += [result_row("recursive_mas", rounds, "test", 0, N) for rounds in range(5, 10)]
    text = tables.terminal_table(rows)
    assert max(map(len, text.splitlines())) <= tables.TERMINAL_WIDTH
    assert "30.0 (24-37)" in text
    assert "9 rounds" in text
    _, *lines = text.split("\n\n")[0].splitlines()
    assert len(set(map(len, lines))) == 1  # numbers are aligned to the right


def test_markdown_and_html_escape_their_own_signs():
    table = tables.Table("t", ("a", "b"), (("x|y", "<1 & 2>"),))
    assert "| x\\|y | <1 & 2> |" in table.to_markdown()
    assert "x|y" in table.to_html()
    assert "&lt;1 &amp; 2&gt;" in table.to_html()


# --- figures ---


def test_figures_draw_what_the_rows_say():
    accuracy = figures.accuracy_figure(result_rows())
    assert [axis.get_title() for axis in accuracy.axes] == list(SPLITS)
    heights = [line.get_ydata() for line in accuracy.axes[0].lines]
    assert any(list(y) == [30.0, 60.0, 90.0, 92.0] for y in heights)
    cost = figures.cost_figure(result_rows())
    assert list(cost.axes[0].lines[0].get_ydata()) == [8.0] * 4
    assert len(figures.difficulty_figure(item_rows()).axes) == 4
    assert len(figures.training_figure(metric_rows()).axes) == 3
    gradients = figures.gradient_figure(gradient_rows())
    assert gradients.axes[0].get_yscale() == "log"
    labels = [line.get_label() for line in gradients.axes[0].lines]
    assert "softmax channel, exactly 0" in labels


def test_a_diverged_run_can_be_drawn(tmp_path):
    rows = [row | {"loss": math.nan} if row["step"] > 50 else row for row in metric_rows()]
    figures.training_figure(rows).savefig(tmp_path / "training.png")
    rows = [row | {"norm": math.inf} for row in gradient_rows()]
    figures.gradient_figure(rows).savefig(tmp_path / "gradients.png")


# --- the report ---


class Sources(html.parser.HTMLParser):
    """Collects what a page loads, and checks that its tags close."""

    def __init__(self):
        super().__init__()
        self.loaded, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.loaded += [v for name, v in attrs if name in ("src", "href", "data", "srcset")]
        assert tag not in ("script", "link", "iframe")
        if tag not in ("meta", "img"):
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
    for number in ("30.0 [24.1, 36.7]", "+33.3 [", "150"):
        assert number in page and number in markdown


def test_report_is_the_same_twice(tmp_path):
    run = write_run(tmp_path / "run", without=("items.jsonl", "metrics.jsonl"))
    first = write_report(run).read_text()
    assert write_report(run).read_text() == first


def test_headline_is_computed_from_the_rows():
    test, unseen = headline(result_rows())
    assert "30.0 % [24.1, 36.7]" in test and "29.0 %" in test and "test_unseen_entities" in unseen
    assert "0.08x the generated tokens (8.00 against 96.0)" in test
    assert "0.25x the time (0.500 against 2.00 s)" in test
    changed = headline(change(result_rows(), "recursive_mas", rounds=1, correct=100))
    assert "50.0 % [" in changed[0] and changed[1] == unseen


def test_headline_without_one_channel():
    rows = [row for row in result_rows() if row["method"] != "recursive_text"]
    assert "with text" not in headline(rows)[0]
    rows = [row for row in rows if row["method"] != "recursive_mas"]
    assert "neither" in headline(rows)[0]


def test_several_seeds_get_their_own_table(tmp_path, blank_figures):
    markdown = tmp_path / "run" / "report.md"
    write_report(write_run(tmp_path / "run", seeds=(0, 1, 2)))
    assert "## Seeds" in markdown.read_text()
    assert "pool the seeds' answers" in markdown.read_text()
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
    assert "not measured" in write_report(run).read_text()


def test_a_line_that_was_cut_off_is_left_out(tmp_path, blank_figures):
    run = write_run(tmp_path / "run")
    with open(run / "items.jsonl", "a") as file:
        file.write('{"method": "recur')
    assert "is cut off and left out" in write_report(run).read_text()


def test_a_directory_without_a_run_is_an_error(tmp_path):
    with pytest.raises(RunFileError, match="no file of a run here"):
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
            r"results\.json row 2: missing column 'seconds_per_item'",
        ),
        ("results.json", "[{", r"results\.json: is not JSON"),
        ("results.json", "{}", r"results\.json: is a JSON object, must be a list"),
        ("results.json", "[1]", r"results\.json row 1: is a JSON number, must be an object"),
        (
            "results.json",
            json.dumps([result_row("recursive_mas", 1, "test", 0, 10, rounds="1")]),
            r"row 1: column 'rounds' is '1', must be int",
        ),
        (
            "results.json",
            json.dumps([result_row("recursive_mas", 1, "test", 0, 10, seconds_per_item=None)]),
            r"row 1: column 'seconds_per_item' is None, must be float",
        ),
        (
            "results.json",
            json.dumps([result_row("recursive_mas", 1, "test", 0, 10, tokens_per_item=math.nan)]),
            r"row 1: column 'tokens_per_item' is nan, must be finite",
        ),
        (
            "results.json",
            json.dumps([result_row("recursive_mas", 1, "test", 0, 10, accuracy=5.0)]),
            r"row 1: column 'accuracy' is 5\.0, but 10 of 200 are correct",
        ),
        (
            "results.json",
            json.dumps([result_row("recursive_mas", 1, "test", 0, 10, n=0)]),
            r"row 1: column 'correct' is 10 of 'n' 0",
        ),
        (
            "results.json",
            json.dumps([result_row("recursive_mas", 1, "test", 0, 10)] * 2),
            r"row 2: recursive_mas at 1 rounds on test, seed 0, is already in row 1",
        ),
        (
            "results.json",
            json.dumps(
                [
                    result_row("recursive_mas", 1, "test", 0, 10, latent_steps=4),
                    result_row("recursive_mas", 1, "test", 1, 10, latent_steps=8),
                ]
            ),
            r"row 2: column 'latent_steps' is 8 .* elsewhere 4",
        ),
        ("items.jsonl", '{"method": 1}\n', r"items\.jsonl line 1: missing columns 'rounds'"),
        ("items.jsonl", "\nno\n", r"items\.jsonl line 2: is not JSON"),
        ("timings.json", "[]", r"timings\.json: is a JSON list, must be an object"),
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
    assert "30.0 (24-37)" in printed and printed.endswith(f"{run / 'report.html'}\n")


def test_command_says_what_is_wrong(tmp_path, capsys):
    assert main([str(tmp_path / "absent")]) == 1
    assert "absent: no file of a run here" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "RUN_DIR" in capsys.readouterr().out
