"""What MLflow gets, from a real job on a real server: everything, once, with its time; also when the server was away."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import MlflowServer
from tests.helpers import wait_for
from workers import artifacts, launcher
from workers.jobfolder import JobFolder, append_lines
from workers.placing import Attempt
from workers.reports import GroupShape, Outcome, ReasonCode
from workers.spec import parse_spec
from workers.tracking import Shipper

pytestmark = pytest.mark.integration

SPEC: dict[str, Any] = {
    "name": "tracked",
    "task": {
        "kind": "image_classification",
        "data": {"source": "digits"},
        "model": {"architecture": "mlp", "hidden": [32]},
    },
    "training": {"epochs": 3, "batch_size": 96},
    "optimizer": {"learning_rate": 3e-3},
    "workers": {"count": 2},
    "metadata": {"team": "vision"},
}


def client(server: MlflowServer) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(server.url)


def run_of(server: MlflowServer, job_id: str) -> Any:
    experiment = client(server).get_experiment_by_name("tracking-tests")
    (run,) = client(server).search_runs([experiment.experiment_id], f"tags.`chainrule.job_id` = '{job_id}'")
    return run


@pytest.mark.usefixtures("ray_driver")
def test_a_job_is_on_its_run(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    job_id = f"job-{uuid.uuid4().hex[:12]}"
    name, spec_json = f"{job_id}.1", parse_spec(SPEC).model_dump_json()
    folder = JobFolder(tmp_path, job_id)
    launcher.start(name, job_id, 1, spec_json, GroupShape(2), str(folder.path), mlflow_server.url, "tracking-tests")
    try:
        wait_for("the tracking's end", lambda: _tracked(name), 120)
    finally:
        launcher.remove(name)
    run = run_of(mlflow_server, job_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "tracked"
    assert run.data.params["optimizer.learning_rate"] == "0.003"
    assert run.data.params["task.data.source"] == "digits"
    assert run.data.tags["chainrule.metadata.team"] == "vision"
    assert run.data.tags["chainrule.reason"] == "completed"
    aggregate = {key for key in run.data.metrics if not key.startswith("system/")}
    assert aggregate >= {"train/loss", "train/learning_rate", "gradient/norm", "eval/loss", "eval/accuracy"}
    probed = {key for key in aggregate if key.startswith(("probe/", "watch/"))}
    assert "probe/update_ratio_median" in probed
    # Few, however many layers there are.
    assert len(probed) <= 10
    assert len(aggregate - probed) <= 25

    history = client(mlflow_server).get_metric_history(run.info.run_id, "train/loss")
    series = folder.series(["train/loss"])["train/loss"]
    assert [point.step for point in history] == list(series.steps)
    np.testing.assert_allclose([point.value for point in history], series.values)
    np.testing.assert_allclose([point.timestamp / 1000 for point in history], series.timestamps, atol=0.002)

    files = {entry.path for entry in client(mlflow_server).list_artifacts(run.info.run_id)}
    assert files >= {"gradients", "checkpoints", "model", "health"}

    import mlflow
    import pandas
    from mlflow.artifacts import download_artifacts

    uri = mlflow_server.url
    parquet = download_artifacts(run_id=run.info.run_id, artifact_path="gradients", tracking_uri=uri)
    table = pandas.read_parquet(parquet)
    assert list(table.columns) == ["step", "linear1", "output"]
    assert len(table) == 45

    from workers.kinds.image_data import DigitsData
    from workers.sources.arrays import read_digits

    held_out = read_digits(DigitsData(source="digits")).evaluation
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        model = mlflow.pyfunc.load_model(f"runs:/{run.info.run_id}/model")
    finally:
        mlflow.set_tracking_uri(before)
    accuracy = np.mean(model.predict(held_out.pixels)["class"].to_numpy() == held_out.labels)
    assert abs(accuracy - run.data.metrics["eval/accuracy"]) < 1e-6


def _tracked(name: str) -> bool:
    seen = launcher.observe({name: 0}).get(name)
    return seen is not None and any(event.type == "tracking.complete" for event in seen.events)


@pytest.fixture
def server_to_stop(tmp_path: Path) -> Iterator[MlflowServer]:
    """A server of its own, because this test takes it away."""
    server = MlflowServer(tmp_path)
    yield server
    server.stop()


def rows(folder: JobFolder, steps: range, started_at: float) -> None:
    append_lines(
        folder.metrics_path(1),
        [{"step": s, "timestamp": started_at + s, "values": {"train/loss": 1.0 / s, "odd": "NaN"}} for s in steps],
    )


def test_nothing_is_lost_while_the_server_is_away(server_to_stop: MlflowServer, tmp_path: Path) -> None:
    """It is not there at the start, and it goes away in between. Would catch points sent twice, lost, or with a new time."""
    folder = JobFolder(tmp_path / "storage", "job-1")
    spec = parse_spec(SPEC)
    attempt = Attempt(
        "job-1.1",
        "job-1",
        1,
        spec.model_dump_json(),
        GroupShape(2),
        str(folder.path),
        server_to_stop.url,
        "tracking-tests",
    )
    started_at = float(int(time.time()) - 10_000)
    folder.create(attempt.spec_json)
    shipper = Shipper(attempt, spec, folder)
    shipper.start()
    rows(folder, range(1, 501), started_at)
    artifacts.write(folder.artifacts_path, 100, {"samples.txt": b"one"})
    server_to_stop.start()
    wait_for(
        "the first points",
        lambda: (folder.read_document("mlflow.json") or {}).get("steps", {}).get("train/loss") == 500,
    )
    wait_for("the first artifact", lambda: sent_through(folder) == 100)
    server_to_stop.stop()
    artifacts.write(folder.artifacts_path, 600, {"samples.txt": b"two", "grid.png": b"2"})
    rows(folder, range(501, 901), started_at)
    rows(folder, range(701, 1001), started_at)  # steps that a recovered group has done again
    tracked: list[bool] = []
    shipper.finish(Outcome(ReasonCode.CANCELLED, "x"), {"verdict": "healthy"}, lambda: tracked.append(True))
    time.sleep(0.5)
    assert not tracked
    server_to_stop.start()
    wait_for("the rest", lambda: tracked or None, 60)
    run = run_of(server_to_stop, "job-1")
    assert run.info.status == "KILLED"
    history = client(server_to_stop).get_metric_history(run.info.run_id, "train/loss")
    assert [(point.step, point.timestamp) for point in history] == [
        (step, int((started_at + step) * 1000)) for step in range(1, 1001)
    ]
    assert artifacts_of(server_to_stop, run.info.run_id) == {
        "artifacts/step-0000000100/samples.txt": 3,
        "artifacts/step-0000000600/samples.txt": 3,
        "artifacts/step-0000000600/grid.png": 1,
    }


def sent_through(folder: JobFolder) -> int:
    return int((folder.read_document("mlflow.json") or {}).get("artifacts", {}).get("through", -1))


def artifacts_of(server: MlflowServer, run_id: str) -> dict[str, int]:
    """Path -> bytes of what the tasks's artifacts are on the run."""
    found = {}
    for step in client(server).list_artifacts(run_id, "artifacts"):
        found.update({file.path: file.file_size for file in client(server).list_artifacts(run_id, step.path)})
    return found


def test_each_artifact_is_sent_once(
    mlflow_server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by a controller that was started again in the middle of a step's files, and when a step is done again."""
    from mlflow import MlflowClient

    folder = JobFolder(tmp_path / "storage", "job-artifacts")
    attempt = Attempt(
        "job-artifacts.1", "job-artifacts", 1, parse_spec(SPEC).model_dump_json(), GroupShape(1), str(folder.path),
        mlflow_server.url, "tracking-tests",
    )  # fmt: skip
    folder.create(attempt.spec_json)
    sent: list[str] = []
    log_artifact = MlflowClient.log_artifact

    def counting(self: Any, run_id: str, path: str, target: str | None = None) -> None:
        if len(sent) == 2 and "b.txt" not in sent[-1]:
            sent.append("the second file fails")
            raise ConnectionError("away for a moment")
        log_artifact(self, run_id, path, target)
        sent.append(f"{target}/{Path(path).name}")

    monkeypatch.setattr(MlflowClient, "log_artifact", counting)
    artifacts.write(folder.artifacts_path, 1, {"a.txt": b"1"})
    artifacts.write(folder.artifacts_path, 2, {"a.txt": b"1", "b.txt": b"1"})
    first = Shipper(attempt, parse_spec(SPEC), folder)
    with pytest.raises(ConnectionError):
        first._send_artifacts(first._ensure_run())
    artifacts.write(folder.artifacts_path, 1, {"a.txt": b"1"})  # done again
    second = Shipper(attempt, parse_spec(SPEC), folder)
    run_id = second._ensure_run()
    for _ in range(2):
        second._send_artifacts(run_id)
    names = ["artifacts/step-0000000001/a.txt", "artifacts/step-0000000002/a.txt", "artifacts/step-0000000002/b.txt"]
    assert [each for each in sent if each.startswith("artifacts/")] == names
    assert sorted(artifacts_of(mlflow_server, run_id)) == names
