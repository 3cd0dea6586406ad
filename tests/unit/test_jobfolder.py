"""The job folder: what is appended is read back, also after a writer was killed in mid line."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from workers.gradient_files import GradientWriter
from workers.jobfolder import JobFolder, append_lines, encode, read_lines

pytestmark = pytest.mark.unit


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    folder = JobFolder(tmp_path, "job-1")
    folder.create('{"name": "x"}')
    return folder


def metrics(folder: JobFolder, attempt: int, step: int, **values: float) -> None:
    row = {"step": step, "timestamp": float(step), "values": {key: encode(value) for key, value in values.items()}}
    append_lines(folder.metrics_path(attempt), [row])


def test_series(folder: JobFolder) -> None:
    for step, value in enumerate([1.0, math.nan, math.inf, -math.inf], 1):
        metrics(folder, 1, step, loss=value, other=0.0)
    series = folder.series(["loss", "nothing"])
    assert list(series) == ["loss"]
    np.testing.assert_array_equal(series["loss"].values, [1.0, math.nan, math.inf, -math.inf])
    np.testing.assert_array_equal(series["loss"].timestamps, [1, 2, 3, 4])


def test_of_a_step_done_twice_the_later_counts(folder: JobFolder) -> None:
    for attempt, step, value in ((1, 1, 10.0), (1, 2, 20.0), (2, 2, 21.0), (2, 3, 31.0)):
        metrics(folder, attempt, step, loss=value)
    np.testing.assert_array_equal(folder.series()["loss"].values, [10.0, 21.0, 31.0])


@pytest.mark.parametrize("cut", range(2, 40, 6))
def test_a_torn_line_spoils_only_itself(folder: JobFolder, cut: int) -> None:
    """Would catch an append that glues the next line to the torn one."""
    metrics(folder, 1, 1, loss=1.0)
    metrics(folder, 1, 2, loss=2.0)
    path = folder.metrics_path(1)
    path.write_bytes(path.read_bytes()[:-cut])
    metrics(folder, 1, 3, loss=3.0)
    assert list(folder.series()["loss"].steps) == [1, 3]


def test_gradients_in_parts(folder: JobFolder) -> None:
    writer = GradientWriter(folder.gradients_path, 1)
    rows = [(step, [step, step / 2]) for step in range(1, 2501)]
    for start in range(0, 2500, 700):
        writer.append(["a", "b"], rows[start : start + 700])
    matrix = folder.gradient_matrix()
    assert matrix.layers == ("a", "b")
    np.testing.assert_array_equal(matrix.steps, np.arange(1, 2501))
    np.testing.assert_array_equal(matrix.norms[:, 1], np.arange(1, 2501, dtype=np.float32) / 2)
    assert not list(folder.gradients_path.glob("*.partial"))
    again = GradientWriter(folder.gradients_path, 1)  # as after a restart of the controller
    again.append(["a", "b"], [(2501, [1.0, 1.0])])
    assert folder.gradient_matrix().steps[-1] == 2501
    part = folder.gradient_matrix(first_step=10, last_step=20)
    np.testing.assert_array_equal(part.steps, np.arange(10, 21))


def test_thinning_keeps_the_spike(folder: JobFolder) -> None:
    norms = np.ones(1000)
    norms[617] = 1e6
    norms[333] = math.nan
    GradientWriter(folder.gradients_path, 1).append(["a"], [(step, [norm]) for step, norm in enumerate(norms)])
    thin = folder.gradient_matrix(max_points=20)
    assert len(thin.steps) == 20
    assert 617 in thin.steps
    assert 333 in thin.steps


def test_documents_are_replaced_at_once(folder: JobFolder) -> None:
    folder.write_document("x.json", {"a": 1})
    folder.write_document("x.json", {"a": 2})
    assert folder.read_document("x.json") == {"a": 2}
    assert folder.read_document("none.json") is None
    assert [path.name for path in folder.path.iterdir() if "partial" in path.name] == []


def test_a_missing_file_has_no_lines(tmp_path: Path) -> None:
    assert list(read_lines(tmp_path / "none.jsonl")) == []
