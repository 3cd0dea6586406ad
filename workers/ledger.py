"""What an attempt's workers report, kept in the job folder before it is acknowledged, each thing once."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from workers.gradient_files import GradientWriter
from workers.health import with_data
from workers.jobfolder import FACTS, JobFolder, append_lines, encode, read_last_lines
from workers.reports import Event, Level, Progress, mark_of
from workers.watch.findings import ORDER, Key, Severity, key_of
from workers.watch.probe_files import ProbeWriter
from workers.watch.rank_files import RankWriter
from workers.watch.told import CLEARED, RAISED
from workers.worker_link import Poll

ONCE_A_STEP = frozenset(
    {"evaluation", "checkpoint.saved"}
)  # events that a step which was finished by another group tells again


class Ledger:
    """``told_through``: mark up to which everything that the workers measured is in the folder."""

    def __init__(self, folder: JobFolder, attempt: int) -> None:
        self._folder, self._attempt = folder, attempt
        self._lock = threading.Lock()
        self._gradients = GradientWriter(folder.gradients_path, attempt)
        self._gradient_step = -1
        self._probes = ProbeWriter(folder.probes_path, attempt)
        self._probe_step = -1
        self._ranks = RankWriter(folder.ranks_path, attempt)
        self._rank_step = -1
        self._taken: dict[str, int] = {}  # sequence of each worker's newest report that was taken
        self._relayed: set[tuple[str, int]] = (
            set()
        )  # (worker, sequence) of its events, over a restart of the controller
        self._once: set[tuple[str, int]] = set()
        self._open: dict[Key, Severity] = {}  # severity of each finding that is not cleared
        self.events: list[Event] = []
        self.told_through = -1
        self.progress: Progress | None = None
        self.latest: dict[str, float] = {}
        self._judged: Mapping[str, Any] = {"verdict": "unknown", "findings": []}  # the gradients, by a worker
        self.data_findings: Sequence[Mapping[str, Any]] = ()
        self.preflight_findings: Sequence[Mapping[str, Any]] = ()
        self._restore_marks()

    def take(self, worker: str, rank: int | None, poll: Poll) -> None:
        """Keeps what is new in an answer; with the next question it is acknowledged."""
        fresh = [report for report in poll.reports if report.sequence > self.acknowledged(worker)]
        self._take_gradients([report.body for report in fresh if report.kind == "gradients"])
        self._take_probes([report.body for report in fresh if report.kind == "probes"])
        self._take_ranks([report.body for report in fresh if report.kind == "ranks"])
        self._take_metrics([report.body for report in fresh if report.kind == "metrics"])
        for report in fresh:
            if report.kind == "event":
                self._relay(worker, report.sequence, report.body)
        if fresh:
            self._taken[worker] = fresh[-1].sequence
        if poll.progress is not None and rank == 0:
            with self._lock:
                self.progress = poll.progress

    @property
    def health(self) -> Mapping[str, Any]:
        """The newest verdict on the gradients, with what is known of the data."""
        # What was found in a trial counts until the training itself says more.
        trial = self.preflight_findings if self._judged["verdict"] == "unknown" else ()
        known = [*self.data_findings, *trial]
        return with_data(self._judged, known) if known else self._judged

    def know_preflight(self, findings: Sequence[Mapping[str, Any]]) -> None:
        with self._lock:
            self.preflight_findings = findings

    def know_data(self, findings: Sequence[Mapping[str, Any]]) -> None:
        with self._lock:
            self.data_findings = findings

    def acknowledged(self, worker: str) -> int:
        return self._taken.get(worker, 0)

    def _take_metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        kept = []
        for row in rows:
            mark = mark_of(row["step"], row["values"])
            if mark is not None and mark <= self.told_through:
                continue  # measured again, or told again by another worker
            if mark is not None:
                self.told_through = mark
            kept.append(row)
        encoded = ({**row, "values": {key: encode(value) for key, value in row["values"].items()}} for row in kept)
        append_lines(self._folder.metrics_path(self._attempt), encoded)
        with self._lock:
            for row in kept:
                self.latest.update(row["values"])

    def _take_gradients(self, bodies: Sequence[Mapping[str, Any]]) -> None:
        for layers, alike in groupby(
            bodies, key=lambda body: body["layers"]
        ):  # a repair may have made another model of others
            rows: list[tuple[int, Sequence[float]]] = []
            last = self._gradient_step
            for step, norms in (row for body in alike for row in body["rows"]):
                if step > last:
                    last = step
                    rows.append((step, norms))
            self._gradients.append(layers, rows)
            self._gradient_step = last  # only now: when the disk was full, the workers tell again what is not kept

    def _take_probes(self, bodies: Sequence[Mapping[str, Any]]) -> None:
        for body in bodies:
            fresh = [(step, row) for step, row in body["rows"] if step > self._probe_step]
            self._probes.append(body["layers"], body["activations"], [row for _, row in fresh])
            self._probe_step = max([self._probe_step, *(step for step, _ in fresh)])

    def _take_ranks(self, bodies: Sequence[Mapping[str, Any]]) -> None:
        if bodies:
            self._rank_step = self._ranks.append([row for body in bodies for row in body["rows"]], self._rank_step)

    def _relay(self, worker: str, sequence: int, body: Mapping[str, Any]) -> None:
        if (worker, sequence) in self._relayed:
            return  # kept before the controller was restarted
        if body["type"] in ONCE_A_STEP:
            what = (body["type"], body["data"]["step"])
            if what in self._once:
                return
            self._once.add(what)
        if body["type"] == "facts":
            if self._folder.read_document(FACTS) is not None:
                return  # of the run's first step: told once, although later workers and attempts know them too
            self._folder.write_document(FACTS, body["data"])
        if body["type"] in (RAISED, CLEARED) and not self._is_news(body["type"], body["data"]):
            return
        if body["type"] == "health.verdict":
            with self._lock:
                self._judged = _health(body["data"])
        self.tell(body["level"], body["type"], body["message"], body["data"], body["timestamp"], (worker, sequence))

    def _is_news(self, type: str, data: Mapping[str, Any]) -> bool:
        """Workers that take over from an earlier step find again what is known."""
        finding = data["finding"]
        key, severity = key_of(finding), finding["severity"]
        if type == CLEARED:
            return self._open.pop(key, None) is not None
        if key in self._open and ORDER.index(severity) <= ORDER.index(self._open[key]):
            return False
        self._open[key] = severity
        return True

    def tell(
        self,
        level: Level,
        type: str,
        message: str,
        data: Mapping[str, Any] | None = None,
        timestamp: float | None = None,
        source: tuple[str, int] | None = None,
    ) -> None:
        with self._lock:
            event = Event(len(self.events) + 1, timestamp or time.time(), level, type, message, data or {})
            append_lines(self._folder.events_path(self._attempt), [dataclasses.asdict(event) | {"source": source}])
            self.events.append(event)

    def restore(self) -> None:
        """What a restarted controller must know of what it has taken."""
        for row in self._folder.events(self._attempt):
            source = row.pop("source")
            self.events.append(Event(**row))
            if source:
                self._relayed.add((source[0], source[1]))
            if row["type"] in ONCE_A_STEP:
                self._once.add((row["type"], row["data"]["step"]))
            if row["type"] == "health.verdict":
                self._judged = _health(row["data"])
            if row["type"] in (RAISED, CLEARED):
                self._is_news(row["type"], row["data"])

    def _restore_marks(self) -> None:
        """What was measured before, in earlier attempts too: steps that are done again from a checkpoint are not told again."""
        for path in sorted(self._folder.metrics_folder.glob("attempt-*.jsonl"))[-2:]:
            for row in read_last_lines(path):
                mark = mark_of(row["step"], row["values"])
                self.told_through = max(self.told_through, -1 if mark is None else mark)
        self._gradient_step = self._folder.last_gradient_step()
        self._probe_step = self._folder.last_probe_step()
        self._rank_step = self._folder.last_rank_step()


def _health(data: Mapping[str, Any]) -> Mapping[str, Any]:
    return {key: data[key] for key in ("verdict", "sentence", "findings")}
