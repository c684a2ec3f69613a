"""The hooks of every phase: checks, curves, validation, checkpoints."""

from __future__ import annotations

import dataclasses
import math
import resource
import sys
import time
from typing import Any

import jax
import numpy as np

from rmas_jax.checkpoints import CheckpointStore
from rmas_jax.config import OuterConfig
from rmas_jax.host.nonfinite import NonFiniteError
from rmas_jax.training.curves import Curves, as_values
from rmas_jax.training.data.batches import Batches
from rmas_jax.training.data.encoding import EncodedItems
from rmas_jax.training.divergence import DivergedError, broken_parts
from rmas_jax.training.hooks import Hook, StepEvent, when
from rmas_jax.training.phases.trainable import Trainable


@dataclasses.dataclass
class PhaseHooks:
    """The actions of a phase after its steps; see `hooks` for the order."""

    trainable: Trainable
    config: OuterConfig
    batches: Batches  # of the steps; errors name the items
    validation: EncodedItems
    store: CheckpointStore
    curves: Curves
    unread: list[tuple[int, Any]] = dataclasses.field(default_factory=list)  # steps and metrics
    clock: float | None = None  # time of the last row; None: before it, where a program may compile

    def hooks(self) -> list[Hook]:
        """In order: parameters are checked and validated before they are saved."""
        return [
            self.collect,
            when(self.logs, self.record),
            when(self.saves, self.check_params),
            when(self.validates, self.validate),
            when(self.saves, self.save),
        ]

    def logs(self, event: StepEvent) -> bool:
        """Whether to read metrics: after the first of every `log_every` steps, or before a save."""
        return event.step % self.config.log_every == 0 or self.saves(event)

    def saves(self, event: StepEvent) -> bool:
        """Whether to write a checkpoint: when due, after a validation, at the end."""
        due = event.done % self.config.checkpoint_every == 0
        return due or event.ends or self.validates(event)

    def validates(self, event: StepEvent) -> bool:
        """Whether to validate: when due, and once the phase is finished."""
        return event.done % self.config.validation_every == 0 or event.is_last

    @property
    def validation_series(self) -> str:
        """Name of the phase's validation curve."""
        return f"{self.trainable.name} (validation)"

    def drop_curves(self, step: int) -> None:
        """Removes rows from `step` on, left by an interrupted run."""
        self.curves.truncate(self.trainable.name, step)
        self.curves.truncate(self.validation_series, step)

    def save_start(self, event: StepEvent) -> None:
        """Validates and saves the parameters before the first step: they may be the best ones."""
        self.validate(event)
        self.save(event)

    def collect(self, event: StepEvent) -> None:
        """Keeps a step's metrics on the device, so that no step waits for the one before."""
        self.unread.append((event.step, event.metrics))

    def record(self, event: StepEvent) -> None:
        """Reads the metrics of all steps since the last row, and writes the newest as a row.

        Raises:
          DivergedError: a step's metrics are not finite, or its loss is too large.
        """
        on_host = jax.device_get([metrics for _, metrics in self.unread])
        for (step, _), metrics in zip(self.unread, on_host, strict=True):
            self.check_metrics(step, metrics)
        row, now = on_host[-1] | peak_memory(), time.perf_counter()
        del row["faults"]  # all zero
        if self.clock is not None:
            items = len(self.unread) * self.trainable.config.batch_size
            row["items_per_second"] = items / (now - self.clock)
        self.unread, self.clock = [], now
        event.results["metrics"] = as_values(row)
        self.write(self.trainable.name, event.step, event.results["metrics"])

    def check_metrics(self, step: int, metrics: dict[str, Any]) -> None:
        """Raises DivergedError as `record` does, with the place that failed first."""
        limit = self.config.max_loss
        limit = self.trainable.largest_loss if limit is None else limit
        is_finite = not metrics["faults"].any() and np.isfinite(metrics["grad_norm"])
        if is_finite and metrics["loss"] <= limit:
            return
        first = self.trainable.first_fault(metrics)
        raise self.diverged(
            step,
            f"loss {metrics['loss']} (at most {limit:.1f}: outer.max_loss), gradient norm "
            f"{metrics['grad_norm']}; {f'first {first}; ' if first else ''}rows "
            f"{self.batches.rows(step).tolist()} of the training items",
        )

    def check_params(self, event: StepEvent) -> None:
        """Checks the new parameters, which the step's loss does not depend on.

        Raises:
          DivergedError: a link, or a part of an adapter, is not finite.
        """
        if broken := broken_parts(self.trainable.parts(event.state.params)):
            raise self.diverged(event.step, f"after it, not finite: {', '.join(broken)}")

    def validate(self, event: StepEvent) -> None:
        """Runs the held-out items, and writes a row.

        Raises:
          DivergedError: their loss, or an agent's numbers, are not finite.
        """
        try:
            values = self.trainable.validate(event.state.params, self.validation)
        except NonFiniteError as error:
            raise self.diverged(event.step, f"validation: {error}") from None
        if not math.isfinite(values["loss"]):
            raise self.diverged(event.step, f"validation loss {values['loss']}")
        event.results["validation"] = values
        self.write(self.validation_series, event.step, values)
        self.clock = None  # validation time is not a step's

    def write(self, series: str, step: int, values: dict[str, Any]) -> None:
        """Adds a row to the curves of the loop."""
        self.curves.write(self.trainable.loop, series, step, **values)

    def save(self, event: StepEvent) -> None:
        """Starts to write a checkpoint."""
        loss = event.results.get("validation", {}).get("loss")
        self.store.save(event.done, event.state, validation_loss=loss)

    def diverged(self, step: int, failure: str) -> DivergedError:
        """An error that names the step from which training can resume."""
        saved = self.store.steps()
        last = self.store.directory / str(saved[-1]) if saved else "none yet"
        return DivergedError(
            f"phase {self.trainable.name}, step {step}: {failure}; last good checkpoint: {last}"
        )


def peak_memory() -> dict[str, int]:
    """Peak memory of this process and, if known, of its first device, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = {"host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if on_device := jax.local_devices()[0].memory_stats():
        peaks["device_bytes"] = on_device["peak_bytes_in_use"]
    return peaks
