"""The data section of a run and of a benchmark."""

import dataclasses
from collections.abc import Iterator

from rmas_jax.config.fields import Section, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """Questions with answers and role texts; in a run, its training data."""

    dataset: str = option(
        "relay; a published data set such as Sequential-Math; the path of a JSON, JSON lines or "
        "parquet file, or of a folder of them (with a slash: ./mine), where names such as "
        "test.jsonl tell the splits; or files",
        "relay",
        path="data",
    )
    files: dict[str, str] | None = option(
        "with dataset files: split -> its file; training needs train, and validation and test are "
        "taken from it if they have none",
        None,
        path="file",
    )
    validation_share: float = option(
        "share of the questions of a data set without splits that is validation, chosen by a hash",
        0.1,
        above=0,
    )
    test_share: float = option("share of them that is test", 0.1, at_least=0)
    columns: dict[str, str] | None = option(
        "role, or question, answer, difficulty, id -> its column in the rows, where it has another "
        "name than those that are looked for (rmas_jax/data/rows.py)",
        None,
    )
    fields: tuple[str, ...] = option("further columns that examples keep, as text", ())
    grader: str | None = option(
        "how answers are compared (rmas_jax/evaluation/graders): text, math (needs the extra eval) "
        "or choice, the letters of options; null: choice where system.task_type is choice, else "
        "text. The answer is what stands in \\boxed{} or behind a last ####, if something does",
        None,
    )
    train_size: int | None = option("training items to use; null: all", None, at_least=1)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Files are set if they are read, and shares leave rows to train on."""
        if (self.dataset == "files") != (self.files is not None):
            yield "files", "goes with dataset: files, and only with it"
        elif self.files is not None and not self.files:
            yield "files", "must name at least one split, got none"
        if self.validation_share + self.test_share >= 1:
            yield "test_share", "validation_share and test_share leave nothing to train on"
