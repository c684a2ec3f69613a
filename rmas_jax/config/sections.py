"""The sections of a run's configuration, as frozen dataclasses."""

import dataclasses
import datetime
from collections.abc import Iterator
from typing import Any

from rmas_jax.config.audit import AuditConfig
from rmas_jax.config.benchmark import AnswerConfig, BenchmarkChoice
from rmas_jax.config.data import DataConfig
from rmas_jax.config.fields import Section, option
from rmas_jax.config.limits import (
    MAX_BATCH,
    MAX_DEVICES,
    MAX_LATENT_STEPS,
    MAX_NAME,
    MAX_NEAREST,
    MAX_ROUNDS,
    MAX_SEED,
)
from rmas_jax.config.sweeps import SweepConfig
from rmas_jax.config.training import (
    NO_INNER,
    NO_OUTER,
    InnerConfig,
    OuterConfig,
    TrainingConfig,
    TuningConfig,
    tuning_conflicts,
    with_budgets,
)
from rmas_jax.host.errors import shown
from rmas_jax.host.storage import is_remote
from rmas_jax.links import INNER, OUTER, VARIANTS
from rmas_jax.partition import DEFAULT_POLICIES, POLICIES
from rmas_jax.run_files import SHARED_FOLDERS


def _no_url(source: str) -> str:
    return (
        "must be a directory or a hub id, as models are not read from object storage: copy it to a "
        f"disk of each host first (gcloud storage cp -r, aws s3 sync), got {shown(source, 300)}"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SystemConfig(Section):
    """The agents and their links."""

    agents: dict[str, str] = option(
        "role -> its language model: a directory, a GGUF file, a hub id (org/name, or "
        "org/name/FILE.gguf; @REVISION behind it fixes the revision) or one of the package: "
        "embedded/planner, embedded/critic, embedded/solver",
        path="hub",
    )
    topology: str = option(
        "agents' order and edges: a topology of the package, or the path of a YAML file",
        "sequential",
        path="file or name",
    )
    prompts: str = option(
        "a prompt set of the package, or the path of a YAML file", "relay", path="file or name"
    )
    chat_templates: dict[str, str] | None = option(
        "role -> its chat template instead of its checkpoint's own: plain, for base models, or the "
        "path of a jinja file; null: the checkpoints' own",
        None,
        path="file or name",
    )
    task_type: str | None = option(
        "task type, for prompt sets with texts for several: math, choice, code, search, free", None
    )
    date: str | None = option(
        "date for chat templates that contain one, as YYYY-MM-DD; null: the day of the run's first "
        "start",
        None,
        pattern=r"\d{4}-\d\d-\d\d",
    )
    latent_steps: int = option(
        "latent thoughts per stage; 0 passes nothing", 4, at_least=0, at_most=MAX_LATENT_STEPS
    )
    thinking: str = option(
        "how thoughts are made: sequential, one after another, or parallel, by sweeps",
        "sequential",
        choices=("sequential", "parallel"),
    )
    sweeps: SweepConfig = option("parallel thinking", SweepConfig())
    rounds: int = option("recursion rounds in training", 3, at_least=1, at_most=MAX_ROUNDS)
    inner_link: str = option(
        "variant of the links inside an agent", "ln_res", choices=VARIANTS[INNER]
    )
    outer_link: str = option(
        "variant of the links between agents", "ln_res", choices=VARIANTS[OUTER]
    )
    sent_vectors: str = option(
        "input of outer links: the inner link's output, or the hidden states",
        "outer_of_inner",
        choices=("outer_of_inner", "outer_of_hidden"),
    )
    outer_start: str = option(
        "start of outer links: aligned, fitted between embeddings of the role texts' tokens (with "
        "inner.lists, of all that sender and receiver share), which the inner loop trains further; "
        "torch's defaults; or identity",
        "aligned",
        choices=("aligned", "torch_default", "identity"),
    )
    links: str | None = option(
        "links to start from: a .safetensors file that rmas wrote, or the directory or hub id of "
        "released outer links, whose inner links are in the agents' directories; null: new links",
        None,
        path="hub",
    )
    links_task_type: str | None = option(
        "task type of a release's links, if it has some for each", None, choices=("math", "code")
    )

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Agents are no URLs, chat templates are of their roles, the date is valid,
        links_task_type is for a release, only residual branches align, only parallel thinking has
        sweeps.
        """
        for role, source in self.agents.items():
            if is_remote(source):
                yield f"agents.{role}", _no_url(source)
        for role in self.chat_templates or {}:
            if role not in self.agents:
                yield (
                    f"chat_templates.{role}",
                    f"must be of a role of agents, {', '.join(self.agents)}, got {role}",
                )
        if self.date is not None:
            try:
                datetime.date.fromisoformat(self.date)
            except ValueError as error:
                yield "date", f"must be a day as YYYY-MM-DD, got {self.date} ({error})"
        if self.thinking == "sequential" and self.sweeps != SweepConfig():
            yield "sweeps", "must be unset with thinking: sequential, got other values"
        is_aligned = self.links is None and self.outer_start == "aligned"
        if is_aligned and "_res" not in self.outer_link:
            yield (
                "outer_start",
                f"must be torch_default or identity with outer_link={self.outer_link}, which has "
                f"no residual branch, got {self.outer_start}",
            )
        if self.links_task_type and (self.links is None or self.links.endswith(".safetensors")):
            yield (
                "links_task_type",
                f"must be null, as links={self.links} is no release, got {self.links_task_type}",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Section):
    """Measurements after training."""

    rounds: tuple[int, ...] = option(
        "rounds to evaluate at", (1, 2, 3, 4), at_least=1, at_most=MAX_ROUNDS, distinct=True
    )
    benchmarks: tuple[BenchmarkChoice, ...] = option(
        "benchmarks to evaluate; empty: the run's own questions, as with name: data", ()
    )
    seeds: tuple[int, ...] | None = option(
        "seeds of sampled answers, each measured; greedy answers use the first; null: the run's",
        None,
        at_least=0,
        at_most=MAX_SEED,
        distinct=True,
    )
    batch_size: int = option("items per batch", 256, at_least=1, at_most=MAX_BATCH)
    refill_from: int | None = option(
        "answers of at least so many max_new_tokens are refilled: the next item takes the row of "
        "an ended one, instead of waiting for the longest of the batch; null: none",
        256,
        at_least=1,
    )
    sampling: AnswerConfig = option(
        "sampling of answers; overrides that of benchmarks", AnswerConfig()
    )
    answer_retry: bool = option(
        "whether a text without an answer is continued once, for task types that allow it", True
    )
    legacy: bool = option(
        "whether answers are also compared as leniently as upstream does, as a score", False
    )
    python: bool = option("whether answerers may call Python, in a sandbox", False)
    search: str | None = option("JSON-lines corpus that answerers may search", None, path="file")
    gradient_batch_size: int = option(
        "items for the gradient norms; 0 measures none", 32, at_least=0
    )
    methods: tuple[str, ...] | None = option(
        "systems and controls to compare (rmas_jax/evaluation/methods.py); null: all "
        "(loop_lm only with its model, tuned answerers only with their entry in tuning)",
        None,
        distinct=True,
    )
    nearest_tokens: int = option(
        "tokens nearest to each vector that crosses an edge, to record with each item; 0: none",
        0,
        at_least=0,
        at_most=MAX_NEAREST,
    )
    loop_lm: str | None = option(
        "looped language model of the method loop_lm (model_type ouro): a directory, a hub id or "
        "embedded/looper; null: the method is not measured",
        None,
        path="hub",
    )
    audit: AuditConfig | None = option(
        "a causal audit of what the messages carry; null: none", None
    )

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """The looped language model is at no URL."""
        if self.loop_lm is not None and is_remote(self.loop_lm):
            yield "loop_lm", _no_url(self.loop_lm)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig(Section):
    """Sizes of the mesh axes; their product is the number of devices.

    One size may be null: as many devices as the other sizes leave.
    """

    data: int | None = option("devices that split a batch", 1, at_least=1, at_most=MAX_DEVICES)
    fsdp: int | None = option(
        "devices that split a batch and the weights",
        1,
        at_least=1,
        at_most=MAX_DEVICES,
    )
    model: int | None = option(
        "devices that split the weights along heads, feed-forward and vocabulary",
        1,
        at_least=1,
        at_most=MAX_DEVICES,
    )

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """One size at most is open."""
        if len(self.open_axes) > 1:
            yield self.open_axes[1], f"must be a size, as {self.open_axes[0]} is null, got null"

    @property
    def open_axes(self) -> tuple[str, ...]:
        """The axes whose size is null."""
        sizes = dataclasses.asdict(self)
        return tuple(axis for axis, size in sizes.items() if size is None)


def policy_option(phase: str, default: str) -> Any:
    """The policy of a phase."""
    return option(f"how weights meet activations in {phase}", default, choices=tuple(POLICIES))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyConfig(Section):
    """How weights meet activations on several devices.

    gather: each layer's weights are gathered over fsdp at their use. stay: weights stay, and
    activations move to them. replicate: layers are gathered over fsdp once, as a phase begins, or
    once for all rounds.
    """

    reading: str = policy_option("prompts and texts, without a gradient", DEFAULT_POLICIES.reading)
    thinking: str = policy_option("latent steps", DEFAULT_POLICIES.thinking)
    writing: str = policy_option("the decoding of tokens", DEFAULT_POLICIES.writing)
    training: str = policy_option("prompts and texts, with a gradient", DEFAULT_POLICIES.training)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RuntimeConfig(Section):
    """Use of the machine by a run."""

    mesh: MeshConfig = option("the devices", MeshConfig())
    policies: PolicyConfig = option("how weights meet activations there", PolicyConfig())
    dtype: str = option(
        "dtype of the agents' weights; links and losses are float32",
        "float32",
        choices=("float32", "bfloat16"),
    )
    weights: str | None = option(
        "int8: the agents' matrices in int8, with scales in dtype; null: all in dtype",
        None,
        choices=("int8",),
    )
    layers: str = option(
        "of agents that answer in evaluations, on one device: scanned, a loop that compiles in a "
        "third of the time; unrolled, each with weights of its own (a copy of all), which needs no "
        "copies of them in a step; auto: unrolled where one layer has 16 MiB, or on a GPU",
        "auto",
        choices=("auto", "scanned", "unrolled"),
    )
    shared_gib: float = option(
        "GiB on each device for what the methods of an evaluation compute alike: prefixes of "
        "prompts, rounds and messages; 0: each method computes all of its own",
        1.0,
        at_least=0,
    )
    compilation_cache: bool = option("whether to keep compiled programs between runs", True)
    progress: bool = option("whether to show progress bars", True)
    tensorboard: bool = option(
        "whether to also write training curves for TensorBoard (extra: logging)", False
    )


# By default nothing is trained.
@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(Section):
    """A whole run: train the links of a system, evaluate it, report."""

    name: str = option("name of the run and of its folder", pattern=r"\w[\w.-]*", longest=MAX_NAME)
    seed: int = option("seed of all random numbers", 0, at_least=0, at_most=MAX_SEED)
    output_dir: str = option("parent of the runs' folders", "runs")
    system: SystemConfig = option("the agents and their links")
    data: DataConfig = option("training data", DataConfig())
    inner: InnerConfig = option("inner loop of training; default: none", NO_INNER)
    outer: OuterConfig = option("outer loop of training; default: none", NO_OUTER)
    tuning: tuple[TuningConfig, ...] = option(
        "trainings of the answerer alone, one of a kind, each with the method answerer_KIND; "
        "checkpoints, logs and validations are as in outer",
        (),
    )
    evaluation: EvaluationConfig = option("measurements after training", EvaluationConfig())
    runtime: RuntimeConfig = option("use of the machine", RuntimeConfig())

    @property
    def measured_seeds(self) -> tuple[int, ...]:
        """The seeds of measured answers."""
        return self.evaluation.seeds or (self.seed,)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """A run has its own folder and training data; batches divide over the devices; unrolled
        layers are on one device.
        """
        if self.name in SHARED_FOLDERS:
            yield (
                "name",
                f"must not be one of {', '.join(SHARED_FOLDERS)}, folders of output_dir that runs "
                f"share, got {self.name}",
            )
        if self.data.files is not None and "train" not in self.data.files:
            yield "data.files", f"must name train, got {', '.join(self.data.files) or 'none'}"
        if self.system.latent_steps == 0:  # the null control: nothing is passed
            why = "must be {}, as system.latent_steps=0 has no thoughts, got {}"
            if self.outer.phases:
                yield "outer.phases", why.format("empty", len(self.outer.phases))
            if self.inner.repeats > 1:
                yield "inner.repeats", why.format(1, self.inner.repeats)
        if self.system.thinking == "parallel":
            for i, phase in enumerate(self.outer.phases):
                if phase.truncate_steps is not None:
                    yield (
                        f"outer.phases.{i}.truncate_steps",
                        "must be null with system.thinking: parallel, whose gradients "
                        f"system.sweeps.gradient truncates, got {phase.truncate_steps}",
                    )
        yield from tuning_conflicts(self.tuning, self.outer)
        mesh = self.runtime.mesh
        devices = (mesh.data or 1) * (mesh.fsdp or 1)  # an open size is checked when it is known
        for where, training in trainings(self):
            if training.batch_size % (devices * training.accumulation):
                yield (
                    f"{where}.batch_size",
                    f"must be a multiple of {devices * training.accumulation} (runtime.mesh: data "
                    f"x fsdp = {devices} devices; accumulation={training.accumulation}), "
                    f"got {training.batch_size}",
                )
        if self.runtime.layers == "unrolled" and (devices := devices * (mesh.model or 1)) > 1:
            yield (
                "runtime.layers",
                f"must be auto or scanned on {devices} devices (runtime.mesh), got unrolled",
            )


def trainings(config: RunConfig) -> Iterator[tuple[str, TrainingConfig]]:
    """Yields the phases of the outer loop and the trainings of the answerer, with their place."""
    for i, phase in enumerate(config.outer.phases):
        yield f"outer.phases.{i}", phase
    for i, entry in enumerate(with_budgets(config.tuning, config.outer)):
        yield f"tuning.{i}", entry
