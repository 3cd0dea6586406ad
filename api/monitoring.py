"""Numbers for operators, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class Monitoring:
    """One registry an application: several of them may live in one process."""

    def __init__(self, jobs_by_status: Callable[[], Mapping[str, int]]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_JobCollector(jobs_by_status))
        self._requests = Counter(
            "chainrule_http_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )
        self.open_streams = Gauge("chainrule_open_streams", "Event streams that are open.", registry=self.registry)

    def count_request(self, method: str, route: str, status: int) -> None:
        """``route`` is the pattern, not the address: ids in labels would grow without bound."""
        self._requests.labels(method, route, str(status)).inc()

    def render(self) -> bytes:
        return generate_latest(self.registry)


class _JobCollector(Collector):
    def __init__(self, jobs_by_status: Callable[[], Mapping[str, int]]) -> None:
        self._jobs_by_status = jobs_by_status

    def describe(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("chainrule_jobs", "Jobs in the database.", labels=["status"])

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily("chainrule_jobs", "Jobs in the database.", labels=["status"])
        for status, count in self._jobs_by_status().items():
            family.add_metric([status], count)
        yield family
