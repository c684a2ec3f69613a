"""NaN and infinity: the agent, stage and items at which they first occur.

Compiled programs cannot raise: they return flags by stage and row, and these functions read them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rmas_jax.host.errors import InputError, shown

SHOWN_ITEMS = 3


class NonFiniteError(InputError):
    """Numbers of an agent are NaN or infinite; the message names the agent, the stage, the items.

    Its arguments are its whole content, so that it can be pickled for other processes.
    """

    def __init__(
        self,
        role: str,
        stage: str,
        rows: Sequence[int] = (),
        within: str = "",
        items: Sequence[Any] = (),
    ):
        """Args:
        role: of the agent.
        stage: such as "round 2: latents".
        rows: indices of the rows of the batch with such numbers.
        within: the larger work around the stage.
        items: names of the rows' items.
        """
        super().__init__(role, stage, tuple(rows), within, tuple(items))
        self.role, self.stage, self.within = role, stage, within
        self.rows, self.items = tuple(rows), tuple(items)

    def __str__(self) -> str:
        items = ", ".join(shown(item) for item in self.items[:SHOWN_ITEMS])
        more = len(self.items) - SHOWN_ITEMS
        items += f" and {more} more" if more > 0 else ""
        return (
            f"{self.within}{': ' * bool(self.within)}agent {self.role}, {self.stage}: NaN or "
            f"infinite numbers{f' (items {items})' if items else ''}; an agent's numbers must be "
            f"finite: its checkpoint (system.agents.{self.role}) may be damaged, its hidden states "
            "may exceed the range of its dtype (65,504 in float16; use float32 or bfloat16), or "
            "links to it may have too large weights"
        )

    def at(self, rows: Any) -> NonFiniteError:
        """The same error, of these rows [B] of a larger table in place of those of the batch."""
        places = dict.fromkeys(int(rows[row]) for row in self.rows)
        return NonFiniteError(self.role, self.stage, tuple(places), self.within, self.items)

    def inside(self, within: str, names: Sequence[Any] = ()) -> NonFiniteError:
        """The same error within a larger work, whose rows [B] have these names."""
        items = [names[row] for row in self.rows] if len(names) else self.items
        return NonFiniteError(self.role, self.stage, self.rows, within, items)


class Fault(NamedTuple):
    """The first stage whose numbers are not finite."""

    role: str
    round: int  # from 0
    rows: list[int]  # rows of the batch in which this stage is the first

    def error(self, what: str = "latents") -> NonFiniteError:
        """The error of this fault."""
        return NonFiniteError(self.role, f"round {self.round + 1}: {what}", self.rows)


def first_fault(order: Sequence[str], finite: Any) -> Fault | None:
    """The first stage at which a row is not finite; None if all are finite.

    Args:
      order: roles in the order of their stages.
      finite: [R, B, N] bool, by round, row and role.
    """
    faults = ~np.asarray(finite)
    stages = np.argwhere(faults.any(axis=1))  # in the order of rounds, then of roles
    if not len(stages):
        return None
    index, place = stages[0].tolist()
    return Fault(order[place], index, np.flatnonzero(faults[index, :, place]).tolist())


def earliest_fault(order: Sequence[str], fault: Any) -> Fault | None:
    """As `first_fault`, from the index of each row's first such stage.

    Args:
      order: roles in the order of their stages.
      fault: [B] int32, round x N + place in `order`; -1: none.
    """
    fault = np.asarray(fault)
    if not (fault >= 0).any():
        return None
    first = fault[fault >= 0].min()
    index, place = divmod(int(first), len(order))
    return Fault(order[place], index, np.flatnonzero(fault == first).tolist())


def gradient_fault(
    order: Sequence[str], edges: Sequence[tuple[str, str]], norms: Mapping[str, Any]
) -> NonFiniteError | None:
    """The stage at which a gradient stops being finite: the last crossing with a non-finite norm.

    Args:
      order: roles in the order of their stages.
      edges: (sender, receiver).
      norms: "sender->receiver" -> [R] norms of the gradient at the edge's vectors in each round.
    """
    lost = [
        (index, order.index(sender), sender, receiver)
        for sender, receiver in edges
        for index in np.flatnonzero(~np.isfinite(norms[f"{sender}->{receiver}"])).tolist()
    ]
    if not lost:
        return None
    index, _, sender, receiver = max(lost)
    index += order.index(receiver) <= order.index(sender)  # feedback is read in the next round
    return NonFiniteError(receiver, f"round {index + 1}: gradient at the vectors from {sender}")
