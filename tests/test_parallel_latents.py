"""The page of the study of parallel latents: of its results, with predictions by the ridge."""

import json
from pathlib import Path

import pytest

from experiments.studies.parallel_latents_page import light_agents, page, sweeps_of_a_step

FOLDER = Path(__file__).parent.parent / "docs" / "parallel-latents"


def test_the_page_is_that_of_its_results():
    results = json.loads((FOLDER / "results.json").read_text())
    assert (FOLDER / "README.md").read_text() == page(results)
    assert page(results) != page({})


def test_a_sweep_costs_a_step_below_the_ridge_and_its_positions_above():
    agents = light_agents()
    assert sweeps_of_a_step(agents, 1, 32, "H100") == pytest.approx(1, rel=0.01)
    more = [sweeps_of_a_step(agents, 32, window, "H100") for window in (16, 32, 64)]
    assert more[1] == pytest.approx(2 * more[0], rel=0.01)
    assert more[2] == pytest.approx(2 * more[1], rel=0.01) and more[0] > 1.4
