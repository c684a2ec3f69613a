"""Questions of `reasoning-gym`: generated from a seed, checked by the generators' own verifiers.

A question's fields say how its generator makes it again, as verifiers need more than its text:
`generator`, and `arguments` of `reasoning_gym.create_dataset` with the question's `index`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any

import numpy as np

from rmas_jax.config import DataConfig
from rmas_jax.config.data import GENERATED
from rmas_jax.data.examples import Example
from rmas_jax.data.rows import BadRow, DataError
from rmas_jax.host.errors import clipped, shown

HOW_TO_INSTALL = "pip install 'rmas_jax[reasoning]'"
TEST = "test"
SPLITS = (TEST, "validation", "train")  # a question of several ones stays in the first


def digest(config: DataConfig, roles: Sequence[str]) -> str:
    """Identifies the questions: their settings and the release that makes them.

    Raises:
      DataError: the package is not installed.
    """
    try:
        release = metadata.version(GENERATED)
    except metadata.PackageNotFoundError:
        raise DataError(f"data.dataset={GENERATED} needs {GENERATED}: {HOW_TO_INSTALL}") from None
    settings: list[Any] = [release, config.seed, config.generators, config.generator_settings]
    if config.splits is not None:
        settings += [sorted(config.splits.items()), list(roles)]
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]


def read(
    config: DataConfig, roles: Sequence[str]
) -> tuple[dict[str, list[Example]], Sequence[BadRow]]:
    """All questions by split, and those left out.

    Splits share no question: see `SPLITS`. The last one of `roles`, the answerer, has the answers
    as its texts.

    Raises:
      DataError: there is no such generator or setting, or a split has no question.
    """
    splits: dict[str, list[Example]] = {}
    bad: list[BadRow] = []
    home_of: dict[str, str] = {}  # question -> its split
    for split in SPLITS:
        if split != TEST and split not in (config.splits or {}):
            continue
        splits[split] = []
        for example in _examples(config, split, roles):
            home = home_of.setdefault(" ".join(example.question.split()), split)
            if home != split:
                bad.append(_left_out(example, split, f"the same question is in {home}"))
            elif split != TEST and not example.answer:
                bad.append(_left_out(example, split, "answer must be given, got none"))
            else:
                splits[split].append(example)
        if not splits[split]:
            raise DataError(
                f"data.splits: {split} must have a question that no earlier split has, got none; "
                f"the last one left out: {bad[-1].reason}"
            )
    return splits, bad


def _left_out(example: Example, split: str, reason: str) -> BadRow:
    index = int(example.fields["index"])
    return BadRow(f"{GENERATED}: {example.fields['generator']}: {split}", index + 1, reason)


def _examples(config: DataConfig, split: str, roles: Sequence[str]) -> Iterator[Example]:
    """The questions of a split, as they are generated."""
    for generator, count in (config.generators or {}).items():
        size = count if split == TEST else (config.splits or {})[split]
        arguments = {
            "seed": _seed(config.seed, split),
            "size": size,
            **_settings(config, generator),
        }
        dataset = generated(generator, arguments)
        for i in range(size):
            entry = dataset[i]
            answer = entry["answer"] or ""
            yield Example(
                id=f"{generator}:{i}",
                question=entry["question"],
                answer=answer,
                texts={role: (answer,) for role in roles[-1:]},
                fields={
                    "generator": generator,
                    "arguments": json.dumps(arguments),
                    "index": str(i),
                },
            )


def _seed(seed: int, split: str) -> int:
    """The seed of a split; generators add a question's number to it, so seeds lie far apart."""
    if split == TEST:
        return seed
    return int(np.random.SeedSequence([seed, SPLITS.index(split)]).generate_state(1)[0])


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
