"""Chips, slices, prices, and the least times that follow from counts."""

import datetime

import pytest

from rmas_jax.planning.chips import (
    COLLECTIVE_LATENCY_S,
    SliceError,
    chips,
    parse_slice,
    price_list,
    roofline,
)
from rmas_jax.planning.hlo import Collective, Cost


def test_data_sheets_are_complete_and_prices_have_a_date_and_a_source():
    listed = price_list()
    assert set(listed["prices"]) == set(chips()) and listed["source"]
    assert datetime.date.fromisoformat(str(listed["date"])) >= datetime.date(2026, 1, 1)
    for chip in chips().values():
        assert 16e9 <= chip.memory < 1e12 and 5e11 < chip.bandwidth < 1e13
        assert chip.peak("bfloat16") >= chip.peak("float32") > 1e13
        assert chip.price is None or 0.1 < chip.price < 100


def test_ridges_are_those_of_the_data_sheets():
    """Rows at which reading a bfloat16 weight takes as long as multiplying with it."""
    ridges = {c.name: c.peak("bfloat16") / c.bandwidth for c in chips().values()}
    known = {"v4": 224, "v5e": 240, "v5p": 166, "v6e": 560, "v7x": 313, "H100": 295, "H200": 206}
    for name, rows in (known | {"B200": 281}).items():
        assert ridges[name] == pytest.approx(rows, rel=0.01), name


def test_slices_by_name():
    assert (parse_slice("v5p:4x4x4").chips, str(parse_slice("V5E:4x4"))) == (64, "v5e:4x4")
    assert parse_slice("h100:8").chip is chips()["H100"]
    assert parse_slice("v4:2x2x1").devices == 8  # two a chip, each with half of its memory
    assert parse_slice("v4:2x2x1").chip.memory == pytest.approx(16e9)


@pytest.mark.parametrize("name", ["v5e", "v5e:", "v5e:0x4", "v5e:4x4x4x4", "v5e:4,4", "v9:4", ""])
def test_what_is_no_slice_is_refused(name):
    with pytest.raises(SliceError, match="must be"):
        parse_slice(name)


def test_the_longest_resource_bounds_a_program():
    chip = chips()["v5e"]
    gather = Collective("all-gather", 4, int(chip.link_bandwidth), "", times=2)
    line = roofline(Cost(chip.peak("bfloat16"), 3 * chip.bandwidth), chip, dtype="bfloat16")
    assert (line.compute_s, line.memory_s, line.link_s) == (1, 3, 0)
    assert (line.seconds, line.bound) == (3, "memory")
    line = roofline(Cost(0.0, 0.0, (gather,)), chip, dtype="bfloat16")
    assert line.link_s == pytest.approx(6) and line.latency_s == 2 * COLLECTIVE_LATENCY_S
    assert line.bound == "links" and line.seconds == pytest.approx(6)
