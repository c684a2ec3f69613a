"""How an engine is served over HTTP."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from rmas_jax.host.reading import MEBIBYTE


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """The model's name, who may ask, and limits of a request."""

    model: str
    agents: Mapping[str, str] = dataclasses.field(default_factory=dict)  # role -> its model
    keys: tuple[str, ...] = ()  # a request must have one of them; none: it needs no key
    hosts: tuple[str, ...] = ()  # that a request without a key may name; none: any
    origins: tuple[str, ...] = ()  # of other sites whose pages may ask
    body_bytes: int = MEBIBYTE
    body_seconds: float = 30.0  # until a body has arrived
    answer_seconds: float = 600.0  # from a request's headers to its answer's end
