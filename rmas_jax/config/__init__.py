"""The configuration of a run: frozen dataclasses, read strictly from YAML with overrides.

Each field is declared once, with `option`: checking (`load_config`) and documentation
(`field_help`) both read that one description.
"""

from rmas_jax.config.files import ConfigError, dump_config, field_help, load_config
from rmas_jax.config.sections import (
    MAX_ROUNDS,
    METHODS,
    DataConfig,
    EvaluationConfig,
    InnerConfig,
    MeshConfig,
    OuterConfig,
    PhaseConfig,
    RunConfig,
    RuntimeConfig,
    SystemConfig,
)

__all__ = [
    "MAX_ROUNDS",
    "METHODS",
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
