"""What all requests of a server share: the engine, how it is served, and what is under way."""

from __future__ import annotations

import time
from typing import Any

from rmas_jax.host.errors import shown
from rmas_jax.serving.engine import Engine
from rmas_jax.serving.openai.errors import ApiError, unavailable
from rmas_jax.serving.openai.metrics import Metrics
from rmas_jax.serving.openai.schemas import MAX_TEMPERATURE
from rmas_jax.serving.openai.settings import ServiceSettings
from rmas_jax.topology import edge_name

CLOSING = "this server finishes its last requests and takes no more"
DEAD = "the engine of this server has stopped after an unexpected error"


class Service:
    """An engine as a service."""

    def __init__(self, engine: Engine, settings: ServiceSettings):
        self.engine = engine
        self.settings = settings
        self.metrics = Metrics(engine)
        self.under_way = 0  # chat requests
        self.is_closing = False
        self._created = int(time.time())

    @property
    def is_alive(self) -> bool:
        """Whether the engine works."""
        return self.engine.statistics().is_alive

    def check_open(self) -> None:
        """Refuses a request where none is taken.

        Raises:
          ApiError: with the reason.
        """
        if self.is_closing:
            raise unavailable(CLOSING)
        if not self.is_alive:
            raise unavailable(DEAD)

    def model(self, name: str) -> dict[str, Any]:
        """The model of a name in OpenAI's form.

        Raises:
          ApiError: there is no such model.
        """
        if name != self.settings.model:
            message = f"model must be {self.settings.model!r}, got {shown(name)}"
            raise ApiError(404, message, field="model", code="model_not_found")
        return {"id": name, "object": "model", "created": self._created, "owned_by": "rmas_jax"}

    def card(self) -> dict[str, Any]:
        """The team behind the model, and what a request may ask of it."""
        team, settings = self.engine.team, self.engine.settings
        topology = team.system.topology
        return {
            "model": self.settings.model,
            "topology": {
                "name": topology.name,
                "order": topology.order,
                "levels": topology.levels,
                "edges": [edge_name(edge) for edge in topology.edges],
                "feedback": [edge_name(edge) for edge in topology.feedback_edges],
                "answerer": topology.answerer,
            },
            "agents": dict(self.settings.agents),
            "latent_steps": team.system.latent_steps,
            "columns": self.engine.columns,
            "channels": settings.channels,
            "rounds": {"default": settings.rounds, "most": settings.max_rounds},
            "temperature": {"default": settings.sampling.temperature, "most": MAX_TEMPERATURE},
            "max_tokens": {"default": settings.max_tokens, "most": settings.max_tokens},
            "nearest": {"most": settings.nearest},
        }
