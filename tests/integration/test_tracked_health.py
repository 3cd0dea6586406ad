"""Findings and statistics of a run from MLflow alone: of a real sick job whose folder is gone, and when MLflow was away in between."""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from api.cli.main import app
from tests.conftest import MlflowServer
from tests.helpers import wait_for
from workers import launcher, tracking_health
from workers.gradient_files import GradientWriter
from workers.jobfolder import JobFolder, append_lines
from workers.placing import Attempt
from workers.reports import GroupShape, Outcome, ReasonCode
from workers.spec import parse_spec
from workers.tracked_runs import restore
from workers.tracking import Shipper
from workers.watch.probe_files import read_records
from workers.watch.record import Record
from workers.watch.stored import from_folder

pytestmark = pytest.mark.integration

EXPERIMENT = "tracked-health-tests"
SICK: dict[str, Any] = {
    "name": "sick",
    "task": {
        "kind": "image_classification",
        "data": {"source": "digits"},
        "model": {"architecture": "mlp", "hidden": [64, 64, 64]},
    },
    "training": {"epochs": 6, "batch_size": 64},
    "optimizer": {"name": "sgd", "learning_rate": 60.0},
    "workers": {"count": 2},
}


def diagnosed(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["diagnose", *arguments, "--json"])
    assert result.exit_code in (0, 1), result.output
    found: dict[str, Any] = json.loads(result.output)
    return found


def run_of(server: MlflowServer, job_id: str) -> Any:
    from mlflow import MlflowClient

    client = MlflowClient(server.url)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`chainrule.job_id` = '{job_id}'")
    return run


def health_files(server: MlflowServer, run_id: str) -> set[str]:
    from mlflow import MlflowClient

    return {Path(file.path).name for file in MlflowClient(server.url).list_artifacts(run_id, "health")}


def health_file(server: MlflowServer, run_id: str, name: str, folder: Path) -> Path:
    from mlflow.artifacts import download_artifacts

    found = download_artifacts(
        run_id=run_id, artifact_path=f"health/{name}", tracking_uri=server.url, dst_path=str(folder)
    )
    return Path(found)


def same(one: Record, other: Record) -> None:
    assert one.facts == other.facts
    for part in ("series", "probes", "evaluations", "ranks", "checksums"):
        ours, theirs = asdict(getattr(one, part)), asdict(getattr(other, part))
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_equal(ours[name], theirs[name], err_msg=f"{part}.{name}")


@pytest.mark.usefixtures("ray_driver")
def test_a_sick_job_is_diagnosed_from_mlflow_alone(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    job_id = f"job-{uuid.uuid4().hex[:12]}"
    name, spec_json = f"{job_id}.1", parse_spec(SICK).model_dump_json()
    folder = JobFolder(tmp_path / "storage", job_id)
    launcher.start(name, job_id, 1, spec_json, GroupShape(2), str(folder.path), mlflow_server.url, EXPERIMENT)
    try:
        seen = wait_for("the tracking's end", lambda: _tracked(name), 180)
    finally:
        launcher.remove(name)
    before, record, probes = diagnosed(str(folder.path)), from_folder(folder), read_records(folder.probes_path)
    assert before["verdict"] in ("warning", "critical"), before
    assert probes is not None
    facts, matrix = folder.read_document("facts.json"), folder.gradient_matrix()
    assert facts is not None
    raised = [row for row in folder.events(1) if row["type"] == "finding.raised"]
    shutil.rmtree(folder.path)

    run = run_of(mlflow_server, job_id)
    after = diagnosed(f"mlflow:{run.info.run_id}", "--tracking-uri", mlflow_server.url)
    assert after == before
    restored = restore(run.info.run_id, mlflow_server.url, tmp_path / "restored")
    same(from_folder(restored), record)
    found = read_records(restored.probes_path)
    assert found is not None
    assert found[1].tobytes() == probes[1].tobytes()  # histograms too
    np.testing.assert_array_equal(restored.gradient_matrix().norms, matrix.norms)
    assert restored.read_document("facts.json") == facts

    # What the live verdict told, by tags and as documents.
    health = seen.health
    codes = [finding["code"] for finding in health["findings"]]
    tags = run.data.tags
    assert codes
    assert tags["chainrule.verdict"] == health["verdict"]
    assert tags["chainrule.findings"] == ",".join(dict.fromkeys(codes))
    first = next(finding for finding in health["findings"] if finding["severity"] != "note")
    assert tags["chainrule.first_bad_step"] == str(first["first_bad_step"])
    assert tags["chainrule.sentence"] == health["sentence"]
    document = json.loads(health_file(mlflow_server, run.info.run_id, "findings.json", tmp_path).read_text())
    opened = [finding for finding in document["findings"] if finding["state"] == "open"]
    assert [finding["code"] for finding in opened] == codes
    assert all(finding["raised"]["at"] > 0 for finding in opened)
    assert {finding["code"] for finding in document["findings"]} == {row["data"]["finding"]["code"] for row in raised}
    page = health_file(mlflow_server, run.info.run_id, "report.html", tmp_path).read_text()
    assert all(code in page for code in codes)

    # Layers are in the file of statistics, not among the metrics.
    assert len(matrix.layers) == 4
    assert not [key for key in run.data.metrics if any(layer in key for layer in matrix.layers)]


def _tracked(name: str) -> Any:
    seen = launcher.observe({name: 0}).get(name)
    return seen if seen is not None and any(event.type == "tracking.complete" for event in seen.events) else None


@pytest.fixture
def server_to_stop(tmp_path: Path) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path)
    yield server
    server.stop()


def finding(code: str, severity: str, step: int) -> dict[str, Any]:
    return {
        "code": code, "severity": severity, "first_bad_step": step, "layer": "linear1", "rank": None, "evidence": {"norm": float("nan")},
        "explanation": f"{code} was seen", "suggestion": "lower it", "consequences": [],
    }  # fmt: skip


def trained(folder: JobFolder, steps: range) -> None:
    now = float(int(time.time()))
    values: list[dict[str, Any]] = [{"train/loss": 2.0 / step} for step in steps]
    values[-1]["train/learning_rate"] = "Infinity"
    rows = [{"step": step, "timestamp": now, "values": each} for step, each in zip(steps, values, strict=True)]
    append_lines(folder.metrics_path(1), rows)
    GradientWriter(folder.gradients_path, 1).append(["linear1"], [(step, [1.0 / step]) for step in steps])


def told(folder: JobFolder, type: str, what: Mapping[str, Any], step: int) -> None:
    row = {"sequence": 1, "timestamp": time.time(), "level": "warning", "type": type, "message": ""}
    append_lines(folder.events_path(1), [{**row, "data": {"step": step, "finding": what}, "source": None}])


def test_no_finding_is_lost_while_the_server_is_away(
    server_to_stop: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not there at the start, comes, goes away while the verdict changes and the job ends; then another controller goes on."""
    monkeypatch.setattr(tracking_health, "STATISTICS_SECONDS", 0.5)
    monkeypatch.setattr(tracking_health, "FINDINGS_SECONDS", 0.5)
    folder, spec = JobFolder(tmp_path / "storage", "job-1"), parse_spec(SICK)
    attempt = Attempt(
        "job-1.1", "job-1", 1, spec.model_dump_json(), GroupShape(2), str(folder.path), server_to_stop.url, EXPERIMENT
    )
    folder.create(attempt.spec_json)
    slow, worse = finding("slow_convergence", "warning", 30), finding("exploding_gradient", "critical", 60)
    health: dict[str, Any] = {"verdict": "warning", "sentence": "It is slow.", "findings": [slow]}
    trained(folder, range(1, 51))
    told(folder, "finding.raised", slow, 40)
    shipper = Shipper(attempt, spec, folder, lambda: health)
    shipper.start()
    server_to_stop.start()
    files = {"findings.json", "report.html", "job.json", "statistics.npz"}
    wait_for("the first findings", lambda: _sent(folder) == files, 60)
    run_id = run_of(server_to_stop, "job-1").info.run_id
    assert run_of(server_to_stop, "job-1").data.tags["chainrule.findings"] == "slow_convergence"
    assert health_files(server_to_stop, run_id) == files  # while it runs
    assert run_of(server_to_stop, "job-1").info.status == "RUNNING"

    server_to_stop.stop()
    told(folder, "finding.cleared", slow, 70)
    told(folder, "finding.raised", worse, 70)
    trained(folder, range(51, 101))
    folder.write_document("facts.json", {"layers": [], "total_steps": 100})
    health = {"verdict": "critical", "sentence": "It explodes.", "findings": [worse]}
    ended: list[bool] = []
    shipper.finish(Outcome(ReasonCode.NONFINITE, "x"), health, lambda: ended.append(True))
    time.sleep(1.5)
    assert not ended
    server_to_stop.start()
    wait_for("the rest", lambda: ended or None, 60)
    run = run_of(server_to_stop, "job-1")
    assert run.data.tags["chainrule.verdict"] == "critical"
    assert run.data.tags["chainrule.findings"] == "exploding_gradient"
    assert run.data.tags["chainrule.first_bad_step"] == "60"
    document = json.loads(health_file(server_to_stop, run_id, "findings.json", tmp_path).read_text())
    assert [(each["code"], each["state"]) for each in document["findings"]] == [
        ("exploding_gradient", "open"), ("slow_convergence", "past"),
    ]  # fmt: skip
    assert document["findings"][0]["evidence"] == {"norm": None}
    assert document["findings"][1]["cleared"]["step"] == 70
    assert health_files(server_to_stop, run_id) == {*files, "facts.json"}
    restored = restore(run_id, server_to_stop.url, tmp_path / "restored")
    assert restored.gradient_matrix().steps.tolist() == list(range(1, 101))
    assert restored.series()["train/learning_rate"].values.tolist() == [np.inf, np.inf]
    same(from_folder(restored), from_folder(folder))

    # A later attempt that knows nothing yet leaves what was told; what it finds itself replaces it.
    health = {"verdict": "unknown", "findings": []}
    again = Shipper(attempt, spec, folder, lambda: health)
    again._send_health(again._ensure_run(), None)
    assert run_of(server_to_stop, "job-1").data.tags["chainrule.verdict"] == "critical"
    health = {"verdict": "healthy", "sentence": "All is well.", "findings": []}
    again._send_health(again._ensure_run(), None)
    tags = run_of(server_to_stop, "job-1").data.tags
    assert (tags["chainrule.verdict"], tags["chainrule.findings"]) == ("healthy", "")


def _sent(folder: JobFolder) -> set[str]:
    return set((folder.read_document("mlflow.json") or {}).get("health", {}).get("files", {}))


def test_what_is_no_run_is_refused(
    mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    client = MlflowClient(mlflow_server.url)
    empty = client.create_run(client.create_experiment(f"empty-{uuid.uuid4().hex}")).info.run_id
    nobody = ["--tracking-uri", "http://127.0.0.1:9"]
    ours = ["--tracking-uri", mlflow_server.url]
    cases = [
        (["mlflow:0123", *ours], 1, "0123"),
        ([f"mlflow:{empty}", *ours], 1, "no series of a training"),
        (["mlflow:0123", *nobody], 1, "127.0.0.1:9"),
        (["mlflow:0123", "--home", str(tmp_path)], 2, "--tracking-uri"),
    ]
    for arguments, code, said in cases:
        result = CliRunner().invoke(app, ["diagnose", *arguments])
        assert (result.exit_code, said in result.output) == (code, True), result.output
