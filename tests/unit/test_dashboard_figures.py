"""What the dashboard's pages show, as values."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest

from api.dashboard import figures, job_files

pytestmark = pytest.mark.unit

JOB: dict[str, Any] = {
    "id": "job-1", "name": "Digits", "status": "running", "progress": {"step": 50, "steps": 200, "eta_seconds": 75.0},
    "latest": {"train/loss": 0.123456}, "health": {"verdict": "healthy"}, "workers": [{}, {}],
    "created_at": "2026-11-25T10:00:00.123Z", "finished_at": None,
}  # fmt: skip


def test_a_running_job() -> None:
    row = figures.job_row(JOB)
    assert (row["progress"], row["share"], row["eta"], row["loss"]) == ("50 / 200", 0.25, "1 min 15 s", "0.1235")
    assert (row["health"], row["workers"], row["ended"]) == ("healthy", 2, False)
    assert row["created"] == "2026-11-25 10:00:00"


def test_a_job_that_has_not_begun() -> None:
    row = figures.job_row({**JOB, "status": "queued", "progress": None, "latest": {}, "health": {}, "workers": []})
    assert (row["progress"], row["share"], row["eta"], row["loss"], row["health"]) == ("-", 0.0, "-", "-", "-")


def test_a_loss_that_is_not_finite_is_shown_as_a_word() -> None:
    assert figures.job_row({**JOB, "latest": {"train/loss": "NaN"}})["loss"] == "NaN"


@pytest.mark.parametrize(
    ("text", "status", "found"),
    [("dig", None, True), ("JOB-1", "running", True), ("", "queued", False), ("other", None, False)],
)
def test_search(text: str, status: str | None, found: bool) -> None:
    assert figures.matches(figures.job_row(JOB), text, status) is found


@pytest.mark.parametrize(
    ("seconds", "said"), [(None, "-"), (0.4, "0 s"), (59.6, "1 min 0 s"), (3600, "1 h 0 min"), (90061, "25 h 1 min")]
)
def test_durations(seconds: float | None, said: str) -> None:
    assert figures.duration(seconds) == said


@pytest.mark.parametrize(("count", "said"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 * 2**40, "5.0 TiB")])
def test_sizes(count: int, said: str) -> None:
    assert figures.size(count) == said


def test_what_is_not_finite_is_a_gap_in_a_curve() -> None:
    series = {"points": [{"step": 1, "value": 2.0}, {"step": 2, "value": "NaN"}, {"step": 3, "value": 0.0}]}
    assert figures.points(series) == [[1, 2.0], [2, None], [3, 0.0]]
    assert figures.points(series, logarithmic=True) == [[1, 2.0], [2, None], [3, None]]


def test_the_gradient_flow_has_the_output_on_top() -> None:
    """ECharts draws the first category at the bottom."""
    matrix = {"layers": ["first", "last"], "steps": [5, 9], "norms": [[0.001, 1.0], ["Infinity", 0.0]]}
    options = figures.gradient_flow(matrix)
    assert options["yAxis"]["data"] == ["first", "last"]
    assert options["xAxis"]["data"] == ["5", "9"]
    assert logarithms(options) == [-3.0, 0.0, None, -12.0]
    assert (options["visualMap"]["min"], options["visualMap"]["max"]) == (-12, 0)


def logarithms(options: dict[str, Any]) -> list[float | None]:
    """Of the cells, layer after layer for each step; None: empty."""
    encoded = options["series"][0][":data"].split('"')[1]
    cells = np.frombuffer(base64.b64decode(encoded), dtype="<i2").tolist()
    return [None if cell == figures.EMPTY else cell / 100 for cell in cells]


def test_a_flow_without_a_finite_norm_is_empty() -> None:
    options = figures.gradient_flow({"layers": ["a", "b"], "steps": [1], "norms": [["NaN", "-Infinity"]]})
    assert logarithms(options) == [None, None]
    assert options["visualMap"]["max"] > options["visualMap"]["min"]


def test_a_flow_of_many_layers_is_sent_in_few_bytes() -> None:
    layers, steps = 300, figures.flow_points(300)
    norms = np.random.default_rng(0).lognormal(size=(steps, layers)).astype(np.float32)
    matrix = {"layers": [f"layer{n}" for n in range(layers)], "steps": list(range(steps)), "norms": norms.tolist()}
    options = figures.gradient_flow(matrix)
    assert len(json.dumps(options)) < 4 * layers * steps
    np.testing.assert_allclose(np.array(logarithms(options), dtype=float), np.log10(norms).ravel(), atol=0.0051)


def test_a_flow_of_one_colour_still_has_a_scale() -> None:
    options = figures.gradient_flow({"layers": ["only"], "steps": [1], "norms": [[1.0]]})
    assert options["visualMap"]["max"] > options["visualMap"]["min"]


@pytest.mark.parametrize("layers", [1, 50, 300, 5000])
def test_the_flow_stays_within_what_a_browser_draws(layers: int) -> None:
    points = figures.flow_points(layers)
    assert 20 <= points <= 400
    assert points * layers <= max(figures.FLOW_CELLS, 20 * layers)


@pytest.mark.parametrize("name", job_files.EXAMPLES)
def test_every_example_is_a_valid_job(name: str) -> None:
    assert job_files.problems_of(job_files.EXAMPLES[name]) == []


def test_problems_name_their_fields() -> None:
    problems = dict(job_files.problems_of(job_files.EXAMPLES["a table"].replace("batch_size: 64", "batch_size: -1")))
    assert set(problems) == {"training.batch_size"}
    assert "-1" in problems["training.batch_size"]


def test_text_that_is_no_job_file() -> None:
    ((path, message),) = job_files.problems_of("name: [")
    assert path == ""
    assert "line" in message
    assert job_files.problems_of('{"name": "x"}')[0][0] == "task"
