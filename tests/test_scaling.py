"""The scaling study: its points, its costs, and a page that its results make."""

import argparse
import json
from pathlib import Path

import pytest

from experiments.studies import scaling
from experiments.studies.scaling import Point, cost, points
from experiments.studies.scaling_page import checks, page
from rmas_jax.models import config_from_hf
from rmas_jax.planning.chips import parse_slice

FOLDER = Path(scaling.__file__).parents[2] / "docs" / "scaling"


def test_points_are_on_slices_of_their_chips_and_none_is_there_twice():
    found = list(points(scaling.EVERYTHING))
    assert len(found) == len(set(found)) == 5 * 3 * len(scaling.SLICES) + len(scaling.PAIRS)
    assert all(point.slice.chips == point.chips for point in found)
    options = vars(scaling.EVERYTHING) | {"slices": ("v5p",), "work": ("answers",)}
    few = argparse.Namespace(**options)
    assert set(points(few)) == {x for x in found if (x.chip, x.work) == ("v5p", "answers")}


def test_a_point_does_its_work_alone():
    weights = set()
    for system in scaling.SYSTEMS:
        for work in scaling.WORK:
            config = Point(system, work, "v5e", 16, 32).config()
            assert config.evaluation.batch_size == 32
            phases = [(p.latents, p.batch_size, p.rounds) for p in config.outer.phases]
            assert phases == ([] if work == "answers" else [(work, 32, config.system.rounds)])
            assert set(config.system.agents) == set(scaling.SYSTEMS[system])
            weights |= {*config.system.agents.values()}
    for folder in weights:
        given = json.loads((Path(folder) / "config.json").read_text())
        assert config_from_hf(given).num_layers >= 16


def test_cost_is_of_all_programs_and_of_what_fits():
    wanted = parse_slice("v5e:4x4")
    parts = [{"items": 8, "seconds": s, "total_memory": m} for s, m in ((1.5, 1), (0.5, 2**30))]
    found = cost(parts, wanted)
    assert found["seconds"] == 2 and found["memory"] == 2**30
    dollars = 1000 / 8 * 2 * 16 / 3600 * wanted.chip.price
    assert found["dollars_per_1000"] == pytest.approx(dollars)
    large = cost([*parts, {"items": 8, "total_memory": 17e9}], wanted)
    assert large["seconds"] is None and large["dollars_per_1000"] is None


def test_the_committed_page_is_what_its_results_make():
    rows = json.loads((FOLDER / "results.json").read_text())
    known = {scaling._point(row) for row in rows}
    text = page(rows, [point for point in points(scaling.EVERYTHING) if point not in known])
    assert (FOLDER / "README.md").read_text() == text
    assert "Nothing has run on a TPU" in text
    for words, value, _ in checks(rows):
        assert f"| {words} | {value:.3g} |" in text
    rows[0] = rows[0] | {"memory": 3 * rows[0]["memory"]}  # the control
    assert page(rows, []) != text
