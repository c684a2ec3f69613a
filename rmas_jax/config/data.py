"""The data section of a run and of a benchmark."""

import dataclasses
from collections.abc import Iterator

from rmas_jax.config.fields import Section, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """Questions with answers and role texts; in a run, its training data."""

    dataset: str = option(
        "relay; a published data set such as Sequential-Math; the path of a JSON, JSON lines or "
        "parquet file, or of a folder of them (with a slash: ./mine), whose names are those of the "
        "splits, such as test.jsonl; or files",
        "relay",
        path="data",
    )
    files: dict[str, str] | None = option(
        "with dataset: files: split -> file; train is required; missing validation and test splits "
        "are taken from it",
        None,
        path="file",
    )
    validation_share: float = option(
        "in a data set without splits: share of validation questions, chosen by a hash",
        0.1,
        above=0,
    )
    test_share: float = option(
        "in a data set without splits: share of test questions", 0.1, at_least=0
    )
    columns: dict[str, str] | None = option(
        "role, or question, answer, difficulty, id -> column, where its name is none of the "
        "defaults (rmas_jax/data/rows.py)",
        None,
    )
    fields: tuple[str, ...] = option("further columns to keep in examples, as text", ())
    grader: str | None = option(
        "comparison of answers (rmas_jax/evaluation/graders): text, math (needs the extra eval) "
        "or choice, the letters of options; null: choice where system.task_type is choice, else "
        "text. An answer is the content of the last \\boxed{}, or the text after the last ####, if "
        "there is one",
        None,
    )
    train_size: int | None = option("training items to use; null: all", None, at_least=1)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Files are set if `dataset` is files, and shares leave rows to train on."""
        if (self.dataset == "files") != (self.files is not None):
            got = "null" if self.files is None else f"{len(self.files)} files"
            yield "files", f"must be set with dataset: files and null otherwise, got {got}"
        elif self.files is not None and not self.files:
            yield "files", "must name at least one split, got none"
        if self.validation_share + self.test_share >= 1:
            yield (
                "test_share",
                f"must be below 1 - validation_share ({1 - self.validation_share:g}), "
                f"got {self.test_share:g}",
            )
