"""The sections of a run's configuration, as frozen dataclasses."""

import dataclasses
import datetime
from collections.abc import Iterator

from rmas_jax.config.fields import Section, option
from rmas_jax.config.limits import (
    MAX_BATCH,
    MAX_DEVICES,
    MAX_LATENT_STEPS,
    MAX_NAME,
    MAX_ROLLOUTS,
    MAX_ROUNDS,
    MAX_SEED,
    MAX_TOKENS,
)
from rmas_jax.config.training import NO_INNER, NO_OUTER, InnerConfig, OuterConfig

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
SHARED_FOLDERS = ("data", "states")  # of output_dir, beside the folders of runs


@dataclasses.dataclass(frozen=True, kw_only=True)
class SystemConfig(Section):
    """Who the agents are and how they are linked."""

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
        """A date is a day, a task chooses among links, and only a residual branch is aligned."""
        if self.date is not None:
            try:
                datetime.date.fromisoformat(self.date)
            except ValueError as error:
                yield "date", f"expected a day as YYYY-MM-DD, got {self.date} ({error})"
        if self.links is None and self.outer_start == "aligned" and "_res" not in self.outer_link:
            forms = ", ".join(form for form in OUTER_LINK_FORMS if "_res" in form)
            yield "outer_start", f"aligned is for {forms}, not for outer_link={self.outer_link}"
        if self.links_task and (self.links is None or self.links.endswith(".safetensors")):
            yield (
                "links_task",
                f"expected null, as links={self.links} is no release, got {self.links_task}",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """Which problems the links are trained and tested on."""

    dataset: str = option(
        "relay; a published data set such as Sequential-Math; the path of a JSON, JSON lines or "
        "parquet file, or of a folder of them (with a slash: ./mine), where names such as "
        "test.jsonl tell the splits; or files",
        "relay",
        path="data",
    )
    files: dict[str, str] | None = option(
        "with dataset files: split -> its file; train is needed, validation and test are taken "
        "from it if they have none",
        None,
        path="file",
    )
    validation_share: float = option(
        "share of the questions of a data set without splits that is validation, chosen by a hash",
        0.1,
        above=0,
    )
    test_share: float = option("share of them that is test", 0.1, at_least=0)
    text_fields: dict[str, str] | None = option(
        "role, or question, answer, difficulty, id -> its field in the rows, where it has another "
        "name than those that are looked for (rmas_jax/data/rows.py)",
        None,
    )
    grading: str | None = option(
        "how answers to one's own questions are compared: as text, as mathematics (needs the extra "
        "eval), or as the letters of options; null: choice where system.task_type is choice, else "
        "text. The answer is what stands in \\boxed{} or behind a last ####, if something does",
        None,
        choices=("text", "math", "choice"),
    )
    train_size: int | None = option("training items to use; null: all", None, at_least=1)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Files are given where they are read, and shares leave something to train on."""
        if (self.dataset == "files") != (self.files is not None):
            yield "files", "goes with dataset: files, and only with it"
        elif self.files is not None and "train" not in self.files:
            yield "files", f"lacks train; got {', '.join(self.files) or 'none'}"
        if self.validation_share + self.test_share >= 1:
            yield "test_share", "validation_share and test_share leave nothing to train on"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Section):
    """What is measured after training."""

    rounds: tuple[int, ...] = option(
        "rounds to evaluate at", (1, 2, 3, 4), at_least=1, at_most=MAX_ROUNDS, distinct=True
    )
    splits: tuple[str, ...] = option(
        "splits of the data set, or parts of them as tfds writes it: test[:500]",
        ("test", "test_unseen_entities"),
        distinct=True,
    )
    batch_size: int = option("items per batch", 256, at_least=1, at_most=MAX_BATCH)
    max_new_tokens: int = option("longest answer, in tokens", 16, at_least=1, at_most=MAX_TOKENS)
    temperature: float = option(
        "answers are drawn at this temperature; 0: the likeliest tokens", 0.0, at_least=0
    )
    top_k: int = option("of drawn answers: only the k likeliest tokens; 0: all", 0, at_least=0)
    top_p: float = option(
        "of drawn answers: only the likeliest tokens that hold this probability",
        1.0,
        above=0,
        at_most=1,
    )
    rollouts: int = option(
        "answers to each question, from the same latents or messages, for pass@k",
        1,
        at_least=1,
        at_most=MAX_ROLLOUTS,
    )
    answer_retry: bool = option(
        "whether an answer is tried again where system.task_type finds none in it", True
    )
    python: bool = option("whether answerers may call Python, in a sandbox", False)
    search: str | None = option("JSON-lines corpus that answerers may search", None, path="file")
    gradient_batch_size: int = option(
        "items behind the gradient norms; 0: these are not measured", 32, at_least=0
    )
    methods: tuple[str, ...] = option(
        "systems and controls to compare", METHODS, choices=METHODS, distinct=True
    )

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Greedy answers are alike."""
        if self.temperature == 0:
            if self.rollouts > 1:
                yield "rollouts", f"{self.rollouts} greedy answers would be alike: set temperature"
            for name, off in (("top_k", 0), ("top_p", 1.0)):
                if getattr(self, name) != off:
                    yield name, "of no use while temperature is 0"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig(Section):
    """How many devices share what; the product is the number of devices that are used."""

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
    """How the run uses the machine."""

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


# Of a system that is only used; what is trained says how in full.
@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(Section):
    """A whole run: train the links of a system, evaluate it, report."""

    name: str = option("name of the run and of its folder", pattern=r"\w[\w.-]*", longest=MAX_NAME)
    seed: int = option("seed of everything random", 0, at_least=0, at_most=MAX_SEED)
    output_dir: str = option("folder that holds the folders of runs", "runs")
    system: SystemConfig = option("the agents and how they are linked")
    data: DataConfig = option("the problems", DataConfig())
    inner: InnerConfig = option("the inner loop of training; left out: there is none", NO_INNER)
    outer: OuterConfig = option("the outer loop of training; left out: there is none", NO_OUTER)
    evaluation: EvaluationConfig = option("what is measured", EvaluationConfig())
    runtime: RuntimeConfig = option("use of the machine", RuntimeConfig())

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """A run has a folder of its own, and what it trains on; batches divide over the devices."""
        if self.name in SHARED_FOLDERS:
            yield "name", f"{self.name} is a folder that all runs in output_dir share"
        if self.system.latent_steps == 0:  # the null control: nothing is passed
            why = "expected {}, as system.latent_steps=0 has no thoughts"
            if self.outer.phases:
                yield "outer.phases", why.format("none")
            if self.inner.repeats > 1:
                yield "inner.repeats", why.format("1")
        devices = self.runtime.mesh.data * self.runtime.mesh.fsdp
        for i, phase in enumerate(self.outer.phases):
            if phase.batch_size % (devices * phase.accumulation):
                yield (
                    f"outer.phases.{i}.batch_size",
                    f"expected a multiple of {devices * phase.accumulation} (runtime.mesh: data x "
                    f"fsdp = {devices} devices; accumulation={phase.accumulation}), "
                    f"got {phase.batch_size}",
                )
