"""A file with the smallest configuration."""

from pathlib import Path

import pytest
import yaml
from small_config import minimal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(minimal()))
    return file
