"""What Prometheus reads at ``/metrics``."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters and histograms of one server."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        self.requests = Counter(
            "minionerec_requests",
            "Requests by path and status",
            ["path", "status"],
            registry=registry,
        )
        self.errors = Counter(
            "minionerec_errors",
            "Refused or failed requests by reason",
            ["reason"],
            registry=registry,
        )
        self.latency = Histogram(
            "minionerec_request_seconds",
            "From the first byte of a request for recommendations to its answer",
            buckets=SECONDS,
            registry=registry,
        )
        self.batch_size = Histogram(
            "minionerec_batch_size",
            "Histories that share a search",
            buckets=SIZES,
            registry=registry,
        )
        self.lists = Counter("minionerec_lists", "Lists that were recommended", registry=registry)
        self.empty = Counter(
            "minionerec_empty_lists",
            "Lists without an item, as a filter left none",
            registry=registry,
        )
        self.version = Gauge(
            "minionerec_catalogue_version", "Version that is served", registry=registry
        )
        self.items = Gauge("minionerec_catalogue_items", "Items that are served", registry=registry)
        self.waiting = Gauge(
            "minionerec_waiting", "Histories that no search has taken yet", registry=registry
        )

    def text(self) -> bytes:
        """All of them as Prometheus reads them."""
        return generate_latest(self._registry)
