"""Links of the released PyTorch system, in and out, without torch and without running pickles."""

from rmas_jax.interop.released import (
    link_from_state,
    read_inner_link,
    read_outer_links,
    state_from_link,
    write_inner_link,
    write_outer_links,
)
from rmas_jax.interop.torch_state import read_state, write_state

__all__ = [
    "link_from_state",
    "read_inner_link",
    "read_outer_links",
    "read_state",
    "state_from_link",
    "write_inner_link",
    "write_outer_links",
    "write_state",
]
