"""Reads and writes links of the released PyTorch system, without torch or running pickles."""

from rmas_jax.interop.released import (
    link_from_state,
    read_inner_link,
    read_outer_links,
    state_from_link,
    write_inner_link,
    write_outer_links,
)
from rmas_jax.interop.systems import (
    links_that_fit,
    read_links,
    read_released_links,
    released_configs,
    write_released_links,
)
from rmas_jax.interop.torch_state import read_state, write_state

__all__ = [
    "link_from_state",
    "links_that_fit",
    "read_inner_link",
    "read_links",
    "read_outer_links",
    "read_released_links",
    "read_state",
    "released_configs",
    "state_from_link",
    "write_inner_link",
    "write_outer_links",
    "write_released_links",
    "write_state",
]
