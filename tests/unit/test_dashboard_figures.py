"""What the dashboard's pages show, as values."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest

from api import evidence
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


def test_a_zoom_stays_at_its_steps_and_its_open_edges_go_on_with_the_run() -> None:
    zoom = {"start": 12.5, "end": 87.5, "startValue": 250, "endValue": 1750}
    assert figures.window(zoom) == {"startValue": 250, "endValue": 1750}
    assert figures.window({**zoom, "end": 100}) == {"startValue": 250, "end": 100}
    assert figures.window({**zoom, "start": 0, "end": 100}) == {"start": 0, "end": 100}


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


def flow(matrix: dict[str, Any]) -> dict[str, Any]:
    return figures.heat_map(matrix["layers"], matrix["steps"], matrix["norms"], "gradient norm")


def test_the_gradient_flow_has_the_output_on_top() -> None:
    """ECharts draws the first category at the bottom."""
    matrix = {"layers": ["first", "last"], "steps": [5, 9], "norms": [[0.001, 1.0], ["Infinity", 0.0]]}
    options = flow(matrix)
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
    options = flow({"layers": ["a", "b"], "steps": [1], "norms": [["NaN", "-Infinity"]]})
    assert logarithms(options) == [None, None]
    assert options["visualMap"]["max"] > options["visualMap"]["min"]


def test_a_flow_of_many_layers_is_sent_in_few_bytes() -> None:
    layers, steps = 300, figures.flow_points(300)
    norms = np.random.default_rng(0).lognormal(size=(steps, layers)).astype(np.float32)
    matrix = {"layers": [f"layer{n}" for n in range(layers)], "steps": list(range(steps)), "norms": norms.tolist()}
    options = flow(matrix)
    assert len(json.dumps(options)) < 4 * layers * steps
    np.testing.assert_allclose(np.array(logarithms(options), dtype=float), np.log10(norms).ravel(), atol=0.0051)


def test_a_flow_of_one_colour_still_has_a_scale() -> None:
    options = flow({"layers": ["only"], "steps": [1], "norms": [[1.0]]})
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


def test_shares_and_counts_are_drawn_as_they_are() -> None:
    shares = figures.heat_map(["a", "b"], [1, 2], [[0.0, 0.5], [None, 1.0]], "silent", "share")
    cells = shares["series"][0][":data"]
    encoded = np.frombuffer(base64.b64decode(cells.split('"')[1]), dtype="<i2").tolist()
    assert encoded == [0, 5000, figures.EMPTY, 10_000]
    assert "value / 10000" in cells
    assert (shares["visualMap"]["min"], shares["visualMap"]["max"]) == (0, 1)
    counts = figures.heat_map(["a"], [1, 2], [[0.0], [1e9]], "not finite", "count")
    many = np.frombuffer(base64.b64decode(counts["series"][0][":data"].split('"')[1]), dtype="<i2").tolist()
    assert many == [0, 32767]


def finding(code: str, step: int, severity: str = "critical", rank: int | None = None) -> dict[str, Any]:
    return {"code": code, "severity": severity, "first_bad_step": step, "rank": rank, "layer": None, "evidence": {}}


def test_marks_are_where_findings_began() -> None:
    """Open ones in their colour, past ones in grey, those of one step together, and none before the first step."""
    spike, high = finding("loss_spike", 40, "warning"), finding("lr_too_high", 41)
    raised = [{"event": "raised", "step": 50, "finding": each} for each in (spike, high, finding("bad_init", 0))]
    passed = [{"event": "cleared", "step": 60, "finding": spike}]
    open_ = [high, finding("dying_relu", 41), finding("class_imbalance", 0, "note")]
    marks = figures.markers({"findings": open_, "history": [*raised, *passed]})["data"]
    assert [(mark["xAxis"], mark["name"]) for mark in marks] == [
        (40, "loss spike"), (41, "learning rate too high, dying relu")
    ]  # fmt: skip
    assert [mark["lineStyle"]["color"] for mark in marks] == [figures.MARKERS["past"], figures.MARKERS["critical"]]


def test_an_explosion_asks_for_logarithms() -> None:
    calm: list[list[float | None]]
    blown: list[list[float | None]]
    calm, blown = [[1, 2.0], [2, 1.5], [3, None]], [[1, 2.0], [2, 1e9], [3, 2.0]]
    assert not figures.needs_logarithms([calm, []])
    assert figures.needs_logarithms([blown, calm])
    assert not figures.needs_logarithms([blown, [[1, 0.0]]])  # which has no logarithm


def test_evidence_has_units_and_what_is_healthy() -> None:
    numbers = {
        "dead_share": 0.9375,
        "ratio": 2e-8,
        "layers": 3,
        "below_its_bound": True,
        "of_tomorrow": [1, 2.5],
        "loss": None,
    }
    shown = evidence.shown({"code": "vanishing_gradient", "evidence": numbers})
    assert [(line.value, line.healthy) for line in shown] == [
        ("93.8 %", "below 85 %"), ("2e-08", "above 0.001"), ("3 layers", ""), ("yes", ""), ("1, 2.5", ""), ("not known", "")
    ]  # fmt: skip
    assert shown[4].label == "Of tomorrow"
    assert (
        evidence.first_sentence("The loss is 2.5 in linear1.0 (healthy: 0.1). More.")
        == "The loss is 2.5 in linear1.0 (healthy: 0.1)."
    )


@pytest.mark.parametrize(
    ("watching", "said"),
    [
        ({"probes": 0, "share": None, "budget": 0.02}, "not been measured yet"),
        ({"probes": 0, "share": None, "budget": 0.0}, "overhead_budget of this job is 0"),
        ({"probes": 1200, "share": 0.0123, "budget": 0.02}, "1.2 % of the steps' time so far (gradients.overhead_budget: 2 %); 1,200 steps were"),
        ({"probes": 1, "share": "NaN", "budget": None}, "a time that is not known yet so far; 1 step was"),
    ],
)  # fmt: skip
def test_what_watching_costs_in_words(watching: dict[str, Any], said: str) -> None:
    assert said in evidence.cost(watching)


def test_usage_is_told_once_there_is_any() -> None:
    found = {"jobs": 3, "trained_worker_hours": 0.0, "lost_worker_hours": 0.0, "saved_worker_hours": 0.0}
    assert figures.usage_line(found) == ""
    found |= {"trained_worker_hours": 212.5, "saved_worker_hours": 31.7}
    assert figures.usage_line(found) == "212 worker-hours trained in 3 jobs · 31.7 saved by repairs"
