"""Counts and times for Prometheus: of HTTP requests, and of the engine behind them."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
)
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rmas_jax.serving.engine import Engine

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)  # bounds of histograms


class Metrics:
    """The metrics of a server, in a registry of their own."""

    def __init__(self, engine: Engine):
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "rmas_http_requests",
            "Replies, by path and status; 499: the client was gone",
            ("path", "status"),
            registry=self._registry,
        )
        self.seconds = Histogram(
            "rmas_request_seconds",
            "From a chat request's headers to its end",
            buckets=SECONDS,
            registry=self._registry,
        )
        self.first_text_seconds = Histogram(
            "rmas_first_text_seconds",
            "From a chat request's headers to the first part of a text",
            buckets=SECONDS,
            registry=self._registry,
        )
        self._registry.register(_EngineCollector(engine))

    def exposition(self) -> tuple[bytes, str]:
        """All metrics in Prometheus' text format, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST


class _EngineCollector(Collector):
    """Reads an engine's statistics whenever metrics are asked for."""

    def __init__(self, engine: Engine):
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """The metrics; each call is one snapshot."""
        found, batch = self._engine.statistics(), self._engine.settings.batch
        for name, meaning, value in (
            ("rmas_engine_alive", "1 while the engine works", float(found.is_alive)),
            ("rmas_queued_requests", "Requests that wait for their rounds", found.queued),
            (
                "rmas_preparing_requests",
                "Requests in their rounds, or whose texts wait for rows",
                found.preparing,
            ),
            ("rmas_running_rows", "Rows that hold a text", found.running),
            ("rmas_rows", "Rows, in which texts are written at once", found.rows),
            ("rmas_batch_size", "Requests that go through the rounds together", batch),
        ):
            yield GaugeMetricFamily(name, meaning, value=value)
        for name, meaning, value in (
            ("rmas_prompt_tokens", "Tokens that agents have read", found.prompt_tokens),
            ("rmas_message_tokens", "Tokens of messages in text", found.message_tokens),
            ("rmas_answer_tokens", "Tokens of answers", found.answer_tokens),
            ("rmas_latents", "Vectors that have crossed edges", found.latents),
            ("rmas_batches", "Batches that went through the rounds", found.batches),
            ("rmas_batched_requests", "Requests in these batches", found.batched),
            ("rmas_steps", "Steps of the answering agent, for all rows at once", found.steps),
            ("rmas_row_steps", "Rows that wrote in these steps", found.row_steps),
            ("rmas_compilations", "Programs compiled since the engine is warm", found.compilations),
        ):
            yield CounterMetricFamily(name, meaning, value=value)
        requests = CounterMetricFamily(
            "rmas_requests", "Requests of the engine, by how they ended", labels=("outcome",)
        )
        for outcome, count in found.by_outcome.items():
            requests.add_metric((outcome,), count)
        yield requests
        seconds = CounterMetricFamily(
            "rmas_engine_seconds", "Seconds of the engine, by what it did", labels=("phase",)
        )
        for phase, value in found.seconds.items():
            seconds.add_metric((phase,), value)
        yield seconds
