"""What MLflow is told of a run's health: tags, kept up to date, and files under ``health/`` of the run, of bounded number and size.

    findings.json     all findings, open and past: workers/watch/told.py
    report.html       the same for people
    repairs.json      what was done about them while it trained, if anything was
    facts.json        what was known before the first step
    job.json          the job specification
    statistics.npz    norms of every layer, probes and what each rank had, thinned: workers/watch/statistics_file.py

Each has one name and is replaced. What was sent is remembered in the job's folder, when it was taken: while MLflow is away nothing is.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.jobfolder import FACTS, JobFolder
from workers.watch import report, statistics_file
from workers.watch.told import Told, findings_document

if TYPE_CHECKING:
    from mlflow import MlflowClient

FOLDER = "health"
GRADIENTS = "gradients"  # of the run: the norms of every step, when an attempt has ended
FINDINGS, REPAIRS, PAGE, STATISTICS = "findings.json", "repairs.json", "report.html", "statistics.npz"
COPIED = ("job.json", FACTS)  # of the job's folder
FILES = (
    (f"{FOLDER}/{FINDINGS}", "these findings, as a program reads them"),
    (
        f"{FOLDER}/{STATISTICS}",
        "norms of every layer's gradient, what was probed and what each rank had, thinned to a bounded size",
    ),
    (f"{FOLDER}/{FACTS}", "what was known before the first step"),
    (f"{GRADIENTS}/", "the norms of every step, as Parquet; when an attempt has ended"),
)
FINDINGS_SECONDS = 10.0  # between two uploads of findings while the job runs
# Statistics of a job that runs: after a minute, and again when it has run a quarter longer. 42 times in a week.
STATISTICS_SECONDS, STATISTICS_GROWTH = 60.0, 1.25


class HealthSender:
    """``state`` is part of what the shipper remembers; ``save`` keeps it."""

    def __init__(self, name: str, folder: JobFolder, state: dict[str, Any], save: Callable[[], None]) -> None:
        self._name, self._folder, self._save = name, folder, save
        self._state: dict[str, Any] = state.setdefault("health", {"tags": {}, "files": {}})
        self._told = Told(folder.path / "events")
        self._findings_at = -math.inf  # monotonic

    def send(self, client: MlflowClient, run_id: str, health: Mapping[str, Any], *, final: bool = False) -> None:
        """What has changed and is due; with ``final`` all that has changed. Raises what MLflow's client raises, and may then be called again.

        An attempt that has no verdict yet leaves what the one before it has told.
        """
        known = bool(health.get("sentence") or health.get("findings"))
        has_news = known or not self._state["tags"]
        if has_news:
            self._send_tags(client, run_id, report.tags(health))
        for name in COPIED:
            path = self._folder.path / name
            if path.exists():
                self._send_file(client, run_id, name, path.read_bytes())
        if has_news and (final or time.monotonic() - self._findings_at >= FINDINGS_SECONDS):
            self._send_findings(client, run_id, health)
            self._findings_at = time.monotonic()
        if final or self._statistics_are_due():
            self._send_statistics(client, run_id)

    def _send_findings(self, client: MlflowClient, run_id: str, health: Mapping[str, Any]) -> None:
        import orjson

        document = findings_document(health, self._told.read())
        if repairs := self._told.repairs:
            self._send_file(client, run_id, REPAIRS, orjson.dumps(repairs, option=orjson.OPT_INDENT_2))
            holding = sum(each["state"] in ("trial", "kept") for each in repairs)
            self._send_tags(client, run_id, {"chainrule.repairs": f"{holding} of {len(repairs)} hold"})
        # Figures that are no numbers become null: JSON has none.
        self._send_file(client, run_id, FINDINGS, orjson.dumps(document, option=orjson.OPT_INDENT_2))
        self._send_file(client, run_id, PAGE, report.page(self._name, document, FILES).encode())

    def _send_tags(self, client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
        changed = {key: value for key, value in tags.items() if self._state["tags"].get(key) != value}
        if changed:
            from mlflow.entities import RunTag

            client.log_batch(run_id, tags=[RunTag(key, value) for key, value in changed.items()])
            self._state["tags"].update(changed)
            self._save()

    def _send_file(self, client: MlflowClient, run_id: str, name: str, content: bytes) -> None:
        digest = hashlib.sha256(content).hexdigest()
        if self._state["files"].get(name) != digest:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / name
                path.write_bytes(content)
                client.log_artifact(run_id, str(path), FOLDER)
            self._state["files"][name] = digest
            self._save()

    def _statistics_are_due(self) -> bool:
        """By the clock, which a controller that was started again reads on."""
        now = time.time()
        began: float = self._state.setdefault("began_at", now)
        return now >= next_statistics(began, self._state.get("statistics_at"))

    def _send_statistics(self, client: MlflowClient, run_id: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / STATISTICS
            statistics_file.write(path, self._folder)
            self._send_file(client, run_id, STATISTICS, path.read_bytes())
        self._state["statistics_at"] = time.time()
        self._save()


def next_statistics(began: float, last: float | None) -> float:
    """When those of a job that runs since ``began`` are sent again, after ``last``; in seconds."""
    return began + (STATISTICS_SECONDS if last is None else max(STATISTICS_SECONDS, STATISTICS_GROWTH * (last - began)))
