"""What a worker has to tell and its controller has not yet acknowledged."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from workers.reports import Level, Progress

Kind = Literal["metrics", "gradients", "probes", "ranks", "event"]


@dataclass(frozen=True)
class Report:
    """``sequence`` counts from 1 within one worker process. ``body``: JSON values."""

    sequence: int
    kind: Kind
    body: Mapping[str, Any]


class Outbox:
    """A Reporter that keeps everything until it is acknowledged, so that a controller which dies and comes back misses nothing."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reports: deque[Report] = deque()
        self._sequence = 0
        self._progress: Progress | None = None

    def metrics(self, step: int, values: Mapping[str, float], timestamp: float) -> None:
        self._add("metrics", {"step": step, "timestamp": timestamp, "values": dict(values)})

    def gradients(self, layers: Sequence[str], rows: Sequence[tuple[int, Sequence[float]]]) -> None:
        self._add("gradients", {"layers": tuple(layers), "rows": list(rows)})

    def probes(self, layers: Sequence[str], activations: Sequence[str], rows: Sequence[tuple[int, str]]) -> None:
        self._add("probes", {"layers": tuple(layers), "activations": tuple(activations), "rows": list(rows)})

    def ranks(self, rows: Sequence[str]) -> None:
        self._add("ranks", {"rows": list(rows)})

    def event(self, level: Level, type: str, message: str, data: Mapping[str, Any] | None = None) -> None:
        body = {"timestamp": time.time(), "level": level, "type": type, "message": message, "data": dict(data or {})}
        self._add("event", body)

    def progress(self, progress: Progress) -> None:
        self._progress = progress

    @property
    def latest_progress(self) -> Progress | None:
        return self._progress

    def _add(self, kind: Kind, body: Mapping[str, Any]) -> None:
        with self._lock:
            self._sequence += 1
            self._reports.append(Report(self._sequence, kind, body))

    def after(self, acknowledged: int, limit: int = 2000) -> list[Report]:
        """Forgets what is acknowledged and returns the next ``limit`` reports."""
        with self._lock:
            while self._reports and self._reports[0].sequence <= acknowledged:
                self._reports.popleft()
            return [report for report, _ in zip(self._reports, range(limit), strict=False)]
