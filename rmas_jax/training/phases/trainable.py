"""What a phase trains, as one value: its start, its step, its validation, names for errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax

from rmas_jax.config import TrainingConfig
from rmas_jax.training.data.batches import Batches
from rmas_jax.training.data.encoding import EncodedItems, TrainingData
from rmas_jax.training.phases.step import TrainState


class Trainable(Protocol):
    """The links of a system or an adapter of an agent, before a phase; `run_steps` trains it."""

    @property
    def name(self) -> str:
        """Of the phase, in logs, curves and errors."""

    @property
    def loop(self) -> str:
        """The loop in curves: "outer" or "tuning"."""

    @property
    def config(self) -> TrainingConfig:
        """Steps, batches and optimiser."""

    @property
    def mesh(self) -> jax.sharding.Mesh | None:
        """Devices of the agents."""

    @property
    def agents(self) -> Any:
        """The frozen agents: first argument of `step`."""

    @property
    def step(self) -> Callable[[Any, TrainingData, TrainState], tuple[TrainState, Any]]:
        """Agents, a batch and the state -> new state, and metrics.

        Metrics have "loss", "grad_norm" and "faults", shares of items that are not finite.
        """

    @property
    def largest_loss(self) -> float:
        """The default of `outer.max_loss`."""

    @property
    def initial(self) -> Any:
        """The parameters before the first step."""

    def start(self, params: Any) -> TrainState:
        """The state before the first step, of these parameters."""

    def batches(self, data: EncodedItems, *, key: jax.Array) -> Batches:
        """The batches of all steps."""

    def validate(self, params: Any, data: EncodedItems) -> dict[str, Any]:
        """Values for a row of the curves, with "loss"; raises NonFiniteError."""

    def parts(self, params: Any) -> Mapping[str, Any]:
        """Parts of the parameters by their names in errors."""

    def first_fault(self, metrics: Mapping[str, Any]) -> str | None:
        """The first place that is not finite by the metrics of a step (on the host)."""
