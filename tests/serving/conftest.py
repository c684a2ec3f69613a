"""A small team, and an engine of it that is warm and runs."""

from __future__ import annotations

import pytest
from engines import SETTINGS, with_more_ends
from teams import build_team

from rmas_jax.serving.engine import Engine


@pytest.fixture(scope="session")
def team_and_links(tmp_path_factory):
    team, links = build_team(tmp_path_factory.mktemp("team"))
    return with_more_ends(team), links


@pytest.fixture(scope="module")
def engine(team_and_links):
    engine = Engine(*team_and_links, SETTINGS)
    engine.warm()
    engine.start()
    yield engine
    engine.close()
