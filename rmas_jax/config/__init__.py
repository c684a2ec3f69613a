"""The configuration of a run: frozen dataclasses, read strictly from YAML with overrides.

Each field is declared once, with `option`: checking (`load_config`) and documentation
(`field_help`) both read that one description.
"""

from rmas_jax.config.files import ConfigError, dump_config, field_help, load_config
from rmas_jax.config.limits import MAX_ROUNDS
from rmas_jax.config.sections import (
    DataConfig,
    EvaluationConfig,
    MeshConfig,
    RunConfig,
    RuntimeConfig,
    SystemConfig,
)
from rmas_jax.config.training import InnerConfig, OuterConfig, PhaseConfig

__all__ = [
    "MAX_ROUNDS",
    "ConfigError",
    "DataConfig",
    "EvaluationConfig",
    "InnerConfig",
    "MeshConfig",
    "OuterConfig",
    "PhaseConfig",
    "RunConfig",
    "RuntimeConfig",
    "SystemConfig",
    "dump_config",
    "field_help",
    "load_config",
]
