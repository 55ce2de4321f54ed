"""What a person on call can see: Prometheus metrics of each process, and of a whole deployment in one text."""

import os
import secrets
import socket
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate
from typing import Annotated, Literal

import msgspec
import structlog
from msgspec import Meta, Struct
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from eventstore.events import tag_of
from eventstore.log import EventLog, Recorded, SessionRecorded, Tail
from eventstore.tail import StreamTail

log = structlog.stdlib.get_logger()

Process = Literal["api", "worker", "projector"]
Name = Annotated[str, Meta(pattern="^[a-z][a-z0-9_]*$")]


APPEND_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)


class Sample(Struct, frozen=True, array_like=True):
    """One figure."""

    name: Name
    labels: dict[Name, str]
    value: float


class Family(Struct, frozen=True, array_like=True):
    """A metric and its samples."""

    name: Name
    help: str
    kind: Literal["counter", "gauge", "histogram"]
    samples: list[Sample]


class ProcessFigures(Struct, frozen=True):
    """All that one process has to show."""

    process: str
    instance: str
    families: list[Family]


class Metrics:
    """One process's metrics, in a registry of their own (tests run many processes' worth of rooms in one).

    It counts all that its rooms may count, and shows what a process of its kind has.
    """

    def __init__(self, process: Process = "api", instance: str | None = None) -> None:
        self.process = process
        self.instance = instance or new_instance()
        self.registry = CollectorRegistry()
        in_api, in_worker, in_projector = (
            self.registry if process == kind else None for kind in ("api", "worker", "projector")
        )
        self._appends = _Appends()
        self.registry.register(self._appends)
        self.conflicts = _counter("append_conflicts", "Appends that someone else was faster than", None, self.registry)
        self.open_streams = Gauge("tasktrail_open_streams", "SSE streams being written", registry=in_api)
        self.streams_cut = _counter(
            "streams_cut", "Streams and audit feeds cut off before their end, by reason", "why", in_api
        )
        self._answers: dict[int, int] = {}
        if in_api is not None:
            answers = "HTTP answers, by status; 0: the client left first"
            in_api.register(_Read(answers, "http_requests", ("status",), self._by_status, total=True))
        self.limited = _counter("requests_limited", "Requests refused by a token's limit", "dialect", in_api)
        self.runs = _counter("runs_begun", "Runs begun", "agent", in_worker)
        self.failed_runs = _counter(
            "runs_failed", "Runs that an unexpected error of the agent broke", "agent", in_worker
        )
        self.runs_set_down = _counter(
            "runs_set_down", "Runs that ended before their task: it waits, or another run goes on", "agent", in_worker
        )
        self.offers = _counter("offers", "Times that a task was put on the work queue", "agent", in_projector)
        self.sweeps = _counter(
            "sweeps_with_finds", "Sweeps that found lost work, and offered it again", None, in_projector
        )
        self.timers_fired = _counter("timers_fired", "Deadlines and retries that fell due", "kind", in_projector)

    def answered(self, status: int) -> None:
        """Count an answer. (A Counter's lock would cost every poll, and only one thread counts these.)"""
        self._answers[status] = self._answers.get(status, 0) + 1

    def appended(self, recorded: Recorded | SessionRecorded, took_s: float) -> None:
        """Count a fact, whose append took so long."""
        self._appends.count(tag_of(recorded.record.fact), took_s)

    def watch_log(self, event_log: EventLog, tail: Tail, attached: Callable[[], int]) -> None:
        """Show how this process follows the log."""
        self.gauge("attached_tasks", "Tasks held in memory", attached)
        self.gauge("tail_lag_records", "Records that the leader has and this process has not seen", lambda: tail.lag)
        self.gauge(
            "tail_age_seconds", "Time since this process was known to have all that the leader has", lambda: tail.age_s
        )
        self.gauge(
            "log_fullness_ratio",
            "Share of the log's room that is taken; no new tasks from 0.9 on; 0: no limit",
            lambda: event_log.fullness,
        )
        if isinstance(tail, StreamTail):  # the log in memory never loses its tail
            recreated = "Times that the tail had to begin anew: holes, silence, reconnects"
            self.registry.register(_Read(recreated, "tail_recreations", (), lambda: {(): tail.recreations}, total=True))

    def _by_status(self) -> Mapping[tuple[str, ...], float]:
        return {(str(status),): count for status, count in self._answers.items()}

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A figure that is read when asked for."""
        Gauge(f"tasktrail_{name}", text, registry=self.registry).set_function(value)

    def gauge_by(
        self, name: str, text: str, labels: tuple[str, ...], values: Callable[[], Mapping[tuple[str, ...], float]]
    ) -> None:
        """Figures that are read when asked for, by the values of these labels."""
        self.registry.register(_Read(text, name, labels, values, total=False))

    def figures(self) -> ProcessFigures:
        """All figures of now."""
        families = [_family(metric) for metric in self.registry.collect()]
        return ProcessFigures(process=self.process, instance=self.instance, families=families)

    async def told(self) -> bytes:
        """All figures of now, for another process to show."""
        return msgspec.msgpack.encode(self.figures())


def read_figures(told: Iterable[bytes]) -> list[ProcessFigures]:
    """What other processes told; what can't be read is left out."""
    found: list[ProcessFigures] = []
    for one in told:
        try:
            found.append(msgspec.msgpack.decode(one, type=ProcessFigures))
        except msgspec.MsgspecError as error:
            log.warning("metrics.unreadable", error=str(error))
    return found


def exposition(processes: Iterable[ProcessFigures]) -> bytes:
    """The Prometheus text: every sample says of which process it is."""
    merged: dict[str, Metric] = {}
    for one in processes:
        whose = {"process": one.process, "instance": one.instance}
        for family in one.families:
            metric = merged.setdefault(family.name, Metric(family.name, family.help, family.kind))
            if metric.type != family.kind:
                continue  # another release's; two kinds of one name are no valid text
            for sample in family.samples:
                metric.add_sample(sample.name, sample.labels | whose, sample.value)
    return generate_latest(_Merged(merged.values()))


def new_instance() -> str:
    """A name that no other process has had: host, process and chance."""
    return f"{host()}-{os.getpid()}-{secrets.token_hex(3)}"


def host() -> str:
    """This machine or container, as the names of its processes begin."""
    letters = [letter for letter in socket.gethostname() if letter.isascii() and (letter.isalnum() or letter in "-_")]
    return "".join(letters)[:40] or "process"


class _Read(Collector):
    """One metric, whose values are read when asked for."""

    def __init__(
        self,
        text: str,
        name: str,
        labels: tuple[str, ...],
        values: Callable[[], Mapping[tuple[str, ...], float]],
        *,
        total: bool,
    ) -> None:
        self._text = text
        self._name = f"tasktrail_{name}"
        self._labels = labels
        self._values = values
        self._total = total

    def collect(self) -> Iterable[Metric]:
        kind = CounterMetricFamily if self._total else GaugeMetricFamily
        family = kind(self._name, self._text, labels=self._labels)
        for labels, value in self._values().items():
            family.add_metric(labels, value)
        return [family]


class _Appends(Collector):
    """Facts appended, and how long that took. Counted by ourselves: prometheus_client takes a lock for each of three
    figures, which takes longer than to decide."""

    def __init__(self) -> None:
        self._by_tag: dict[str, int] = {}
        self._by_bucket = [0] * (len(APPEND_BUCKETS_S) + 1)
        self._sum_s = 0.0

    def count(self, tag: str, took_s: float) -> None:
        """One more."""
        self._by_tag[tag] = self._by_tag.get(tag, 0) + 1
        self._by_bucket[bisect_left(APPEND_BUCKETS_S, took_s)] += 1
        self._sum_s += took_s

    def collect(self) -> Iterable[Metric]:
        facts = CounterMetricFamily("tasktrail_facts_appended", "Facts appended", labels=["tag"])
        for tag, count in self._by_tag.items():
            facts.add_metric([tag], count)
        within = accumulate(self._by_bucket)
        text = "From sending an append to its acknowledgement, retries included"
        buckets = list(zip([*map(str, APPEND_BUCKETS_S), "+Inf"], within, strict=True))
        yield facts
        yield HistogramMetricFamily("tasktrail_append_seconds", text, buckets=buckets, sum_value=self._sum_s)


class _Merged(Collector):
    """Metrics that are there already."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _counter(name: str, text: str, label: str | None, registry: CollectorRegistry | None) -> Counter:
    return Counter(f"tasktrail_{name}", text, [label] if label else [], registry=registry)


def _family(metric: Metric) -> Family:
    # `_created` says when a counter began; nobody on call asks, and it doubles the text.
    samples = [
        Sample(sample.name, dict(sample.labels), sample.value)
        for sample in metric.samples
        if not sample.name.endswith("_created")
    ]
    kind = msgspec.convert(metric.type, Literal["counter", "gauge", "histogram"])
    return Family(metric.name, metric.documentation, kind, samples)
