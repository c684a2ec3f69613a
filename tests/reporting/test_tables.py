"""Claims, tables and figures: what is computed from the rows of a run."""

import math

import numpy as np
import pytest
from made_runs import (
    CORRECT,
    ITEMS_PER_LEVEL,
    SPLITS,
    N,
    change,
    gradient_rows,
    item_rows,
    items_of,
    metric_rows,
    result_row,
    result_rows,
)
from scipy import stats

from rmas_jax.reporting import figures, tables
from rmas_jax.reporting.claims import FAILS, HOLDS, NOT_MEASURED, check_claims
from rmas_jax.reporting.paired import paired_tables
from rmas_jax.reporting.results import Results, Split
from rmas_jax.reporting.table import TERMINAL_WIDTH, Table

TEST = Split("relay", "test")

# --- claims ---


def verdicts(rows):
    return {claim.name: claim.verdict for claim in check_claims(Results(rows))}


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
        by_name = {claim.name: claim for claim in check_claims(Results(rows))}
        failing = {f.split for f in by_name[claim].findings if f.verdict == FAILS}
        assert failing == {Split("relay", split)}


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
    claims = {
        claim.name: claim.findings[0].numbers for claim in check_claims(Results(result_rows()))
    }
    assert "30.0 → 60.0 → 90.0 → 92.0 %" in claims["rises_with_rounds"]
    assert "intervals apart" in claims["rises_with_rounds"]
    assert "30.0 / 29.0, 60.0 / 59.0, 90.0 / 88.0, 92.0 / 90.0 %" in claims["at_least_text"]
    assert "intervals overlap" in claims["at_least_text"]
    assert claims["trained_above_aligned"].endswith("; intervals apart")
    assert "92.0 / 7.0 % at 4 rounds" in claims["collapses_without_latents"]
    assert "8.00 / 72.0, 8.00 / 96.0 tokens at 1, 2, 3, 4" in claims["fewer_tokens"]


def test_claims_rest_on_the_comparison_by_item_where_there_is_one():
    rows = [row for row in result_rows() if row["rounds"] < 3]
    results = Results(rows, [item for row in rows for item in items_of(row)])
    ours, theirs = (results.get(TEST, m, 2) for m in ("recursive_mas", "recursive_text"))
    assert ours.interval.low < theirs.interval.high  # they overlap, and yet:
    assert results.compare(ours, theirs).interval.low < 0  # two items of 200
    claims = {claim.name: claim.findings[0].numbers for claim in check_claims(results)}
    assert claims["at_least_text"].endswith("points, order open")
    assert "by item +1.0 [-0." in claims["at_least_text"]
    assert claims["above_best_single"].endswith("points, order settled")
    assert "last and first: by item +30.0 [" in claims["rises_with_rounds"]

    rows = change(rows, "recursive_text", rounds=2, correct=112)
    results = Results(rows, [item for row in rows for item in items_of(row)])
    numbers = {claim.name: claim.findings[0].numbers for claim in check_claims(results)}
    assert numbers["at_least_text"].endswith("points, order settled at 2 rounds")
    numbers = {claim.name: claim.findings[0].numbers for claim in check_claims(Results(rows))}
    assert numbers["at_least_text"].endswith("; intervals overlap")


def test_rounds_of_one_method_only_are_named():
    rows = [r for r in result_rows() if (r["method"], r["rounds"]) != ("recursive_text", 4)]
    claims = {claim.name: claim.findings[0].numbers for claim in check_claims(Results(rows))}
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
    table = tables.accuracy_tables(Results(result_rows()))[0]
    lines = [dict(zip(table.header, row, strict=True)) for row in table.rows]
    # (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n) with p = 0.3, n = 200, z = 1.959964
    assert lines[0]["correct"] == "30.0 [24.1, 36.7]" and lines[0]["rounds"] == "1"
    assert lines[0]["method"] == "latent, trained links" and lines[0]["answers"] == str(N)
    assert lines[0]["crashed"] == tables.ABSENT  # these rows have no counts
    assert [line["rounds"] for line in lines if line["method"] == "single solver"] == ["1"]


def test_every_table_of_answers_counts_their_endings_apart():
    ended = {"unparsed": 4, "at_limit": 3, "timeout": 2, "crashed": 1, "rollouts": 10}
    ended["answer_retry"] = 5
    ended |= {"rollout_accuracy": 0.1}
    cells = (("recursive_mas", 2, 0), ("recursive_mas", 2, 1), ("no_latents", 1, 0))
    rows = [result_row(m, r, "test", seed, 60, **ended) for m, r, seed in cells]
    items = [item for row in rows for item in items_of(row)]
    results = Results(rows, items)
    endings = ("unparsed", "cut off", "timed out", "crashed")
    built = [
        *tables.accuracy_tables(results),
        *tables.difficulty_tables(results, items),
        tables.seed_table(results, rows),
    ]
    for table in built:
        lines = [dict(zip(table.header, row, strict=True)) for row in table.rows]
        (latent,) = [line for line in lines if line["method"] == "latent, trained links"]
        assert [latent[name] for name in endings] == ["8", "6", "4", "2"]  # of both seeds
    (accuracy,) = tables.accuracy_tables(results)
    assert accuracy.rows[0][3] == f"{2 * 10 * N:,}"
    several = tables.rollout_table(results, rows)
    assert [row[-4:] for row in several.rows] == [("4", "3", "2", "1")] * 3
    text = tables.terminal_table(results)
    assert all(name in text.splitlines()[1] for name in endings)
    csv = accuracy.to_csv().splitlines()
    assert csv[0].endswith("answers,unparsed,cut off,timed out,crashed,retried")
    assert csv[1].endswith("4000,8,6,4,2,10")


def test_the_papers_values_stand_beside_ours():
    rows = [
        result_row("recursive_mas", 3, "test", 0, 60, benchmark="MATH-500"),
        result_row("single_solver", 1, "test", 0, 60, benchmark="MATH-500"),
    ]
    accuracy, other = tables.accuracy_tables(Results([*rows, *result_rows()[:1]]))
    assert "paper" not in other.header
    ours, single = (dict(zip(accuracy.header, row, strict=True)) for row in accuracy.rows)
    assert ours["paper"].startswith("77.8 (Sequential Light, Table 2); 88.2 (Sequential Scaled")
    assert single["paper"] == tables.ABSENT
    (cost,) = tables.cost_tables(Results(rows))
    line = dict(zip(cost.header, cost.rows[0], strict=True))
    assert line["paper: tokens"].startswith("519 (Sequential Light, Table 2); 893 (Seq")
    assert line["paper: seconds for all items"].startswith("1,360 (")


def test_rollout_table_has_pass_at_k_where_it_is_the_metric():
    drawn = {"rollouts": 4, "rollout_accuracy": 0.25}
    rows = [result_row("recursive_mas", r, "test", 3, 60, **drawn) for r in (2, 1)]
    assert tables.rollout_table(Results(rows), rows).header[6:8] == ("first answer", "mean answer")
    rows = [row | {"metric": "pass_at_k", "pass_at_k": 0.5} for row in rows]
    rows.append(result_row("no_latents", 1, "test", 3, 20))
    table = tables.rollout_table(Results(rows), rows)
    start, end = (*TEST, "latent, trained links"), ("30.0", "25.0", "50.0", *["-"] * 4)
    assert table.rows == tuple((*start, r, "3", "4", *end) for r in "12")
    assert tables.rollout_table(Results(result_rows()), result_rows()) is None


def test_tables_show_the_metric_of_each_benchmark():
    passed = {"metric": "pass_at_k", "pass_at_k": 0.5, "rollouts": 4, "description": "Ten tries."}
    other = [
        result_row("recursive_mas", 1, "test", 0, 60, benchmark="other", grader="qa", **passed)
    ]
    results = Results([*result_rows(), *other])
    *_, accuracy, table = tables.accuracy_tables(results)
    assert accuracy.title.endswith("test_unseen_entities: accuracy in %, [95 % Wilson interval]")
    assert table.title == "other test: pass@4 in %, [95 % Wilson interval]"
    assert table.rows[0][2].startswith("50.0 [")
    assert tables.benchmark_table([*result_rows(), *other]).rows == (
        ("relay", "accuracy", "-", "-"),
        ("other", "pass@4", "qa", "Ten tries."),
    )
    (spread,) = tables.across_seeds(other)
    assert spread.mean == 0.5


def test_cost_table_has_ratios_to_text_at_the_same_rounds():
    table = tables.cost_tables(Results(result_rows()))[0]
    cells = {line[:2]: line[2:] for line in table.rows}
    assert cells["latent, trained links", "2"] == (
        *("8.00", "32.0", "5.00", "0.300"),
        *("0.17x", "0.53x", "0.25x", "0.30x"),
        "12,345",
    )
    assert cells["text", "2"][4:] == (*("1.00x",) * 4, "0")


def test_costs_that_were_not_recorded_are_absent():
    absent = ("flops_per_item", "trained_parameters")
    rows = [{k: v for k, v in row.items() if k not in absent} for row in result_rows()]
    line = tables.cost_tables(Results(rows))[0].rows[0]
    assert (line[4], line[8], line[10]) == ("-", "-", "-") and "-" not in (
        *line[2:4],
        line[5],
        *line[6:8],
    )
    assert "(-)" in tables.terminal_table(Results(rows))


def test_pooled_costs_weigh_items_not_rows():
    rows = [
        result_row("recursive_mas", 1, "test", 0, 10, n=100, accuracy=0.1, tokens_per_item=10.0),
        result_row("recursive_mas", 1, "test", 1, 30, n=300, accuracy=0.1, tokens_per_item=20.0),
    ]
    assert tables.cost_tables(Results(rows))[0].rows[0][2] == "17.5"


def test_difficulty_table_counts_by_difficulty():
    table = tables.difficulty_tables(Results(result_rows()), item_rows())[0]
    by_level = tuple(f"difficulty {level}" for level in range(1, 6))
    assert table.header[:7] == ("method", "rounds", *by_level)
    assert table.rows[0][:7] == ("latent, trained links", "1", "100.0", "50.0", *["0.0"] * 3)
    assert f"{ITEMS_PER_LEVEL} to {ITEMS_PER_LEVEL}" in table.note


def test_splits_of_two_benchmarks_are_not_pooled():
    rows = [
        result_row("recursive_mas", 1, "test", 0, correct, benchmark=benchmark)
        for benchmark, correct in (("algebra", 50), ("relay", 100))
    ]
    results = Results(rows)
    assert results.splits == [Split("algebra", "test"), TEST]
    for split, correct in zip(results.splits, (50, 100), strict=True):
        assert results.get(split, "recursive_mas", 1).correct == correct
    first, second = tables.accuracy_tables(results)
    assert first.title.startswith("algebra test: ") and second.title.startswith("relay test: ")
    claims = {claim.name: claim for claim in check_claims(results)}
    assert [str(f.split) for f in claims["every_split"].findings] == ["algebra test", "relay test"]
    items = [items_of(row)[i] for row in rows for i in range(N)]
    both = Results(
        [*rows, *(row | {"method": "recursive_text"} for row in rows)],
        [*items, *(item | {"method": "recursive_text"} for item in items)],
    )
    assert [table.title.split(":")[0] for table in paired_tables(both)] == [
        *("algebra test", "relay test")
    ]


def test_seeds_that_answer_alike_leave_intervals_as_they_are():
    def repeated(rows):
        return [row | {"seed": seed} for seed in (0, 1, 2) for row in rows]

    rows, items = result_rows(), item_rows()
    once, thrice = Results(rows, items), Results(repeated(rows), repeated(items))
    unknown = Results(repeated(rows))
    for split in (Split("relay", name) for name in SPLITS):
        for method in ("recursive_mas", "recursive_text"):
            single = once.get(split, method, 1)
            assert single.by_item and not unknown.get(split, method, 1).by_item
            for pooled in (thrice.get(split, method, 1), unknown.get(split, method, 1)):
                assert pooled.n == 3 * N
                assert pooled.interval == pytest.approx(single.interval, abs=1e-12)
    ours, theirs = (once.get(TEST, method, 1) for method in ("recursive_mas", "recursive_text"))
    pair, single = thrice.compare(ours, theirs), once.compare(ours, theirs)
    assert pair.interval == pytest.approx(single.interval, abs=1e-12)
    assert pair.p_value == single.p_value
    assert unknown.compare(ours, theirs) is None
    drawn = figures.difficulty_figure(repeated(items)), figures.difficulty_figure(items)
    (bars, same) = (figure.axes[0].collections[0].get_segments() for figure in drawn)
    assert np.allclose(bars, same)


def test_seeds_that_differ_narrow_the_interval_and_the_table_says_what_it_is():
    rows = [result_row("recursive_mas", 1, "test", seed, 100) for seed in (0, 1)]
    items = items_of(rows[0]) + [i | {"correct": not i["correct"]} for i in items_of(rows[1])]
    known, unknown = Results(rows, items), Results(rows)
    low, high = known.get(TEST, "recursive_mas", 1).interval
    widest = unknown.get(TEST, "recursive_mas", 1).interval
    assert widest.low < low < 0.5 < high < widest.high
    assert "each with the answers of all seeds" in tables.accuracy_tables(known)[0].note
    assert "not at hand" in tables.accuracy_tables(unknown)[0].note


def test_across_seeds_is_the_students_interval():
    rows = [result_row("recursive_mas", 1, "test", seed, c) for seed, c in enumerate((50, 60, 70))]
    (spread,) = tables.across_seeds(rows)
    assert (spread.seeds, spread.mean, spread.low, spread.high) == (3, 0.3, 0.25, 0.35)
    half = 4.302653 * 0.05 / math.sqrt(3)  # t quantile with two degrees of freedom
    assert spread.interval == pytest.approx((0.3 - half, 0.3 + half), abs=1e-6)


def test_across_seeds_of_one_seed_has_no_interval_and_equal_seeds_are_no_certainty():
    assert tables.across_seeds(result_rows())[0].interval is None
    half = stats.norm.ppf(0.975) ** 2 / (N + stats.norm.ppf(0.975) ** 2)  # Wilson's, of 0 in N
    for correct, interval in ((50, (0.25 - half, 0.25 + half)), (N, (1 - half, 1.0))):
        rows = [result_row("recursive_mas", 1, "test", seed, correct) for seed in (0, 1)]
        assert tables.across_seeds(rows)[0].interval == pytest.approx(interval)
    assert tables.seed_table(Results(result_rows()), result_rows()) is None


def test_terminal_table_is_aligned_and_fits():
    rows = result_rows()
    rows += [result_row("single_the_agent_with_a_very_long_name_indeed", 1, "test", 0, N)]
    rows += [result_row("recursive_mas", rounds, "test", 0, N) for rounds in range(5, 10)]
    text = tables.terminal_table(Results(rows))
    assert max(map(len, text.splitlines())) <= TERMINAL_WIDTH
    assert "30.0 [24.1, 36.7]" in text
    _, *lines = text.split("\n\n")[0].splitlines()
    assert len(set(map(len, lines))) == 1  # numbers are aligned to the right
    assert any("  9  " in line for line in lines)


def test_markdown_and_html_escape_their_own_signs():
    table = Table("t", ("a", "b"), (("x|y", "<1 & 2>"),))
    assert "| x\\|y | <1 & 2> |" in table.to_markdown()
    assert "x|y" in table.to_html()
    assert "&lt;1 &amp; 2&gt;" in table.to_html()


# --- figures ---


def test_figures_draw_what_the_rows_say():
    accuracy = figures.accuracy_figure(Results(result_rows()))
    assert [axis.get_title() for axis in accuracy.axes] == [f"relay {split}" for split in SPLITS]
    heights = [line.get_ydata() for line in accuracy.axes[0].lines]
    assert any(list(y) == [30.0, 60.0, 90.0, 92.0] for y in heights)
    cost = figures.cost_figure(Results(result_rows()))
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
