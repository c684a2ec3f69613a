"""Questions of `reasoning-gym`: generated from a seed, checked by the generators' own verifiers.

A question's fields say how its generator makes it again, as verifiers need more than its text:
`generator`, and `arguments` of `reasoning_gym.create_dataset` with the question's `index`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from rmas_jax.config import DataConfig
from rmas_jax.config.data import GENERATED
from rmas_jax.data.examples import Example
from rmas_jax.data.rows import BadRow, DataError
from rmas_jax.host.errors import clipped, shown

HOW_TO_INSTALL = "pip install 'rmas_jax[reasoning]'"


def digest(config: DataConfig) -> str:
    """Identifies the questions: their settings and the release that makes them.

    Raises:
      DataError: the package is not installed.
    """
    try:
        release = metadata.version(GENERATED)
    except metadata.PackageNotFoundError:
        raise DataError(f"data.dataset={GENERATED} needs {GENERATED}: {HOW_TO_INSTALL}") from None
    settings = [release, config.seed, config.generators, config.generator_settings]
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]


def read(config: DataConfig) -> tuple[dict[str, list[Example]], Sequence[BadRow]]:
    """All questions, as the split test.

    Raises:
      DataError: there is no such generator or setting.
    """
    examples = []
    for generator, count in (config.generators or {}).items():
        arguments = {"seed": config.seed, "size": count, **_settings(config, generator)}
        dataset = generated(generator, arguments)
        for i in range(count):
            entry = dataset[i]
            examples.append(
                Example(
                    id=f"{generator}:{i}",
                    question=entry["question"],
                    answer=entry["answer"] or "",
                    fields={
                        "generator": generator,
                        "arguments": json.dumps(arguments),
                        "index": str(i),
                    },
                )
            )
    return {"test": examples}, ()


def _settings(config: DataConfig, generator: str) -> dict[str, int]:
    """The settings of one generator."""
    found = {}
    for name, value in (config.generator_settings or {}).items():
        of, _, setting = name.partition(".")
        if of not in (config.generators or {}) or not setting:
            raise DataError(
                "data.generator_settings must name GENERATOR.SETTING, of data.generators, got "
                f"{shown(name)}"
            )
        if of == generator:
            found[setting] = value
    return found


def generated(generator: str, arguments: dict[str, Any]) -> Any:
    """The data set of a generator, whose questions are made when they are read.

    Raises:
      DataError: there is no such generator or setting.
    """
    import reasoning_gym  # an extra
    from reasoning_gym.factory import DATASETS

    if generator not in DATASETS:
        raise DataError(
            f"data.generators must be among {', '.join(sorted(DATASETS))}, got {shown(generator)}"
        )
    try:
        return reasoning_gym.create_dataset(generator, **arguments)
    except (TypeError, AssertionError, ValueError) as error:  # of its settings
        raise DataError(
            f"data.generator_settings: {generator}: {clipped(str(error), 300)}"
        ) from None
