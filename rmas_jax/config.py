"""The configuration of a run: frozen dataclasses, read strictly from YAML with overrides.

Each field is declared once, with `option`: its meaning, its default and what it allows. Checking
(`load_config`) and documentation (`field_help`) both read that one description. A file is checked
as a whole before anything else happens, and every problem in it is reported in one `ConfigError`.
"""

import copy
import dataclasses
import difflib
import json
import re
import sys
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import draccus
import yaml

# The roles that each pattern of collaboration needs, in the order of their turns.
PATTERN_ROLES = {"sequential": ("planner", "critic", "solver")}
INNER_LINK_FORMS = ("linear", "linear_res", "mlp", "mlp_res", "ln_res")
OUTER_LINK_FORMS = (*INNER_LINK_FORMS, "ln")
METHODS = (
    "recursive_mas",
    "aligned_links",
    "recursive_text",
    "truncated_text",
    "no_latents",
    "shuffled_latents",
    "single_agents",
)
MAX_ROUNDS = 16


class ConfigError(ValueError):
    """A configuration that cannot be run: names file, field, value and what is allowed."""


# --- How a field is described -------------------------------------------------------------------

_KINDS = {bool: "true or false", int: "an integer", float: "a number", str: "text (not empty)"}


@dataclasses.dataclass(frozen=True)
class Option:
    """What a field means and which values it takes. In a list, the limits hold for each item."""

    help: str
    choices: tuple[str, ...] = ()
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    pattern: str | None = None  # a regular expression that the whole text matches
    distinct: bool = False  # a list has at least one item and no item twice

    def admits(self, kind: type, value: Any) -> bool:
        """Whether `value` is of the scalar type `kind` and within the limits."""
        if kind is float:
            # A bool is an int to Python, not to us; infinities and nan fail the comparison.
            typed = type(value) in (int, float) and abs(value) <= sys.float_info.max
        elif kind is str:
            typed = isinstance(value, str) and bool(value.strip())
        else:
            typed = type(value) is kind
        return (
            typed
            and (not self.choices or value in self.choices)
            and (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
            and (self.above is None or value > self.above)
            and (self.pattern is None or re.fullmatch(self.pattern, value) is not None)
        )

    def allowed(self, expected: Any) -> str:
        """In words, what a field of type `expected` takes."""
        kind, is_nullable = _split_optional(expected)
        if dataclasses.is_dataclass(kind):
            text = f"a section with {', '.join(field.name for field in dataclasses.fields(kind))}"
        elif typing.get_origin(kind) is dict:
            text = "a mapping of names to text"
        elif typing.get_origin(kind) is tuple:
            item = self.allowed(typing.get_args(kind)[0])
            text = f"a list{' without repeats, not empty' * self.distinct}; each item {item}"
        elif self.choices:
            text = f"one of {', '.join(self.choices)}"
        else:
            text = _KINDS[kind]
            if self.above is not None:
                text += f" above {self.above}"
            if self.at_least is not None:
                text += f" of at least {self.at_least}"
            if self.at_most is not None:
                text += f" and at most {self.at_most}"
            if self.pattern is not None:
                text += f" that matches {self.pattern}"
        return text + " or null" * is_nullable


def option(help: str, default: Any = dataclasses.MISSING, **limits: Any) -> Any:
    """A dataclass field with its description; without a default it is required."""
    return dataclasses.field(default=default, metadata={"option": Option(help, **limits)})


def _split_optional(expected: Any) -> tuple[Any, bool]:
    """`X | None` -> (X, True); any other type -> (it, False)."""
    arguments = typing.get_args(expected)
    return (arguments[0], True) if type(None) in arguments else (expected, False)


class _Section:
    """A part of the configuration; what a single field cannot say, `conflicts` does."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Yields (field, message) for values that are allowed alone but not together."""
        return iter(())


# --- The sections -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class SystemConfig(_Section):
    """Who the agents are and how they are linked."""

    agents: dict[str, str] = option("role -> directory or hub id of its language model")
    pattern: str = option("how the agents take turns", "sequential", choices=tuple(PATTERN_ROLES))
    prompts: str = option("a prompt set of the package, or the path of a YAML file", "relay")
    latent_steps: int = option("latent thoughts per stage; 0 passes nothing", 4, at_least=0)
    rounds: int = option("recursion rounds in training", 3, at_least=1, at_most=MAX_ROUNDS)
    inner_link: str = option(
        "form of the links inside an agent", "ln_res", choices=INNER_LINK_FORMS
    )
    outer_link: str = option("form of the links between agents", "ln_res", choices=OUTER_LINK_FORMS)
    sent_vectors: str = option(
        "what an outer link reads: the inner link's output, or the hidden states",
        "outer_of_inner",
        choices=("outer_of_inner", "outer_of_hidden"),
    )
    outer_start: str = option(
        "outer links before training: fitted between embedding spaces, torch's defaults, identity",
        "aligned",
        choices=("aligned", "torch_default", "identity"),
    )

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """The agents are those of the pattern."""
        roles = PATTERN_ROLES[self.pattern]
        if set(self.agents) != set(roles):
            yield (
                "agents",
                f"the {self.pattern} pattern has exactly the roles {', '.join(roles)}, "
                f"got {', '.join(self.agents) or 'none'}",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(_Section):
    """Which problems the links are trained and tested on."""

    dataset: str = option("name of the data set", "relay")
    train_size: int | None = option("training items to use; null: all", None, at_least=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InnerConfig(_Section):
    """The inner loop: each agent's own link, trained alone."""

    steps: int = option("optimiser steps; 0 leaves the inner links as they start", at_least=0)
    batch_size: int = option("tokens per step", at_least=1)
    learning_rate: float = option("peak learning rate", above=0)
    warmup_steps: int = option("steps of linear warmup, fewer than steps", at_least=0)
    items: int | None = option(
        "training items whose role texts are read; null: all", None, at_least=1
    )
    cosine_weight: float = option("weight of the cosine distance", 1.0, at_least=0)
    mse_weight: float = option("weight of the mean squared error", 0.1, at_least=0)
    passes: int = option(
        "trainings in a row: the first on states that read text, later ones also on the states of "
        "the system's own latent rounds, which drift from those",
        1,
        at_least=1,
    )
    noise: float = option(
        "Gaussian noise on what a link reads, in units of its rms; keeps it from learning contexts",
        0.0,
        at_least=0,
    )
    max_grad_norm: float = option("global gradient norm is clipped here", 1.0, above=0)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Warmup ends, and there is something to train on."""
        yield from _warmup_conflict(self.warmup_steps, self.steps)
        if self.cosine_weight == self.mse_weight == 0:
            yield "cosine_weight", "cosine_weight and mse_weight are both 0: nothing to train on"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhaseConfig(_Section):
    """One phase of the outer loop: the whole system, unrolled through its rounds."""

    name: str = option("name of the phase in logs and checkpoints", pattern=r"[\w-]+")
    latents: str = option(
        "thoughts from target texts, or from the system's own rollout",
        choices=("teacher_forced", "on_policy"),
    )
    rounds: int = option("rounds that are unrolled", at_least=1, at_most=MAX_ROUNDS)
    steps: int = option("optimiser steps", at_least=1)
    batch_size: int = option("items per step", at_least=1)
    learning_rate: float = option("peak learning rate", above=0)
    warmup_steps: int = option("steps of linear warmup, fewer than steps", 10, at_least=0)
    optimizer: str = option(
        "name of an optax optimiser", "adamw", choices=("adamw", "adam", "sgd", "lion")
    )
    schedule: str = option("learning rate after warmup", "cosine", choices=("cosine", "constant"))
    weight_decay: float = option("decoupled weight decay (adamw, lion)", 0.0, at_least=0)
    max_grad_norm: float = option("global gradient norm is clipped here", 1.0, above=0)
    round_weights: tuple[float, ...] = option(
        "weight of each round's loss, one per round; empty: the last round only", (), at_least=0
    )
    role_text_weight: float = option("weight of each stage's role text loss", 0.0, at_least=0)
    train_inner_links: bool = option("whether the inner links are trained on as well", False)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Warmup ends, and weights fit the rounds and the optimiser."""
        yield from _warmup_conflict(self.warmup_steps, self.steps)
        if self.round_weights and len(self.round_weights) != self.rounds:
            yield (
                "round_weights",
                f"expected none or one per round ({self.rounds}), got {len(self.round_weights)}",
            )
        if self.round_weights and not any(self.round_weights):
            yield "round_weights", "all are 0: nothing to train on"
        if self.weight_decay and self.optimizer not in ("adamw", "lion"):
            yield "weight_decay", f"{self.optimizer} has none: use adamw or lion, or leave it at 0"


@dataclasses.dataclass(frozen=True, kw_only=True)
class OuterConfig(_Section):
    """The outer loop: all links together, in phases, with checkpoints."""

    phases: tuple[PhaseConfig, ...] = option("run one after the other; empty: no outer loop")
    checkpoint_every: int = option("steps between checkpoints", 50, at_least=1)
    keep_checkpoints: int = option("newest checkpoints to keep", 2, at_least=1)
    log_every: int = option("steps between log lines", 10, at_least=1)
    validation_every: int = option("steps between validations", 50, at_least=1)
    validation_size: int = option("validation items", 128, at_least=1)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Phases are told apart by name."""
        names = [phase.name for phase in self.phases]
        if repeated := {name for name in names if names.count(name) > 1}:
            yield "phases", f"more than one phase is called {', '.join(sorted(repeated))}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig(_Section):
    """What is measured after training."""

    rounds: tuple[int, ...] = option(
        "rounds to evaluate at", (1, 2, 3, 4), at_least=1, at_most=MAX_ROUNDS, distinct=True
    )
    splits: tuple[str, ...] = option(
        "splits of the data set", ("test", "test_unseen_entities"), distinct=True
    )
    size: int | None = option("items per split; null: the whole split", None, at_least=1)
    batch_size: int = option("items per batch", 256, at_least=1)
    max_new_tokens: int = option("longest answer, in tokens", 16, at_least=1)
    gradient_batch_size: int = option("items behind the gradient norms", 32, at_least=1)
    methods: tuple[str, ...] = option(
        "systems and controls to compare", METHODS, choices=METHODS, distinct=True
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RuntimeConfig(_Section):
    """How the run uses the machine."""

    dtype: str = option(
        "type of the agents' weights; links and losses stay in float32",
        "float32",
        choices=("float32", "bfloat16"),
    )
    compilation_cache: bool = option("whether compiled programs are kept between runs", True)
    progress: bool = option("whether progress bars are shown", True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(_Section):
    """A whole run: train the links of a system, evaluate it, report."""

    name: str = option("name of the run and of its folder", pattern=r"\w[\w.-]*")
    seed: int = option("seed of everything random", 0, at_least=0, at_most=2**32 - 1)
    output_dir: str = option("folder that holds the folders of runs", "runs")
    system: SystemConfig = option("the agents and how they are linked")
    data: DataConfig = option("the problems", DataConfig())
    inner: InnerConfig = option("the inner loop of training")
    outer: OuterConfig = option("the outer loop of training")
    evaluation: EvaluationConfig = option("what is measured", EvaluationConfig())
    runtime: RuntimeConfig = option("use of the machine", RuntimeConfig())


def _warmup_conflict(warmup_steps: int, steps: int) -> Iterator[tuple[str, str]]:
    if 0 < steps <= warmup_steps:
        yield "warmup_steps", f"expected fewer than steps ({steps}), got {warmup_steps}"


# --- Reading and writing ------------------------------------------------------------------------


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads a run's configuration.

    Args:
        path: a YAML file. `1e-3` is a number and `yes` is text, as in YAML 1.2.
        overrides: `section.field=value` strings, the value in YAML; later ones win. Items of lists
            go by number: `outer.phases.0.steps=10`.

    Returns:
        The checked configuration.

    Raises:
        ConfigError: the file cannot be read, or something in it or in the overrides is not
            allowed. The message lists all problems found.
    """
    tree = _read(Path(path))
    changed = {_apply(tree, override): override for override in overrides}
    problems = list(_problems(RunConfig, tree, Option("the whole file"), ()))
    if not problems:
        config = draccus.decode(RunConfig, tree)
        problems = list(_conflicts(config, ()))
    if problems:
        lines = []
        for where, message in problems:
            # The overrides that set this field, or the section around it, or something inside it.
            causes = [
                f" (from override {override!r})"
                for field, override in changed.items()
                if field[: len(where)] == where[: len(field)]
            ]
            lines.append(".".join(where) + ": " * bool(where) + message + "".join(causes[-1:]))
        head = "" if len(lines) == 1 else f"{len(lines)} problems\n  "
        raise ConfigError(f"{path}: {head}" + "\n  ".join(lines))
    return config


def dump_config(config: RunConfig) -> str:
    """Writes `config`, all defaults included, as YAML that `load_config` reads back as equal."""
    tree = dataclasses.asdict(config)
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def field_help() -> str:
    """Lists every field with what it takes, its default and its meaning, for `--help`."""
    return "\n".join(
        f"{name}: {limits.allowed(expected)} ({default})\n    {limits.help}"
        for name, expected, limits, default in _described(RunConfig, "")
    )


def _described(section: type, prefix: str) -> Iterator[tuple[str, Any, Option, str]]:
    """Yields (dotted name, type, option, default in words) of all fields below `section`.

    Sections themselves are left out; the fields of a list's items get `N` for the item's number.
    """
    for field in dataclasses.fields(section):
        expected, name = field.type, prefix + field.name
        if dataclasses.is_dataclass(expected):
            yield from _described(expected, f"{name}.")
            continue
        default = "required"
        if field.default is not dataclasses.MISSING:
            default = f"default {json.dumps(field.default)}"
        yield name, expected, field.metadata["option"], default
        item = next(iter(typing.get_args(expected)), None)
        if dataclasses.is_dataclass(item):
            yield from _described(item, f"{name}.N.")


# A problem is the path of a field and what is wrong with it.
_Path = tuple[str, ...]
_Problem = tuple[_Path, str]


def _problems(expected: Any, value: Any, limits: Option, path: _Path) -> Iterator[_Problem]:
    """Yields what is wrong with the parsed YAML `value` as a field of type `expected`."""
    kind, is_nullable = _split_optional(expected)
    container, arguments = typing.get_origin(kind), typing.get_args(kind)
    if value is None and is_nullable:
        return
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        yield from _section_problems(kind, value, path)
    elif container is dict and isinstance(value, dict):
        for key, item in value.items():
            yield from _problems(str, key, Option("a key"), (*path, str(key)))
            yield from _problems(arguments[1], item, limits, (*path, str(key)))
    elif container is tuple and isinstance(value, list):
        for index, item in enumerate(value):
            yield from _problems(arguments[0], item, limits, (*path, str(index)))
        if limits.distinct and (not value or any(value.count(item) > 1 for item in value)):
            yield path, f"expected {limits.allowed(kind)}, got {_show(value)}"
    elif kind not in _KINDS or not limits.admits(kind, value):
        advice = ""
        if kind is str and type(value) in (bool, int, float) and not limits.choices:
            advice = "; put it in quotes to make it text"
        yield path, f"expected {limits.allowed(expected)}, got {_show(value)}{advice}"


def _section_problems(section: type, tree: dict, path: _Path) -> Iterator[_Problem]:
    fields = {field.name: field for field in dataclasses.fields(section)}
    for key, value in tree.items():
        if key in fields:
            field = fields[key]
            yield from _problems(field.type, value, field.metadata["option"], (*path, key))
            continue
        close = difflib.get_close_matches(str(key), fields, n=1)
        close += [name for name, *_ in _described(RunConfig, "") if name.endswith(f".{key}")]
        advice = f"did you mean {' or '.join(close)}? " if close else ""
        yield (
            (*path, str(key)),
            f"unknown key (value {_show(value)}); {advice}allowed here: {', '.join(fields)}",
        )
    for name, field in fields.items():
        if name not in tree and field.default is dataclasses.MISSING:
            limits = field.metadata["option"]
            yield (*path, name), f"required and missing; expected {limits.allowed(field.type)}"


def _conflicts(section: _Section, path: _Path) -> Iterator[_Problem]:
    """Yields what the sections say about fields that do not go together."""
    for name, message in section.conflicts():
        yield (*path, name), message
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if isinstance(value, _Section):
            yield from _conflicts(value, (*path, field.name))
        elif isinstance(value, tuple):
            for index, item in enumerate(value):
                if isinstance(item, _Section):
                    yield from _conflicts(item, (*path, field.name, str(index)))


def _apply(tree: Any, override: str) -> _Path:
    """Sets one `a.b.c=value` in the parsed file and returns its path; missing sections are made."""
    name, equals, text = override.partition("=")
    path = tuple(name.strip().split("."))
    if not equals or not all(path):
        raise ConfigError(f"override {override!r}: expected field=value, such as inner.steps=200")
    value = _parse(text, f"override {override!r}")
    # What lies on the way is copied: a YAML anchor and its aliases are one object.
    for depth, part in enumerate(path):
        is_last = depth == len(path) - 1
        if isinstance(tree, dict):
            tree[part] = value if is_last else copy.copy(tree.get(part, {}))
            tree = tree[part]
        elif isinstance(tree, list) and part.isdecimal() and int(part) < len(tree):
            index = int(part)
            tree[index] = value if is_last else copy.copy(tree[index])
            tree = tree[index]
        else:
            around = ".".join(path[:depth]) or "the file"
            held = f"{len(tree)} items, counted from 0" if isinstance(tree, list) else _show(tree)
            raise ConfigError(f"override {override!r}: no {part!r} in {around}, which is {held}")
    return path


def _read(path: Path) -> Any:
    try:
        return _parse(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")])
        advice = f"; in the same folder: {', '.join(near)}" if near else ""
        raise ConfigError(f"{path}: cannot be read ({error.strerror}){advice}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not text in UTF-8 ({error.reason})") from error


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        what = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{source}: not valid YAML{where}: {what}") from error


def _show(value: Any) -> str:
    """`value` for a message: as YAML writes it, or nearly, and not too long."""
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, where YAML's own loader keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = []
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in keys:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key!r} is given twice", problem_mark=key_node.start_mark
                )
            keys.append(key)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would read as something else."""


# Plain scalars mean what they do in YAML 1.2's core schema: PyYAML follows 1.1, where 1e-3 is text,
# `yes` and `off` are booleans, 010 is eight and 1:30 is ninety.
_SCALARS = {
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "null": (r"~|null|Null|NULL|", [*"~nN", ""]),
    "int": (r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    "float": (
        r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}
for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {}
    for _tag, (_pattern, _first) in _SCALARS.items():
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first
        )
