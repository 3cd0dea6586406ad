"""`chainrule diagnose` on a job's folder, and records from what the API answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from api.cli.main import app
from tests.rules_cases import HEALTHY, SICK
from workers.gradient_files import GradientWriter
from workers.jobfolder import JobFolder, append_lines, encode
from workers.watch.record import Record
from workers.watch.stored import from_folder

pytestmark = pytest.mark.unit


def written(record: Record, path: Path) -> JobFolder:
    """As a controller writes it."""
    folder = JobFolder.at(path)
    folder.write_document("job.json", {"training": {"steps": record.total_steps}, "optimizer": {"learning_rate": 1e-3}})
    series = record.series
    rows = zip(series.steps.tolist(), series.losses.tolist(), strict=True)
    lines = [{"step": step, "timestamp": float(step), "values": {"train/loss": encode(loss)}} for step, loss in rows]
    lines += [
        {"step": step, "timestamp": float(step), "values": {"eval/loss": encode(loss)}}
        for step, loss in zip(
            record.evaluations.steps.tolist(), record.evaluations.metrics["loss"].tolist(), strict=True
        )
    ]
    append_lines(folder.metrics_path(1), lines)
    GradientWriter(folder.gradients_path, 1).append(
        series.layers, list(zip(series.steps.tolist(), series.norms.tolist(), strict=True))
    )
    return folder


@pytest.mark.parametrize(
    ("name", "code", "exit_code"), [("plain", None, 0), ("very deep sigmoid", "vanishing_gradient", 1)]
)
def test_a_folder_is_judged(name: str, code: str | None, exit_code: int, tmp_path: Path) -> None:
    record = (HEALTHY[name] if name in HEALTHY else SICK[name][1])(0)
    written(record, tmp_path)
    result = CliRunner().invoke(app, ["diagnose", str(tmp_path), "--json"])
    assert result.exit_code == exit_code, result.output
    found = json.loads(result.output)
    assert [finding["code"] for finding in found["findings"]] == ([code] if code else [])
    assert [entry["event"] for entry in found["timeline"]] == (["raised"] if code else [])
    text = CliRunner().invoke(app, ["diagnose", str(tmp_path)]).output
    assert (code or "healthy") in text


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    record = HEALTHY["plain"](0)
    read = from_folder(written(record, tmp_path))
    assert read.series.layers == record.series.layers
    assert read.series.losses.tolist() == record.series.losses.tolist()
    assert read.series.norms == pytest.approx(record.series.norms, rel=1e-6)
    assert read.evaluations.metrics["loss"].tolist() == record.evaluations.metrics["loss"].tolist()
    assert read.total_steps == 300


def test_a_folder_without_a_job_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["diagnose", str(tmp_path)])
    assert result.exit_code == 1
    assert "holds no job" in result.output
