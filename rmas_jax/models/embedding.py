"""Rows of an embedding on a mesh, looked up without gathering the table.

Where weights stay, each device has some rows, and the sum over devices has all:

    device 0: rows 0-3    ids 2 5 -> r2 0     sum: r2 r5, on every device
    device 1: rows 4-7    ids 2 5 ->  0 r5

Otherwise devices of `fsdp` trade their rows for columns, look up the ids of all, and trade columns
back for their rows of the batch. Each sends its part of the table and of the batch, whatever the
size of the mesh; a sum would pass the whole batch through every device.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from rmas_jax.partition import Partition


def look_up(table: Any, ids: jax.Array, partition: Partition) -> Any:
    """The rows of a table at these ids.

    Args:
      table: [V, D], or a `qwix.QArray` with a scale per row.
      ids: [B, T]; one without a row gives NaN.
      partition: see `Partition`.

    Returns:
      [B, T, D], as the table.
    """
    if partition.is_one_device:
        return jax.tree.map(lambda rows: jnp.take(rows, ids, axis=0), table)
    return jax.tree.map(lambda rows: _on_mesh(rows, ids, partition), table)


def _on_mesh(table: jax.Array, ids: jax.Array, partition: Partition) -> jax.Array:
    rows, columns = partition.axes(table.shape, "vocab", "columns")
    before = partition.axes(ids.shape, "lookups", None)[0]
    after = partition.axes(ids.shape, "rows", None)[0]
    traded = columns if after == before + columns else ()

    def of_device(table: jax.Array, ids: jax.Array) -> jax.Array:
        own = ids - (jax.lax.axis_index(rows) * len(table) if rows else 0)
        is_own = (own >= 0) & (own < len(table))
        out = jnp.take(table, jnp.where(is_own, own, 0), axis=0)
        out = jnp.where(is_own[..., None], out, 0)
        if rows:
            out = jax.lax.psum(out, rows)
        if traded:
            out = jax.lax.all_to_all(out, traded, split_axis=0, concat_axis=2, tiled=True)
        return out

    spec = PartitionSpec(before + traded or None, None, None if traded else columns or None)
    out = jax.shard_map(
        of_device,
        mesh=partition.mesh,
        in_specs=(PartitionSpec(rows or None, columns or None), PartitionSpec(before or None)),
        out_specs=spec,
    )(table, ids)
    if jnp.issubdtype(out.dtype, jnp.inexact):
        has_row = (ids >= 0) & (ids < len(table))
        out = jnp.where(has_row[..., None], out, jnp.nan)
    return out
