"""Messages replaced at the receiver's boundary, for causal audits of a channel.

    sender --> channel --> message --X--> slot of the receiver
                                     `--- another message, or nothing

Senders stay as they are: an intervention changes what a receiver reads, and the stages after it
run on. Rounds are those of arrival: feedback that is sent in round r arrives in round r + 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import struct

from rmas_jax.topology import edge_name

if TYPE_CHECKING:
    from rmas_jax.prompts import StagePrompt


class Intervention(struct.PyTreeNode):
    """Messages to deliver instead of those that were sent; by the names of all edges.

    All parts are data: one compiled program serves every message, edge and round.
    """

    messages: Mapping[str, jax.Array]  # [R, B, M, D'] in the receiver's input space
    is_replaced: Mapping[str, jax.Array]  # [R] bool
    is_absent: Mapping[str, jax.Array]  # [R] bool; the receiver's slot is empty, as padding

    def arrives(
        self, prompt: StagePrompt, role: str, arrived: jax.Array, *, index: jax.Array | int
    ) -> jax.Array:
        """Vectors [B, S, D] in a role's slots in round `index`, instead of `arrived`."""
        width = arrived.shape[1] // max(len(prompt.senders), 1)
        slots = []
        for k, sender in enumerate(prompt.senders):
            name = edge_name((sender, role))
            sent = arrived[:, k * width : (k + 1) * width]
            given = jnp.take(self.messages[name], index, axis=0).astype(sent.dtype)
            slots.append(jnp.where(jnp.take(self.is_replaced[name], index), given, sent))
        return jnp.concatenate([arrived[:, :0], *slots], axis=1)

    def present(self, prompt: StagePrompt, role: str, *, index: jax.Array | int) -> jax.Array:
        """Which of a prompt's slot positions hold a message in round `index`: [S] bool."""
        width = sum(number >= 0 for number in prompt.slot_index) // max(len(prompt.senders), 1)
        absent = [
            jnp.take(self.is_absent[edge_name((sender, role))], index) for sender in prompt.senders
        ]
        return ~jnp.repeat(jnp.array(absent, bool), width)
