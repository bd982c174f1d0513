"""What Prometheus reads at ``/metrics``.

The hot path adds to plain dictionaries; names, labels and text are made when somebody reads. A
registry of our own, because BentoML's counts what passes through its middlewares, which these
requests do not.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
_EDGES_MS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500)

Gauges = Callable[[], Iterable[Metric]]


class Metrics(Collector):
    """Counts by model, version, variant and outcome, and latencies by model."""

    def __init__(self, gauges: Gauges) -> None:
        self.requests: dict[tuple[str, str, str, str], int] = defaultdict(int)
        self.refusals: dict[tuple[str, str], int] = defaultdict(int)
        self.ejections: dict[str, int] = defaultdict(int)
        self._latency: dict[str, list[int]] = defaultdict(lambda: [0] * (len(_EDGES_MS) + 1))
        self._latency_sum: dict[str, float] = defaultdict(float)
        self._gauges = gauges
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def answered(self, model: str, version: str, variant: str, outcome: str, latency_ms: float) -> None:
        self.requests[model, version, variant, outcome] += 1
        self._latency[model][bisect_left(_EDGES_MS, latency_ms)] += 1
        self._latency_sum[model] += latency_ms

    def text(self) -> bytes:
        return bytes(generate_latest(self._registry))

    def describe(self) -> Iterable[Metric]:
        """Nothing to announce: names are fixed and this is the registry's only collector."""
        return ()

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "airlock_requests",
            "Requests by who was asked and how it went: answered, error, timeout, or fallback_ and what stood in",
            labels=("model", "version", "variant", "outcome"),
        )
        for labels, count in self.requests.items():
            requests.add_metric(labels, count)
        yield requests
        refusals = CounterMetricFamily(
            "airlock_refusals", "Requests that were answered with an error", labels=("model", "code")
        )
        for refused, count in self.refusals.items():
            refusals.add_metric(refused, count)
        yield refusals
        ejections = CounterMetricFamily("airlock_ejections", "Candidates ejected by the gateway", labels=("model",))
        for model, count in self.ejections.items():
            ejections.add_metric((model,), count)
        yield ejections
        yield self._histogram()
        yield from self._gauges()

    def _histogram(self) -> HistogramMetricFamily:
        family = HistogramMetricFamily(
            "airlock_request_seconds", "From the whole request to its answer", labels=("model",)
        )
        for model, counts in self._latency.items():
            cumulative, buckets = 0, []
            for edge, count in zip((*_EDGES_MS, float("inf")), counts, strict=True):
                cumulative += count
                buckets.append(("+Inf" if edge == float("inf") else repr(edge / 1000), cumulative))
            family.add_metric((model,), buckets, self._latency_sum[model] / 1000)
        return family


def gauge(name: str, text: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    """One value a model."""
    family = GaugeMetricFamily(name, text, labels=("model",))
    for model, value in values.items():
        family.add_metric((model,), value)
    return family


def counter(name: str, text: str, values: Mapping[str, float]) -> CounterMetricFamily:
    """One count a model."""
    family = CounterMetricFamily(name, text, labels=("model",))
    for model, value in values.items():
        family.add_metric((model,), value)
    return family
