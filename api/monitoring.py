"""Numbers for operators, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from workers.watch.findings import Verdict

VERDICTS: tuple[str, ...] = get_args(Verdict)  # each has a number, also when it is 0: an alert on nothing never comes


class Numbers(Protocol):
    """What the database is asked for at every scrape."""

    def jobs_by_status(self) -> Mapping[str, int]: ...

    def jobs_by_verdict(self) -> Mapping[str, int]: ...

    def findings_raised(self) -> Mapping[tuple[str, str], int]: ...


class Monitoring:
    """One registry an application: several of them may live in one process."""

    def __init__(self, numbers: Numbers | None = None) -> None:
        """``numbers``: None where there is no database."""
        self.registry = CollectorRegistry()
        if numbers is not None:
            self.registry.register(_JobCollector(numbers))
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
    """Codes and severities are ours, and few."""

    def __init__(self, numbers: Numbers) -> None:
        self._numbers = numbers

    def describe(self) -> Iterator[Metric]:
        """Names alone: registering a collector must not ask the database."""
        yield from self._families({}, dict.fromkeys(VERDICTS, 0), {})

    def collect(self) -> Iterator[Metric]:
        numbers = self._numbers
        verdicts = dict.fromkeys(VERDICTS, 0) | dict(numbers.jobs_by_verdict())
        yield from self._families(numbers.jobs_by_status(), verdicts, numbers.findings_raised())

    def _families(
        self, statuses: Mapping[str, int], verdicts: Mapping[str, int], findings: Mapping[tuple[str, str], int]
    ) -> Iterator[Metric]:
        jobs = GaugeMetricFamily("chainrule_jobs", "Jobs in the database.", labels=["status"])
        for status, count in statuses.items():
            jobs.add_metric([status], count)
        health = GaugeMetricFamily(
            "chainrule_jobs_by_verdict", "Jobs that have not ended, by the verdict on them.", labels=["verdict"]
        )
        for verdict, count in verdicts.items():
            health.add_metric([verdict], count)
        raised = CounterMetricFamily(
            "chainrule_findings_raised", "Findings raised, in all jobs.", labels=["code", "severity"]
        )
        for (code, severity), count in findings.items():
            raised.add_metric([code, severity], count)
        yield from (jobs, health, raised)
