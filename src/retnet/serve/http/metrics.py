"""Counters for Prometheus: of the engine, read when asked for, and of HTTP."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from retnet.serve.engine import Engine

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

GAUGES = {
    "running": ("retnet_requests_running", "Texts that are being written."),
    "waiting": ("retnet_requests_waiting", "Requests in the queue."),
    "rows": ("retnet_rows_used", "Texts that hold a place."),
    "pool_bytes": ("retnet_state_pool_bytes", "States of all places at most."),
    "prefix_bytes": ("retnet_prefix_cache_bytes", "States in the prefix cache."),
}
COUNTERS = {
    "tokens_read": ("retnet_prompt_tokens", "Tokens of prompts that were read."),
    "tokens_cached": ("retnet_cached_tokens", "Tokens of prompts that a cache saved."),
    "tokens_generated": ("retnet_generated_tokens", "Tokens that were chosen."),
    "prefix_lookups": ("retnet_prefix_cache_queries", "Prompts looked up."),
    "prefix_hits": ("retnet_prefix_cache_hits", "Prompts whose beginning was known."),
    "requests_finished": ("retnet_requests_finished", "Requests that ended."),
    "requests_cancelled": ("retnet_requests_cancelled", "Requests that were called off."),
    "texts_failed": ("retnet_texts_failed", "Texts that ended with an error."),
    "steps": ("retnet_engine_steps", "Steps of the engine."),
    "step_seconds": ("retnet_engine_step_seconds", "Time in steps of the engine."),
}


class Metrics:
    """All that is counted.

    Attributes:
        http_requests: by route, method and status.
        first_token_s: from the request to the first token.
        request_s: from the request to the end of the answer.
        expired: sessions and responses that were too old or too many.
        expiry_failures: how often it could not be looked.
    """

    def __init__(self, engine: Engine) -> None:
        """Begin at zero."""
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(engine))
        self.http_requests = Counter(
            "retnet_http_requests",
            "Answered requests.",
            ("route", "method", "status"),
            registry=self._registry,
        )
        self.first_token_s = Histogram(
            "retnet_time_to_first_token_seconds",
            "From the request to the first token.",
            buckets=SECONDS,
            registry=self._registry,
        )
        self.request_s = Histogram(
            "retnet_request_duration_seconds",
            "From the request to the end of the answer.",
            buckets=SECONDS,
            registry=self._registry,
        )

        self.expired = Counter(
            "retnet_expired",
            "Sessions and responses that were too old or too many.",
            ("kind",),
            registry=self._registry,
        )
        self.expiry_failures = Counter(
            "retnet_expiry_failures",
            "How often it could not be looked what is to expire.",
            registry=self._registry,
        )

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self._registry)


class _EngineCollector:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        stats = self._engine.stats
        for field, (name, about) in GAUGES.items():
            yield GaugeMetricFamily(name, about, value=getattr(stats, field))
        for field, (name, about) in COUNTERS.items():
            yield CounterMetricFamily(name, about, value=getattr(stats, field))
