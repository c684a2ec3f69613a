"""The tiny team that the driver evaluates."""

import pytest
from contest import open_contest


@pytest.fixture(scope="module")
def contest(tmp_path_factory):
    """Function that evaluates the team into a directory and returns the rows of both files."""
    return open_contest(tmp_path_factory.mktemp("team"))
