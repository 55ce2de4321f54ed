"""What a person on call can see: Prometheus metrics of one process."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from eventstore.events import tag_of
from eventstore.log import Recorded


class Metrics:
    """One process's metrics, in a registry of their own (tests run many processes' worth of rooms in one)."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.facts = Counter("tasktrail_facts_appended", "Facts appended here", ["tag"], registry=self.registry)
        self.conflicts = Counter(
            "tasktrail_append_conflicts", "Appends that someone else was faster than", registry=self.registry
        )
        self.append_seconds = Histogram(
            "tasktrail_append_seconds",
            "From sending an append to its acknowledgement, retries included",
            buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5),
            registry=self.registry,
        )
        self.open_streams = Gauge("tasktrail_open_streams", "SSE streams being written", registry=self.registry)
        self.streams_cut = Counter(
            "tasktrail_streams_cut", "SSE streams cut off before their end", ["why"], registry=self.registry
        )
        self.requests = Counter("tasktrail_http_requests", "Answers given", ["status"], registry=self.registry)
        self.runs = Counter("tasktrail_runs", "Runs begun here", ["agent"], registry=self.registry)
        self.failed_runs = Counter("tasktrail_failed_runs", "Runs that broke here", ["agent"], registry=self.registry)

    def appended(self, recorded: Recorded) -> None:
        """Count a fact."""
        self.facts.labels(tag_of(recorded.record.fact)).inc()

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A figure that is read when asked for."""
        Gauge(f"tasktrail_{name}", text, registry=self.registry).set_function(value)

    def render(self) -> bytes:
        """The Prometheus text."""
        return generate_latest(self.registry)
