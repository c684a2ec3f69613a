"""Train states on disk and on object storage, by orbax."""

from rmas_jax.checkpoints.digests import state_digest
from rmas_jax.checkpoints.store import CheckpointStore, open_checkpoints

__all__ = ["CheckpointStore", "open_checkpoints", "state_digest"]
