"""Telling MLflow. A thread of the controller follows the job's metrics file and sends each point once, with its original time.

The file is the spool: while MLflow is away the cursor waits, training and the job's own record go on. So it is with artifacts, of whose steps it
remembers the last one that is all there, and with findings and statistics (workers/tracking_health.py).
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers import artifacts
from workers.checkpoint_folders import MANIFEST
from workers.gradient_files import GradientReader
from workers.jobfolder import JobFolder, decode
from workers.reports import REASONS, Outcome
from workers.spec import JobSpec
from workers.tracking_health import GRADIENTS, HealthSender
from workers.watch.report import TAG_CHARACTERS, shortened

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from workers.placing import Attempt

BATCH = 1000  # MLflow's limit for one call
INTERVAL_SECONDS = 1.0
RETRY_SECONDS = 5.0
STATE = "mlflow.json"
JOB_TAG = "chainrule.job_id"
# MLflow has no word for a pause; a run that is scheduled is one that will go on.
RUN_STATUS = {"succeeded": "FINISHED", "failed": "FAILED", "cancelled": "KILLED", "paused": "SCHEDULED"}

log = logging.getLogger(__name__)


class Shipper:
    """One job's run. ``start`` once training has begun: importing MLflow takes two seconds of a processor."""

    def __init__(
        self, attempt: Attempt, spec: JobSpec, folder: JobFolder, health: Callable[[], Mapping[str, Any]] = dict
    ) -> None:
        """``health``: the verdict now, as the ledger has it; nothing: not known yet."""
        self._attempt, self._spec, self._folder, self._health_now = attempt, spec, folder, health
        self._state: dict[str, Any] = folder.read_document(STATE) or {"run_id": None, "files": {}, "steps": {}}
        self._client: MlflowClient | None = None
        self._thread: threading.Thread | None = None
        self._end: tuple[Outcome, Mapping[str, Any], Callable[[], None]] | None = None
        self._wake = threading.Event()
        self._health = HealthSender(spec.name, folder, self._state, self._save)

    @property
    def run_url(self) -> str | None:
        run, experiment = self._state["run_id"], self._state.get("experiment_id")
        return f"{self._attempt.mlflow_url}/#/experiments/{experiment}/runs/{run}" if run else None

    @property
    def run_variables(self) -> dict[str, str]:
        """With which MLflow's client in another process logs to this run; without a run while there is none."""
        found = {"MLFLOW_TRACKING_URI": str(self._attempt.mlflow_url)}
        if self._state["run_id"]:
            found |= {"MLFLOW_RUN_ID": self._state["run_id"], "MLFLOW_EXPERIMENT_ID": str(self._state["experiment_id"])}
        return found

    def start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)
            self._thread.start()

    def finish(self, outcome: Outcome, health: Mapping[str, Any], tracked: Callable[[], None]) -> None:
        """After the last point is in the folder: send the rest and the artifacts, close the run, call ``tracked``."""
        self._end = (outcome, health, tracked)
        self._wake.set()

    def _run(self) -> None:
        while True:
            end = (
                self._end
            )  # read before sending: what was recorded before the end is then sent before the run is closed
            try:
                run_id = self._ensure_run()
                self._send_points(run_id)
                self._send_artifacts(run_id)
                self._send_health(run_id, None if end is None else end[1])
                if end is not None:
                    self._close(run_id, end[0])
                    end[2]()
                    return
                wait = INTERVAL_SECONDS
            except Exception as error:  # whatever MLflow's client raises: tracking never stops a run
                log.warning("MLflow at %s: %s: %s", self._attempt.mlflow_url, type(error).__name__, error)
                wait = RETRY_SECONDS
            if end is None:
                self._wake.wait(wait)
                self._wake.clear()
            else:
                time.sleep(wait)

    # --- the run ------------------------------------------------------------------------------------------------------

    def _ensure_run(self) -> str:
        """The job's run, made once: a second attempt and a restarted controller go on with the same."""
        if self._client is None:
            # One try and a short wait: the default is minutes of blocking. Read by MLflow when it is imported and at each call.
            os.environ.update(MLFLOW_HTTP_REQUEST_MAX_RETRIES="1", MLFLOW_HTTP_REQUEST_TIMEOUT="10")
            from mlflow import MlflowClient

            self._client = MlflowClient(self._attempt.mlflow_url)
        if self._state["run_id"] is None:
            self._state["experiment_id"] = self._experiment()
            found = self._client.search_runs(
                [self._state["experiment_id"]], f"tags.`{JOB_TAG}` = '{self._attempt.job_id}'", max_results=1
            )
            run = found[0] if found else self._create_run()
            self._state["run_id"] = run.info.run_id
            self._save()
        run_id: str = self._state["run_id"]
        if self._state.get("attempt") != self._attempt.attempt:
            self._client.set_tag(run_id, "chainrule.attempt", str(self._attempt.attempt))
            self._client.update_run(run_id, status="RUNNING")
            self._state["attempt"] = self._attempt.attempt
            self._save()
        return run_id

    def _experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        assert self._client is not None
        found = self._client.get_experiment_by_name(self._attempt.experiment)
        if found is not None:
            return str(found.experiment_id)
        try:
            return str(self._client.create_experiment(self._attempt.experiment))
        except MlflowException:  # another job made it in the meantime
            found = self._client.get_experiment_by_name(self._attempt.experiment)
            if found is None:
                raise
            return str(found.experiment_id)

    def _create_run(self) -> Any:
        from mlflow.entities import Param

        assert self._client is not None
        tags = {
            JOB_TAG: self._attempt.job_id,
            "chainrule.folder": str(self._folder.path),
            **{f"chainrule.metadata.{key}": value for key, value in self._spec.metadata.items()},
        }
        run = self._client.create_run(self._state["experiment_id"], run_name=self._spec.name, tags=tags)
        parameters = [Param(key, value[:6000]) for key, value in flatten(json.loads(self._attempt.spec_json))]
        for start in range(0, len(parameters), 100):
            self._client.log_batch(run.info.run_id, params=parameters[start : start + 100])
        return run

    # --- points -------------------------------------------------------------------------------------------------------

    def _send_points(self, run_id: str) -> None:
        from mlflow.entities import Metric

        assert self._client is not None
        for name, offset, rows in self._new_rows():
            metrics = [
                Metric(key, decode(value), int(row["timestamp"] * 1000), row["step"])
                for row in rows
                for key, value in row["values"].items()
                if row["step"] > self._state["steps"].get(key, -1)  # a step that was done again has been told already
            ]
            for start in range(0, len(metrics), BATCH):
                self._client.log_batch(run_id, metrics=metrics[start : start + BATCH])
            for metric in metrics:
                self._state["steps"][metric.key] = metric.step
            self._state["files"][name] = offset
            self._save()

    def _new_rows(self) -> Iterator[tuple[str, int, list[dict[str, Any]]]]:
        """(file, offset after these rows, rows) for whole lines that were not sent yet, about BATCH points at a time."""
        for path in sorted(self._folder.metrics_folder.glob("attempt-*.jsonl")):
            with path.open("rb") as stream:
                stream.seek(self._state["files"].get(path.name, 0))
                rows: list[dict[str, Any]] = []
                points = 0
                while (line := stream.readline()).endswith(b"\n"):
                    try:
                        rows.append(json.loads(line))
                    except ValueError:
                        continue  # torn by a kill
                    points += len(rows[-1]["values"])
                    if points >= BATCH:
                        yield path.name, stream.tell(), rows
                        rows, points = [], 0
                if rows:
                    yield path.name, stream.tell() - len(line), rows

    # --- artifacts ----------------------------------------------------------------------------------------------------

    def _send_artifacts(self, run_id: str) -> None:
        """Each file once. Those of a step that is done again are the same; the first ones stay."""
        assert self._client is not None
        sent = self._state.setdefault(
            "artifacts", {"through": -1, "names": []}
        )  # all of these steps, and these of the next
        for step in artifacts.steps(self._folder.artifacts_path):
            if step <= sent["through"]:
                continue
            for artifact in artifacts.of_step(self._folder.artifacts_path, step):
                if artifact.name not in sent["names"]:
                    path = self._folder.artifacts_path / artifact.path
                    self._client.log_artifact(run_id, str(path), f"artifacts/{artifacts.folder_name(step)}")
                    sent["names"].append(artifact.name)
                    self._save()
            sent.update(through=step, names=[])
            self._save()

    def _send_health(self, run_id: str, final: Mapping[str, Any] | None) -> None:
        """``final``: the verdict at the end."""
        assert self._client is not None
        health = self._health_now() if final is None else final
        self._health.send(self._client, run_id, health, final=final is not None)

    def _save(self) -> None:
        self._folder.write_document(STATE, self._state)

    # --- the end ------------------------------------------------------------------------------------------------------

    def _close(self, run_id: str, outcome: Outcome) -> None:
        assert self._client is not None
        with tempfile.TemporaryDirectory() as folder:
            for path in GradientReader(self._folder.gradients_path).export(Path(folder)):
                self._client.log_artifact(run_id, str(path), GRADIENTS)
                path.unlink()
        for checkpoint in self._folder.checkpoints():
            self._log_json(run_id, MANIFEST, checkpoint.document(), f"checkpoints/{checkpoint.folder.name}")
        if self._folder.model_files():
            self._client.log_artifacts(run_id, str(self._folder.model_path), "model")
        tags = {
            "chainrule.reason": outcome.code,
            "chainrule.message": shortened(outcome.message, TAG_CHARACTERS),
        }
        for key, value in tags.items():
            self._client.set_tag(run_id, key, value)
        self._client.set_terminated(run_id, RUN_STATUS[REASONS[outcome.code].status])

    def _log_json(self, run_id: str, name: str, document: Mapping[str, Any], target: str | None = None) -> None:
        assert self._client is not None
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_text(json.dumps(document, indent=1))
            self._client.log_artifact(run_id, str(path), target)


def flatten(document: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """A nested document as (dotted key, text) pairs; empty and unset values are left out."""
    if isinstance(document, Mapping):
        for key, value in document.items():
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
    elif document not in (None, [], ""):
        yield prefix, document if isinstance(document, str) else json.dumps(document)
