"""The main method against all others: families, power, seeds, and further scores."""

import numpy as np
import pytest
from made_runs import CORRECT, SPLITS, N, item_rows, items_of, result_row, result_rows
from scipy import stats

from rmas_jax.evaluation.comparisons import seed_effect
from rmas_jax.reporting.paired import family, paired_tables, score_tables
from rmas_jax.reporting.results import Results, Split

TEST = Split("relay", "test")
SINGLES = ["single_planner", "single_critic", "single_solver"]


def all_items(rows):
    return [item for row in rows for item in items_of(row)]


def scored(method, values, *, seed=0, rounds=1, n=40, names=("f1",)):
    """A result and its items, of which the i-th has the score `values[i]`."""
    correct = sum(value > 0.5 for value in values)
    row = result_row(method, rounds, "test", seed, correct, n=n, accuracy=correct / n)
    items = items_of(row)
    for item, value in zip(items, values, strict=True):
        item |= {"correct": bool(value > 0.5), "scores": dict.fromkeys(names, float(value))}
    return row, items


def test_a_family_has_every_method_and_control_at_the_same_rounds():
    rows = result_rows()
    results = Results(rows, all_items(rows))
    for rounds in (1, 2):
        found = family(results, TEST, rounds)
        assert [c.other.method for c in found] == [m for m in CORRECT if m != "recursive_mas"]
        for comparison in found:
            single = comparison.other.method in SINGLES
            assert comparison.other.rounds == (1 if single else rounds)
            assert comparison.main.rounds == rounds
        # Holm by hand: the smallest p times the number of tests, and so on, never falling.
        raw = sorted((c.pair.p_value, c.adjusted) for c in found)
        expected, highest = [], 0.0
        for i, (p_value, _) in enumerate(raw):
            highest = max(highest, min(1.0, p_value * (len(raw) - i)))
            expected.append(highest)
        assert [adjusted for _, adjusted in raw] == pytest.approx(expected)
        assert any(c.adjusted > c.pair.p_value for c in found)
    tables = paired_tables(results)
    assert [table.title.split(":")[0] for table in tables] == [f"relay {s}" for s in SPLITS]
    labels = [line[:2] for line in tables[0].rows]
    assert ("2", "single solver (1 round)") in labels and ("1", "single solver") in labels
    assert ("2", "shuffled latents") in labels
    assert f"{len(CORRECT) - 1} at 1 round, {len(CORRECT) - 1} at 2 rounds" in tables[0].note


def test_pairs_are_of_items_and_seeds():
    seeds = (0, 1)
    items = item_rows(seeds)
    items = [i for i in items if (i["method"], i["seed"]) != ("aligned_links", 1)]
    # The order of lines does not matter.
    table = paired_tables(Results(result_rows(seeds), items[::-1]))[0]
    cells = {line[:2]: line[2:] for line in table.rows}
    aligned = cells["1", "latent, aligned links"]
    assert aligned[:4] == (str(N), str(N), "40", "0")
    assert aligned[4].startswith("+20.0 [") and aligned[6] == "< 0.001"
    text = cells["1", "text"]
    assert text[:4] == (str(N), str(2 * N), "4", "0")
    assert text[4].startswith("+1.0 [") and text[6] == "0.250"  # three items, not four answers
    assert "points over seeds" not in table.header  # two are too few


def test_three_seeds_are_a_random_effect():
    random = np.random.default_rng(0)
    rows, items, right = [], [], {}
    for seed in range(3):
        for method, chance in (("recursive_mas", 0.7), ("recursive_text", 0.5)):
            values = (random.random(40) < chance + 0.1 * seed).astype(float)
            row, own = scored(method, values, seed=seed)
            right[method, seed] = values
            rows.append(row)
            items += own
    (table,) = paired_tables(Results(rows, items))
    (line,) = table.rows
    matrix = [right["recursive_mas", s] - right["recursive_text", s] for s in range(3)]
    effect = seed_effect(matrix)
    low, high = (100 * end for end in effect.interval)
    shown = dict(zip(table.header, line, strict=True))
    assert shown["points over seeds"] == f"{100 * np.mean(matrix):+.1f} [{low:+.1f}, {high:+.1f}]"
    assert shown["deviation of seeds"] == f"{100 * effect.seed_deviation:.1f}"
    assert shown["points"] != shown["points over seeds"]
    # A seed that lacks a question has no place in a crossed design.
    (broken,) = paired_tables(Results(rows, items[:-1]))
    absent = dict(zip(broken.header, broken.rows[0], strict=True))
    assert (absent["points over seeds"], absent["deviation of seeds"]) == ("-", "-")


def test_small_benchmarks_say_that_they_are_small():
    values = np.arange(40) < 20
    rows, items = zip(*(scored(m, values) for m in ("recursive_mas", "no_latents")), strict=True)
    (table,) = paired_tables(Results(rows, [item for own in items for item in own]))
    assert "40 questions with answers that differ so rarely show no difference" in table.note
    assert "no evidence by itself" in table.note
    other, its_items = scored("recursive_text", np.arange(40) < 10)
    rows, items = [rows[0], other], [*items[0], *its_items]
    (table,) = paired_tables(Results(rows, items))
    smallest = float(dict(zip(table.header, table.rows[0], strict=True))["smallest shown"])
    assert f"40 questions miss differences below {smallest:.1f} points" in table.note
    # Ten discordant questions of 40: such a difference has a power of 80 %, in normal theory.
    difference, discordant = smallest / 100, 0.25
    spread = np.sqrt(discordant - difference**2)
    z = (np.sqrt(40) * difference - stats.norm.ppf(0.975) * np.sqrt(discordant)) / spread
    assert stats.norm.cdf(z) == pytest.approx(0.8, abs=0.01)
    large = result_rows()
    assert "no evidence" not in paired_tables(Results(large, all_items(large)))[0].note


def test_scores_have_bootstrap_intervals_of_paired_differences():
    random = np.random.default_rng(1)
    ours, theirs = ({0: random.random(40) * most} for most in (0.9, 0.5))
    for answers in (ours, theirs):  # the second seed answers much as the first
        answers[1] = answers[0] + 0.1 * random.random(40)
    rows, items = [], []
    for seed in (0, 1):
        for method, by_seed in (("recursive_mas", ours), ("single_solver", theirs)):
            row, own = scored(method, by_seed[seed], seed=seed, names=("exact_match", "f1"))
            rows.append(row)
            items += own
    plain = result_row("no_latents", 1, "test", 0, 4, n=40, accuracy=0.1)  # without scores
    (table,) = score_tables(Results([*rows, plain], [*items, *items_of(plain)]))
    assert table.header[2:6] == (
        *("exact_match", "exact_match: latent, trained links minus this"),
        *("f1", "f1: latent, trained links minus this"),
    )
    main, other = table.rows
    assert main[0] == "latent, trained links" and other[0] == "single solver"
    assert main[2] == f"{100 * np.mean(list(ours.values())):.1f}" and main[3] == "-"
    by_question = np.mean([ours[s] - theirs[s] for s in (0, 1)], axis=0)
    expected = stats.bootstrap(
        (by_question,), np.mean, n_resamples=9_999, rng=np.random.default_rng(9)
    ).confidence_interval
    point, interval = other[5].split(" ", 1)
    assert float(point) == pytest.approx(100 * by_question.mean(), abs=0.06)
    low, high = (float(end) for end in interval.strip("[]").split(", "))
    assert low == pytest.approx(100 * expected.low, abs=0.6)
    assert high == pytest.approx(100 * expected.high, abs=0.6)
    # The control: the answers of the seeds, as if they were questions, have another interval.
    pooled = np.concatenate([ours[s] - theirs[s] for s in (0, 1)])
    wrong = stats.bootstrap((pooled,), np.mean, rng=np.random.default_rng(9)).confidence_interval
    assert abs((high - low) - 100 * (wrong.high - wrong.low)) > 1.2
    assert score_tables(Results(result_rows(), item_rows())) == []
