"""What leaves a job's folder for MLflow: findings over time, a page and tags of them, statistics in a file of bounded size."""

from __future__ import annotations

import base64
import html
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workers.gradient_files import GradientWriter
from workers.jobfolder import JobFolder, append_lines
from workers.tracking_health import HealthSender, next_statistics
from workers.watch import statistics_file
from workers.watch.probe_files import ProbeWriter, count_records, read_records
from workers.watch.probe_rows import Names, record_type
from workers.watch.report import TAG_CHARACTERS, page, tags
from workers.watch.told import Told, findings_document

pytestmark = pytest.mark.unit


def finding(code: str, severity: str = "warning", step: int = 10, **other: Any) -> dict[str, Any]:
    return {
        "code": code, "severity": severity, "first_bad_step": step, "layer": None, "rank": None, "evidence": {"share": 0.5},
        "explanation": f"{code} was seen", "suggestion": "lower it", "consequences": [], **other,
    }  # fmt: skip


def event(type: str, at: float, what: dict[str, Any], step: int = 20) -> dict[str, Any]:
    data = what if type == "data.finding" else {"step": step, "finding": what}
    return {"sequence": 1, "timestamp": at, "level": "warning", "type": type, "message": "", "data": data}


def test_findings_are_open_or_past(tmp_path: Path) -> None:
    """Over two attempts, with one that passed, one that came back worse, and one whose attempt ended."""
    folder = JobFolder.at(tmp_path)
    old, worse = finding("oscillating_loss"), finding("dead_units", "critical", rank=1)
    append_lines(
        folder.events_path(1),
        [
            event("data.finding", 1, finding("class_imbalance", "note", 0)),
            event("finding.raised", 2, old),
            event("finding.cleared", 3, old, 40),
            event("finding.raised", 4, finding("dead_units", rank=1)),
            event("finding.raised", 5, worse),
            event("finding.raised", 6, finding("plateau")),
        ],
    )
    told = Told(tmp_path / "events")
    health = {"verdict": "critical", "sentence": "so", "findings": [worse, finding("class_imbalance", "note", 0)]}
    told.read()
    with folder.events_path(2).open("w") as stream:
        stream.write('{"type": "finding.rai')  # not all of it yet
    document = findings_document(health, told.read())
    assert [(each["code"], each["state"]) for each in document["findings"]] == [
        ("dead_units", "open"), ("class_imbalance", "open"), ("plateau", "past"), ("oscillating_loss", "past"),
    ]  # fmt: skip
    assert document["findings"][0]["raised"] == {"at": 5, "attempt": 1, "step": 20}
    assert document["findings"][0]["severity"] == "critical"
    assert document["findings"][2]["cleared"] is None
    assert document["findings"][3]["cleared"] == {"at": 3, "attempt": 1, "step": 40}
    assert (document["verdict"], document["left_out"]) == ("critical", 0)
    assert findings_document({"verdict": "unknown", "findings": []}, [])["findings"] == []


def test_past_findings_are_bounded(tmp_path: Path) -> None:
    rows = []
    for number in range(300):
        rows += [event("finding.raised", number, finding("plateau", step=number))]
        rows += [event("finding.cleared", number, finding("plateau", step=number))]
    append_lines(JobFolder.at(tmp_path).events_path(1), rows)
    document = findings_document({"verdict": "healthy", "findings": []}, Told(tmp_path / "events").read())
    assert [each["first_bad_step"] for each in document["findings"]] == list(range(299, 99, -1))
    assert document["left_out"] == 100
    assert "250 earlier ones" in page("job", document, [])


def test_tags_name_the_first_cause_and_fit() -> None:
    found = [finding("small_batch", "note", 0), finding("plateau", step=40), finding("plateau", step=50, rank=1)]
    told = tags({"verdict": "warning", "sentence": "x" * 9000, "findings": found})
    assert told["chainrule.findings"] == "small_batch,plateau"
    assert told["chainrule.first_bad_step"] == "40"
    assert len(told["chainrule.sentence"]) == TAG_CHARACTERS
    many = tags({"verdict": "warning", "findings": [finding(f"code_{number}" * 10) for number in range(200)]})
    assert len(many["chainrule.findings"]) <= TAG_CHARACTERS
    assert many["chainrule.findings"].endswith(tuple("0123456789"))
    assert set(tags({"verdict": "healthy", "findings": []}).values()) == {"healthy", ""}


def test_the_page_shows_everything_and_obeys_nobody() -> None:
    evil = '<script>alert("1")</script>'
    sick = finding(
        "dead_units", "critical", 12, layer=evil, rank=3, explanation=evil, evidence={evil: evil, "zero": 0.25}
    )
    document = findings_document({"verdict": "critical", "sentence": "Units are dead.", "findings": [sick]}, [])
    text = page(evil, document, [("health/findings.json", "these")])
    assert "<script" not in text
    said = html.unescape(re.sub("<[^>]*>", "", text))
    for part in ("Units are dead.", "from step 12", "rank 3", "lower it", "0.25", "health/findings.json", evil):
        assert part in said


def rows_of(folder: JobFolder, steps: int, layers: int, bad: tuple[int, ...] = ()) -> np.ndarray:
    norms = np.random.default_rng(0).lognormal(size=(steps, layers)).astype(np.float32)
    norms[list(bad), 1] = np.nan
    names = [f"layer{number}" for number in range(layers)]
    GradientWriter(folder.gradients_path, 1).append(names, list(zip(range(1, steps + 1), norms.tolist(), strict=True)))
    return norms


def probes_in(folder: JobFolder, attempt: int, steps: list[int], layers: int = 3, activations: int = 2) -> np.ndarray:
    names = Names(
        tuple(f"layer{number}" for number in range(layers)), tuple(f"act{number}" for number in range(activations))
    )
    random = np.random.default_rng(steps[0])
    records = np.zeros(len(steps), dtype=record_type(names))
    for name in records.dtype.names or ():
        shape = records[name].shape
        records[name] = random.integers(0, 60_000, shape) if name == "histograms" else random.normal(size=shape)
    records["step"], records["statistics"][:, 3] = steps, np.nan
    packed = [base64.b64encode(record.tobytes()).decode() for record in records]
    ProbeWriter(folder.probes_path, attempt).append(names.layers, names.activations, packed)
    return records


@pytest.mark.parametrize("activations", [2, 0])
def test_statistics_come_back_bit_for_bit(activations: int, tmp_path: Path) -> None:
    source, target = JobFolder.at(tmp_path / "a"), JobFolder.at(tmp_path / "b")
    norms = rows_of(source, 100, 3, bad=(50,))
    written = probes_in(source, 1, [1, 2, 5, 10, 90], activations=activations)
    path = tmp_path / "statistics.npz"
    statistics_file.write(path, source)
    statistics_file.restore(path, target)
    matrix = target.gradient_matrix()
    assert matrix.layers == ("layer0", "layer1", "layer2")
    assert matrix.steps.tolist() == list(range(1, 101))
    np.testing.assert_array_equal(matrix.norms, norms)
    found = read_records(target.probes_path)
    assert found is not None
    assert found[0].activations == ("act0", "act1")[:activations]
    assert found[1].tobytes() == written.tobytes()
    with np.load(path, allow_pickle=False) as file:  # what the docs promise
        assert file["probes/weight_norms"].shape == (5, 3)
        assert file["probes/histograms"].shape == (5, 3, 48)
        assert (file["norms/measured"], file["probes/measured"]) == (100, 5)


def test_statistics_are_thinned_to_their_bound(tmp_path: Path) -> None:
    """The first rows, those that are not finite and the last stay."""
    folder = JobFolder.at(tmp_path / "a")
    rows_of(folder, 5000, 20, bad=(3333, 3334))
    probes_in(folder, 1, list(range(1, 1001)))
    path = tmp_path / "statistics.npz"
    statistics_file.write(path, folder, most_bytes=100_000)
    with np.load(path) as file:
        kept = file["norms/steps"]
        assert file["norms/norms"].nbytes + kept.nbytes <= 100_000
        assert len(kept) >= 900
        assert set(range(1, 33)) | {3334, 3335, 5000} <= set(kept.tolist())
        assert np.diff(kept).max() <= 8
        np.testing.assert_array_equal(file["norms/norms"][-1], folder.gradient_matrix(5000, 5000).norms[0])
        assert sum(file[name].nbytes for name in file if name.startswith("probes/") and file[name].ndim > 1) <= 100_000
        steps = file["probes/steps"].tolist()
    assert steps[:3] == [1, 2, 3]
    assert steps[-1] == 1000
    assert len(steps) > 150


def test_rows_are_chosen_before_they_are_read(tmp_path: Path) -> None:
    """Over parts of two attempts; of a step that was done twice the later row counts."""
    folder = JobFolder.at(tmp_path)
    first, second = probes_in(folder, 1, [1, 2, 3, 4]), probes_in(folder, 2, [4, 5, 6])
    rows, size = count_records(folder.probes_path)
    assert (rows, size) == (7, first.dtype.itemsize)
    found = read_records(folder.probes_path, np.array([0, 3, 4, 6]))
    assert found is not None
    assert found[1].tobytes() == np.concatenate([first[:1], second[[0, 2]]]).tobytes()
    with (folder.probes_path / "attempt-0002-part-000000.rows").open("ab") as stream:
        stream.write(b"half of one")
    assert count_records(folder.probes_path)[0] == 7
    assert count_records(tmp_path / "nothing") == (0, 0)


def test_what_is_no_file_of_statistics_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "statistics.npz"
    statistics_file.write(path, JobFolder.at(tmp_path))
    whole = path.read_bytes()
    statistics_file.restore(path, JobFolder.at(tmp_path / "b"))  # of a run that has measured nothing yet
    for content in (b"", b"text", whole[:-30]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"statistics\.npz"):
            statistics_file.restore(path, JobFolder.at(tmp_path / "b"))
    np.savez(path, format=np.int64(9))
    with pytest.raises(ValueError, match="format 9"):
        statistics_file.restore(path, JobFolder.at(tmp_path / "b"))


class FailingClient:
    """Takes what MLflow's client takes; ``fails`` are the numbers of calls that fail, counted from 0."""

    def __init__(self, *fails: int) -> None:
        self.fails, self.calls = set(fails), 0
        self.taken: list[str] = []
        self.tags: dict[str, str] = {}

    def log_batch(self, run_id: str, tags: Any) -> None:
        self._call("tags")
        self.tags |= {tag.key: tag.value for tag in tags}

    def log_artifact(self, run_id: str, path: str, target: str) -> None:
        self._call(f"{target}/{Path(path).name}")

    def _call(self, what: str) -> None:
        self.calls += 1
        if self.calls - 1 in self.fails:
            raise ConnectionError("away for a moment")
        self.taken.append(what)


@pytest.mark.parametrize("fails", range(5))
def test_each_file_is_sent_once_whatever_fails(fails: int, tmp_path: Path) -> None:
    """By a sender that goes on, and by one that was started again. Would catch what is remembered before it is taken."""
    folder = JobFolder.at(tmp_path)
    folder.create("{}")
    rows_of(folder, 30, 2)
    health = {"verdict": "warning", "sentence": "so", "findings": [finding("plateau")]}
    client: Any = FailingClient(fails)
    state: dict[str, Any] = {}

    def sender() -> HealthSender:
        return HealthSender("job", folder, state, lambda: None)

    one = sender()
    with pytest.raises(ConnectionError):
        one.send(client, "run", health, final=True)
    for again in (one, sender(), sender()):
        again.send(client, "run", health)
        again.send(client, "run", health, final=True)
    files = ["health/job.json", "health/findings.json", "health/report.html"]
    assert [each for each in client.taken if each != "health/statistics.npz"] == ["tags", *files]
    assert "health/statistics.npz" in client.taken
    assert client.tags["chainrule.findings"] == "plateau"
    sender().send(client, "run", {"verdict": "healthy", "sentence": "well", "findings": []}, final=True)
    assert client.tags["chainrule.findings"] == ""
    assert client.taken[-3:] == ["tags", *files[1:]]


def test_statistics_of_a_long_job_are_sent_seldom() -> None:
    began, week = 1_000.0, 7 * 86_400
    times = [next_statistics(began, None)]
    while times[-1] < began + week:
        times.append(next_statistics(began, times[-1]))
    assert times[:2] == [began + 60, began + 75]
    assert len(times) <= 45
