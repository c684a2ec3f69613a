"""The data section of a run and of a benchmark."""

import dataclasses
from collections.abc import Iterator

from rmas_jax.config.fields import Section, option

GENERATED = "reasoning-gym"  # a data set that is generated


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """Questions with answers and role texts; in a run, its training data."""

    dataset: str = option(
        "relay; a published data set such as Sequential-Math; the id of a data set on the Hugging "
        "Face hub, OWNER/NAME, whose folder of that name below $RMAS_DATA comes first; the path of "
        "a JSON, JSON lines or parquet file, or of a folder of them (with a slash: ./mine), where "
        "names such as test.jsonl tell the splits; reasoning-gym; or files",
        "relay",
        path="data",
    )
    revision: str | None = option("of a hub id: its commit; null: the newest", None, longest=100)
    patterns: dict[str, str] | None = option(
        "of a hub id or a folder: split -> its files there (test*.jsonl), other ones are not read; "
        "null: their names tell the splits",
        None,
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
    rule: str | None = option(
        "how a row becomes a question, where choosing columns is not enough: a name of "
        "rmas_jax/data/rules.py, such as gpqa or gsm8k",
        None,
    )
    seed: int = option(
        "of the rule gpqa, which shuffles options, and of reasoning-gym", 42, at_least=0
    )
    generators: dict[str, int] | None = option(
        "with dataset reasoning-gym: generator -> number of its questions", None, at_least=1
    )
    generator_settings: dict[str, int] | None = option(
        "GENERATOR.SETTING -> its value, such as basic_arithmetic.max_terms: 3", None
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
        """Settings are set where they are used, and shares leave rows to train on."""
        if (self.dataset == "files") != (self.files is not None):
            yield "files", "goes with dataset: files, and only with it"
        elif self.files is not None and not self.files:
            yield "files", "must name at least one split, got none"
        for name in ("revision", "patterns"):
            if getattr(self, name) is not None and self.dataset in ("relay", "files", GENERATED):
                yield name, f"of no use with dataset: {self.dataset}"
        if self.patterns is not None and not self.patterns:
            yield "patterns", "must name at least one split, got none"
        if (self.dataset == GENERATED) != bool(self.generators):
            yield "generators", f"goes with dataset: {GENERATED}, and only with it"
        if self.rule is not None:
            if self.dataset in ("relay", GENERATED):
                yield "rule", f"of no use with dataset: {self.dataset}"
            for name in ("question", "answer"):
                if name in (self.columns or {}):
                    yield "columns", f"{name}: the rule {self.rule} makes it"
        if self.validation_share + self.test_share >= 1:
            yield "test_share", "validation_share and test_share leave nothing to train on"
