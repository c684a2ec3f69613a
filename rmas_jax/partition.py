"""How weights meet activations: the place of a model's arrays in each phase.

Model code states where its activations lie by logical axes, which a `Partition` resolves by the
rules of `rmas_jax.sharding`; without a mesh it states nothing.

The mesh axes are `Auto`, with a constraint wherever a layer, a scan carry or a stage begins:
explicit axes would need an `out_sharding` in every gather and contraction, also in flax and qwix,
and would change the programs without a mesh.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding

from rmas_jax.sharding import BATCH_AXES, MESH_AXES, RULES, partition_spec, split_axes


class Policy(NamedTuple):
    """How weights meet activations."""

    meaning: str
    rows: tuple[str, ...]  # mesh axes that split the rows of a batch between layers
    weights: tuple[str, ...]  # mesh axes that split weights where they are used
    at_use: bool = False  # weights take this place in each layer, not when a phase begins


POLICIES = {
    "gather": Policy(
        "each layer's weights are gathered over fsdp at their use", BATCH_AXES, ("model",), True
    ),
    "stay": Policy("weights stay, activations move to them", ("data",), ("model", "fsdp")),
    "replicate": Policy(
        "layers are gathered over fsdp once, when a phase begins", BATCH_AXES, ("model",)
    ),
}


class Policies(NamedTuple):
    """The policy of each phase, a name in `POLICIES`."""

    reading: str = "gather"  # prompts and texts, without a gradient
    thinking: str = "stay"  # latent steps
    writing: str = "stay"  # tokens
    training: str = "gather"  # prompts and texts, with a gradient


DEFAULT_POLICIES = Policies()


@dataclasses.dataclass(frozen=True)
class Partition:
    """The place of a model's arrays: a mesh, and how weights meet activations in a phase.

    Hashable, so that it is a static part of a decoder. Logical axes of activations:

    | axis | split over |
    |---|---|
    | batch | `data` and `fsdp`: caches, latents, tokens |
    | rows | `Policy.rows`: activations between layers |
    | samples | all mesh axes: logits that a sampler reads |
    | lookups | `data`: ids, while each device looks up its columns of the embedding |
    | columns | `fsdp`: those columns |
    | heads, ffn, vocab, embed | as weights where they are used, `Policy.weights` |
    """

    mesh: Mesh | None = None
    policies: Policies = DEFAULT_POLICIES
    phase: str = "reading"

    @property
    def is_one_device(self) -> bool:
        """Whether nothing is split."""
        return self.mesh is None or self.mesh.size == 1

    @property
    def is_on_cpu(self) -> bool:
        """Whether its devices are CPUs."""
        device = None if self.mesh is None else self.mesh.devices.flat[0]
        return (device.platform if device else jax.default_backend()) == "cpu"

    @property
    def policy(self) -> Policy:
        """The policy of the phase."""
        return POLICIES[self.policy_name]

    @property
    def policy_name(self) -> str:
        """Its name."""
        return getattr(self.policies, self.phase)

    @property
    def gathers_at_use(self) -> bool:
        """Whether each layer's weights are gathered when the layer runs."""
        return self.policy.at_use and self.mesh is not None and self.mesh.shape.get("fsdp", 1) > 1

    @functools.cached_property
    def rules(self) -> dict[str, tuple[str, ...]]:
        """As `RULES`, for weights and activations where they are used."""
        policy = self.policy
        weights = {
            name: tuple(axis for axis in axes if axis in policy.weights)
            for name, axes in RULES.items()
        }
        return weights | {
            "batch": BATCH_AXES,
            "rows": policy.rows,
            "samples": MESH_AXES,
            "lookups": ("data",),
            "columns": ("fsdp",),
        }

    def during(self, phase: str) -> Partition:
        """The same in another phase."""
        return dataclasses.replace(self, phase=phase)

    def constrain(
        self, x: jax.Array, *logical_axes: str | None, full_shape: Sequence[int] | None = None
    ) -> jax.Array:
        """`x`, split along its logical axes, a name or None per dimension; `x` without a mesh.

        A dimension that does not divide is whole; `full_shape`: see `partition_spec`.
        """
        if self.mesh is None or self.is_one_device or not x.size:
            return x
        spec = partition_spec(x.shape, logical_axes, self.mesh, self.rules, full_shape=full_shape)
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))

    def whole(self, tree: Any) -> Any:
        """Arrays, whole on every device."""
        return jax.tree.map(lambda x: self.constrain(x, *(None,) * x.ndim), tree)

    def parts(self, logical: str, size: int) -> int:
        """Parts into which a dimension of this size is split."""
        if self.mesh is None:
            return 1
        return math.prod(self.mesh.shape[axis] for axis in self.axes((size,), logical)[0])

    def axes(self, shape: Sequence[int], *logical_axes: str | None) -> list[tuple[str, ...]]:
        """The mesh axes that split each dimension of an array on a mesh."""
        assert self.mesh is not None
        return split_axes(shape, logical_axes, self.mesh, self.rules)


ONE_DEVICE = Partition()
