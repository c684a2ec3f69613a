"""The data section of a run and of a benchmark."""

import dataclasses
from collections.abc import Iterator

from rmas_jax.config.evidence import EvidenceConfig
from rmas_jax.config.fields import Section, option
from rmas_jax.host.errors import shown

GENERATED, EVIDENCE = MADE = ("reasoning-gym", "split-evidence")  # data sets that are generated


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """Questions with answers and role texts; in a run, its training data."""

    dataset: str = option(
        "relay; a published data set such as Sequential-Math; the id of a data set on the Hugging "
        "Face hub, OWNER/NAME, whose folder of that name below $RMAS_DATA comes first; the path of "
        "a JSON, JSON lines or parquet file, or of a folder of them (with a slash: ./mine), whose "
        "names are those of the splits, such as test.jsonl; reasoning-gym; split-evidence; files",
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
    rule: str | None = option(
        "how a row becomes a question, where choosing columns is not enough: a name of "
        "rmas_jax/data/rules.py, such as gpqa or gsm8k",
        None,
    )
    seed: int = option(
        "of the rule gpqa, which shuffles options, of reasoning-gym and of split-evidence",
        42,
        at_least=0,
    )
    generators: dict[str, int] | None = option(
        "with dataset reasoning-gym: generator -> number of its questions", None, at_least=1
    )
    splits: dict[str, int] | None = option(
        "with dataset reasoning-gym: train or validation -> number of questions of each generator; "
        "null: test alone",
        None,
        at_least=1,
    )
    generator_settings: dict[str, int] | None = option(
        "GENERATOR.SETTING -> its value, such as basic_arithmetic.max_terms: 3", None
    )
    evidence: EvidenceConfig | None = option(
        "with dataset split-evidence: its questions ({}: the defaults)", None
    )
    fields: tuple[str, ...] = option("further columns to keep in examples, as text", ())
    grader: str | None = option(
        "comparison of answers (rmas_jax/evaluation/graders): text; qa, HotpotQA's normal form; "
        "math (needs the extra eval); choice, the letters of options; code, tests in the sandbox; "
        "judge, a language model (needs the extra eval); relay; reasoning, with dataset: "
        "reasoning-gym (needs the extra reasoning). null: relay with dataset: relay, choice where "
        "system.task_type is choice, else text. An answer is the content of the last \\boxed{}, or "
        "the text after the last ####, if there is one",
        None,
    )
    train_size: int | None = option("training items to use; null: all", None, at_least=1)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Settings are set where they are used, and shares leave rows to train on."""
        if (self.dataset == "files") != (self.files is not None):
            got = "null" if self.files is None else f"{len(self.files)} files"
            yield "files", f"must be set with dataset: files and null otherwise, got {got}"
        elif self.files is not None and not self.files:
            yield "files", "must name at least one split, got none"
        for name in ("revision", "patterns"):
            value = getattr(self, name)
            if value is not None and self.dataset in ("relay", "files", *MADE):
                yield name, f"must be null with dataset: {self.dataset}, got {shown(value)}"
        if self.patterns is not None and not self.patterns:
            yield "patterns", "must name at least one split, got none"
        yield from self._generated_conflicts()
        if self.rule is not None:
            if self.dataset in ("relay", *MADE):
                yield "rule", f"must be null with dataset: {self.dataset}, got {shown(self.rule)}"
            for name in ("question", "answer"):
                if name in (self.columns or {}):
                    yield "columns", f"must leave the {name} to the rule {self.rule}, got {name}"
        if self.validation_share + self.test_share >= 1:
            yield (
                "test_share",
                f"must be below 1 - validation_share ({1 - self.validation_share:g}), "
                f"got {self.test_share:g}",
            )

    def _generated_conflicts(self) -> Iterator[tuple[str, str]]:
        """Settings of generated data sets are set with these alone."""
        if (self.dataset == GENERATED) != bool(self.generators):
            got = f"{len(self.generators)} generators" if self.generators else "none"
            yield (
                "generators",
                f"must be set with dataset: {GENERATED} and null otherwise, got {got}",
            )
        if self.splits is not None:
            got = ", ".join(self.splits) or "none"
            if self.dataset != GENERATED:
                yield "splits", f"must be null without dataset: {GENERATED}, got {got}"
            elif not self.splits or set(self.splits) - {"train", "validation"}:
                yield "splits", f"must be of train, validation or both, got {got}"
        if (self.dataset == EVIDENCE) != (self.evidence is not None):
            got = "null" if self.evidence is None else "a section"
            yield (
                "evidence",
                f"must be set with dataset: {EVIDENCE} and null otherwise, got {got}",
            )
        if self.dataset == EVIDENCE and self.columns is not None:
            yield "columns", f"must be null with dataset: {EVIDENCE}, got {shown(self.columns)}"
