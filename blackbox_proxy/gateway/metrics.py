"""What a gateway counts, for Prometheus. No label comes from a client: models are those that are served."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from blackbox_proxy.gateway.places import Places
from blackbox_proxy.types import Usage

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """Counters of one gateway, with a registry of their own."""

    def __init__(self, places: Places) -> None:
        registry = self._registry = CollectorRegistry()
        name = "blackbox_proxy"

        def counter(what: str, text: str, *labels: str) -> Counter:
            return Counter(f"{name}_{what}", text, labels, registry=registry)

        def histogram(what: str, text: str, *labels: str) -> Histogram:
            return Histogram(f"{name}_{what}", text, labels, registry=registry, buckets=_SECONDS)

        self._requests = counter("requests", "Requests by model and status.", "model", "status")
        self._tokens = counter("tokens", "Tokens of prompts and texts.", "model", "kind")
        self._upstream = counter("upstream", "What the base's API was asked and billed.", "model", "kind")
        self._seconds = histogram("request_seconds", "Seconds that a request took.", "model")
        self._first = histogram("first_token_seconds", "Seconds to the first token.", "model")
        self._between = histogram("between_tokens_seconds", "Seconds between two tokens.", "model")
        Gauge(f"{name}_active", "Requests being answered.", registry=registry).set_function(lambda: places.active)
        Gauge(f"{name}_waiting", "Requests in the queue.", registry=registry).set_function(lambda: places.waiting)

    def ended(self, model: str, status: int, seconds: float) -> None:
        """A request has ended; status 0 where the client had gone before there was one."""
        self._requests.labels(model, str(status or "gone")).inc()
        if model:
            self._seconds.labels(model).observe(seconds)

    def saw(self, model: str, usage: Usage, upstream: Usage, since: float | None, *, first: bool) -> None:
        """An event of a text; `since`: seconds to its token."""
        for kind, count in (("prompt", usage.prompt_tokens), ("completion", usage.completion_tokens)):
            self._tokens.labels(model, kind).inc(count)
        billed = {
            "calls": upstream.api_calls,
            "prompt_tokens": upstream.prompt_tokens,
            "completion_tokens": upstream.completion_tokens,
            "retries": upstream.retries,
        }
        for kind, count in billed.items():
            if count:
                self._upstream.labels(model, kind).inc(count)
        if since is not None:
            (self._first if first else self._between).labels(model).observe(since)

    def text(self) -> bytes:
        """What a scraper reads."""
        return generate_latest(self._registry)
