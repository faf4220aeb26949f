"""What Prometheus is told. Nothing of what people ask for is in it."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """One registry per service, so that several can live in a process."""

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        self.requests = Counter("cclm_requests", "Requests answered.", ["route", "status"], registry=own)
        self.seconds = Histogram(
            "cclm_request_seconds", "Time to the answer.", ["route"], buckets=_SECONDS, registry=own
        )
        self.running = Gauge("cclm_requests_running", "Requests being answered.", registry=own)
        self.rejected = Counter("cclm_requests_rejected", "Requests refused, by reason.", ["reason"], registry=own)
        self.batch = Histogram(
            "cclm_batch_queries", "Queries answered together.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=own
        )
        self.queued = Gauge("cclm_queries_queued", "Queries that wait for the model.", registry=own)
        self.version = Gauge("cclm_index_version", "Version of the index that answers.", registry=own)
        self.rows = Gauge("cclm_index_rows", "Pictures that can be found.", registry=own)
        self.reloads = Counter("cclm_index_reloads", "New versions of the index.", ["outcome"], registry=own)

    def text(self) -> bytes:
        return generate_latest(self.registry)
