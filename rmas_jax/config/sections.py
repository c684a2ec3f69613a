"""The sections of a run's configuration, as frozen dataclasses."""

import dataclasses
import datetime
from collections.abc import Iterator

from rmas_jax.config.benchmark import AnswerConfig, BenchmarkChoice
from rmas_jax.config.data import DataConfig
from rmas_jax.config.fields import Section, option
from rmas_jax.config.limits import (
    MAX_BATCH,
    MAX_DEVICES,
    MAX_LATENT_STEPS,
    MAX_NAME,
    MAX_ROUNDS,
    MAX_SEED,
)
from rmas_jax.config.training import NO_INNER, NO_OUTER, InnerConfig, OuterConfig
from rmas_jax.links import INNER, OUTER, VARIANTS
from rmas_jax.run_files import SHARED_FOLDERS


@dataclasses.dataclass(frozen=True, kw_only=True)
class SystemConfig(Section):
    """The agents and their links."""

    agents: dict[str, str] = option(
        "role -> its language model: a directory, a hub id (org/name@REVISION fixes the revision) "
        "or one of the package: embedded/planner, embedded/critic, embedded/solver",
        path="hub",
    )
    topology: str = option(
        "who works with whom: a topology of the package, or the path of a YAML file",
        "sequential",
        path="file or name",
    )
    prompts: str = option(
        "a prompt set of the package, or the path of a YAML file", "relay", path="file or name"
    )
    task_type: str | None = option(
        "type of task, for prompt sets that serve several: math, choice, code, search, free", None
    )
    date: str | None = option(
        "the date that chat templates say which say one, as YYYY-MM-DD; null: the day on which the "
        "run was first started",
        None,
        pattern=r"\d{4}-\d\d-\d\d",
    )
    latent_steps: int = option(
        "latent thoughts per stage; 0 passes nothing", 4, at_least=0, at_most=MAX_LATENT_STEPS
    )
    rounds: int = option("recursion rounds in training", 3, at_least=1, at_most=MAX_ROUNDS)
    inner_link: str = option(
        "variant of the links inside an agent", "ln_res", choices=VARIANTS[INNER]
    )
    outer_link: str = option(
        "variant of the links between agents", "ln_res", choices=VARIANTS[OUTER]
    )
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
    links: str | None = option(
        "links to start from: a .safetensors file of ours, or the directory or hub id of released "
        "outer links, whose inner links lie beside the agents; null: links start anew",
        None,
        path="hub",
    )
    links_task: str | None = option(
        "which links of a release that has some for each task", None, choices=("math", "code")
    )

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """The date is valid, links_task is for a release, and only residual branches align."""
        if self.date is not None:
            try:
                datetime.date.fromisoformat(self.date)
            except ValueError as error:
                yield "date", f"must be a day as YYYY-MM-DD, got {self.date} ({error})"
        if self.links is None and self.outer_start == "aligned" and "_res" not in self.outer_link:
            variants = ", ".join(name for name in VARIANTS[OUTER] if "_res" in name)
            yield "outer_start", f"aligned is for {variants}, not for outer_link={self.outer_link}"
        if self.links_task and (self.links is None or self.links.endswith(".safetensors")):
            yield (
                "links_task",
                f"must be null, as links={self.links} is no release, got {self.links_task}",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Section):
    """Measurements after training."""

    rounds: tuple[int, ...] = option(
        "rounds to evaluate at", (1, 2, 3, 4), at_least=1, at_most=MAX_ROUNDS, distinct=True
    )
    benchmarks: tuple[BenchmarkChoice, ...] = option(
        "what is evaluated; none named: the questions of the run's own data, as name: data", ()
    )
    batch_size: int = option("items per batch", 256, at_least=1, at_most=MAX_BATCH)
    sampling: AnswerConfig = option(
        "how answers are written; before what benchmarks say", AnswerConfig()
    )
    answer_retry: bool = option(
        "whether an answer is tried again where the type of task finds none in it", True
    )
    legacy: bool = option(
        "whether answers are also compared as leniently as upstream does, as a score", False
    )
    python: bool = option("whether answerers may call Python, in a sandbox", False)
    search: str | None = option("JSON-lines corpus that answerers may search", None, path="file")
    gradient_batch_size: int = option(
        "items behind the gradient norms; 0: these are not measured", 32, at_least=0
    )
    methods: tuple[str, ...] | None = option(
        "systems and controls to compare (rmas_jax/evaluation/methods.py); null: all",
        None,
        distinct=True,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig(Section):
    """Sizes of the mesh axes; their product is the number of devices."""

    data: int = option("devices that share a batch", 1, at_least=1, at_most=MAX_DEVICES)
    fsdp: int = option(
        "devices that share a batch and, by width, the weights", 1, at_least=1, at_most=MAX_DEVICES
    )
    model: int = option(
        "devices that share the weights by heads, feed-forward and vocabulary",
        1,
        at_least=1,
        at_most=MAX_DEVICES,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RuntimeConfig(Section):
    """Use of the machine by a run."""

    mesh: MeshConfig = option("the devices", MeshConfig())
    dtype: str = option(
        "type of the agents' weights; links and losses stay in float32",
        "float32",
        choices=("float32", "bfloat16"),
    )
    weights: str | None = option(
        "int8: a byte per weight in the agents' matrices, with scales in dtype; null: all in dtype",
        None,
        choices=("int8",),
    )
    compilation_cache: bool = option("whether compiled programs are kept between runs", True)
    progress: bool = option("whether progress bars are shown", True)
    tensorboard: bool = option(
        "whether training curves are written for TensorBoard as well (extra: logging)", False
    )


# The defaults are for a system without training; loops set all their fields.
@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(Section):
    """A whole run: train the links of a system, evaluate it, report."""

    name: str = option("name of the run and of its folder", pattern=r"\w[\w.-]*", longest=MAX_NAME)
    seed: int = option("seed of everything random", 0, at_least=0, at_most=MAX_SEED)
    output_dir: str = option("folder that holds the folders of runs", "runs")
    system: SystemConfig = option("the agents and how they are linked")
    data: DataConfig = option("what is trained on", DataConfig())
    inner: InnerConfig = option("the inner loop of training; left out: there is none", NO_INNER)
    outer: OuterConfig = option("the outer loop of training; left out: there is none", NO_OUTER)
    evaluation: EvaluationConfig = option("what is measured", EvaluationConfig())
    runtime: RuntimeConfig = option("use of the machine", RuntimeConfig())

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """A run has its own folder and training data; batches divide over the devices."""
        if self.name in SHARED_FOLDERS:
            yield "name", f"{self.name} is a folder that all runs in output_dir share"
        if self.data.files is not None and "train" not in self.data.files:
            yield "data.files", f"lacks train; got {', '.join(self.data.files) or 'none'}"
        if self.system.latent_steps == 0:  # the null control: nothing is passed
            why = "must be {}, as system.latent_steps=0 has no thoughts"
            if self.outer.phases:
                yield "outer.phases", why.format("none")
            if self.inner.repeats > 1:
                yield "inner.repeats", why.format("1")
        devices = self.runtime.mesh.data * self.runtime.mesh.fsdp
        for i, phase in enumerate(self.outer.phases):
            if phase.batch_size % (devices * phase.accumulation):
                yield (
                    f"outer.phases.{i}.batch_size",
                    f"must be a multiple of {devices * phase.accumulation} (runtime.mesh: data x "
                    f"fsdp = {devices} devices; accumulation={phase.accumulation}), "
                    f"got {phase.batch_size}",
                )
