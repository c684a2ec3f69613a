"""The configuration of a run: frozen dataclasses, read strictly from YAML with overrides.

Each field is declared once, with `option`: checking (`load_config`) and documentation
(`field_help`) both read that one description.
"""

from rmas_jax.config.audit import AuditConfig
from rmas_jax.config.benchmark import (
    DEFAULT_ANSWERS,
    AnswerConfig,
    BenchmarkChoice,
    BenchmarkConfig,
)
from rmas_jax.config.data import DataConfig
from rmas_jax.config.evidence import EvidenceConfig
from rmas_jax.config.files import (
    ConfigError,
    dump_config,
    field_help,
    load_benchmark_config,
    load_config,
)
from rmas_jax.config.limits import MAX_ROUNDS
from rmas_jax.config.sections import (
    EvaluationConfig,
    MeshConfig,
    PolicyConfig,
    RunConfig,
    RuntimeConfig,
    SystemConfig,
    trainings,
)
from rmas_jax.config.sweeps import SweepConfig
from rmas_jax.config.training import (
    InnerConfig,
    OuterConfig,
    PhaseConfig,
    TrainingConfig,
    TuningConfig,
    with_budgets,
)

__all__ = [
    "DEFAULT_ANSWERS",
    "MAX_ROUNDS",
    "AnswerConfig",
    "AuditConfig",
    "BenchmarkChoice",
    "BenchmarkConfig",
    "ConfigError",
    "DataConfig",
    "EvaluationConfig",
    "EvidenceConfig",
    "InnerConfig",
    "MeshConfig",
    "OuterConfig",
    "PhaseConfig",
    "PolicyConfig",
    "RunConfig",
    "RuntimeConfig",
    "SweepConfig",
    "SystemConfig",
    "TrainingConfig",
    "TuningConfig",
    "dump_config",
    "field_help",
    "load_benchmark_config",
    "load_config",
    "trainings",
    "with_budgets",
]
