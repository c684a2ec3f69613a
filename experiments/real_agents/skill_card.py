"""What is known of a tuned skill, and the card of the agent that has it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.real_agents.fetch import MODELS, sha256_of
from rmas_jax.evaluation.metrics import Interval, wilson_interval

RECORD = "skill.json"  # beside the agent
GATE = 0.95  # of validation texts that an agent of a team writes exactly
SHOWN = 5  # wrong answers on a card
NOTICES = ("LICEN[CS]E*", "NOTICE*", "*TERMS*", "COPYING*")  # beside a model


class Share(NamedTuple):
    """Validation texts that an agent wrote exactly."""

    exact: int
    n: int

    @property
    def value(self) -> float:
        """From 0 to 1."""
        return self.exact / self.n

    @property
    def interval(self) -> Interval:
        """Wilson's, 95 %."""
        return wilson_interval(self.exact, self.n)

    def as_json(self) -> dict[str, Any]:
        """Counts, share and interval."""
        ends = [round(end, 4) for end in self.interval]
        return {**self._asdict(), "share": round(self.value, 4), "interval": ends}

    def __str__(self) -> str:
        share, low, high = (f"{100 * x:.1f}" for x in (self.value, *self.interval))
        return f"{share} % [{low}, {high}], {self.exact} of {self.n}"


@dataclasses.dataclass(frozen=True)
class Skill:
    """A finished tuning of one role's agent on its own part."""

    role: str
    trained: str  # what was changed, in words
    source: str  # name of the file or folder that it was tuned from, or a hub id
    sha256: Mapping[str, str]  # weight file of the source -> its digest
    licence: str  # of the source, in words
    chat_template: str  # name, or "its own"
    evidence: Mapping[str, Any]  # dials of the data
    data_seed: int
    seed: int  # of the order of batches
    steps: int
    batch_size: int
    learning_rate: float
    schedule: str
    seconds: float  # of the tuning, compilation and its own validation included
    seconds_per_step: float  # median
    peak_gib: float  # of the process, in training
    tuned: Share
    downloaded: Share  # the same questions before tuning
    wrong: Sequence[tuple[str, str, str]]  # question, its text, and the wanted one
    adapter_sha256: str  # of the run's file with all weights

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON."""
        shares = {name: getattr(self, name).as_json() for name in ("tuned", "downloaded")}
        return {**dataclasses.asdict(self), **shares, "gate": GATE, "passes": self.passes}

    @property
    def passes(self) -> bool:
        """Whether the agent does its part."""
        return self.tuned.value >= GATE


def weight_digests(model: Path) -> dict[str, str]:
    """SHA-256 of the weight files of a local model, a GGUF file or a folder."""
    files = [model] if model.is_file() else sorted(model.glob("*.safetensors"))
    return {file.name: sha256_of(file) for file in files}


def licence_of(digests: Mapping[str, str], notices: Sequence[str]) -> str:
    """The licence of a model in words: that of a fetched one, or where it is to be found."""
    for known in MODELS.values():
        if known.sha256 in digests.values():
            return known.licence
    return f"see {', '.join(notices)}" if notices else "not known: no notice lies beside it"


def notices_beside(model: Path) -> dict[str, bytes]:
    """Licences and terms that lie beside a local model, by name."""
    folder = model.parent if model.is_file() else model
    if not folder.is_dir():
        return {}
    found = {file for pattern in NOTICES for file in folder.glob(pattern) if file.is_file()}
    return {file.name: file.read_bytes() for file in sorted(found)}


def card(skill: Skill, notices: Sequence[str]) -> str:
    """The README.md of the saved agent.

    Args:
      skill: what is known of it.
      notices: names of the licence files beside the card.
    """
    dials = ", ".join(f"{name} {value}" for name, value in skill.evidence.items())
    digests = ", ".join(f"{file} {digest}" for file, digest in skill.sha256.items())
    rows = {
        "tuned from": f"{skill.source} (SHA-256: {digests or 'not local'})",
        "licence of the source": skill.licence,
        "what was changed": f"{skill.trained}, in float32; the tokenizer is the source's, "
        f"the chat template: {skill.chat_template}",
        "data": f"split-evidence, its skill set of one role: {dials}; seed {skill.data_seed}",
        "tuning": f"{skill.steps} steps of {skill.batch_size} rows, AdamW, learning rate "
        f"{skill.learning_rate:g}, {skill.schedule}, seed {skill.seed}; of its checkpoints, the "
        "one of lowest validation loss",
        "time": f"{skill.seconds:.0f} s, {skill.seconds_per_step:.2f} s a step; "
        f"{skill.peak_gib:.1f} GiB at most",
        "validation, exact text": str(skill.tuned),
        "as downloaded": str(skill.downloaded),
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"""# {skill.role} of split evidence, tuned from {skill.source}

{_verdict(skill)}

Made by `experiments/real_agents/skills.py` of rmas_jax. The agent saw its own role's part alone:
its evidence, the question and the other role's message, with its own text as the answer. It
never saw a question of the team as a whole; persons, places and codes of validation and test
are others.

| | |
|---|---|
{table}

Intervals are Wilson's, 95 %, over the questions of the validation split.
{_wrong(skill.wrong)}
## Notice

The weights in this folder are a modified version of those named above. {_notice(notices)}
"""


def _verdict(skill: Skill) -> str:
    gate = f"{100 * GATE:g} % of validation texts"
    if skill.passes:
        return f"It does its part: at least {gate} are exact."
    return (
        f"**It is too weak**: fewer than {gate} are exact. It was saved all the same, on request."
    )


def _wrong(wrong: Sequence[tuple[str, str, str]]) -> str:
    if not wrong:
        return ""
    lines = "".join(f"* {q!r}: {text!r}, wanted {gold!r}\n" for q, text, gold in wrong)
    return f"\nThe first wrong texts:\n\n{lines}"


def _notice(notices: Sequence[str]) -> str:
    if not notices:
        return "No licence lay beside the source."
    links = ", ".join(f"[{name}]({name})" for name in notices)
    return f"Licences and terms of the source hold for it: {links}."
