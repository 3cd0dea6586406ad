"""Classes of very different sizes are weighed in the loss, by all ranks from the same step on, once there is consent to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.distributed.processes import Processes
from tests.distributed.test_quarantine import from_file
from workers.jobfolder import JobFolder
from workers.kinds.image_data import DigitsData
from workers.repair.class_weights import MOST_TIMES, inverse_frequency
from workers.replay import replay
from workers.replay_text import shown
from workers.sources.arrays import read_digits
from workers.spec import JobSpec, parse_spec

pytestmark = pytest.mark.distributed

RARE = (3, 8)
KEPT = 4  # samples of each of these


def rare_digits(folder: Path) -> Path:
    """scikit-learn's, of which two are hardly there in training: one in 35 of the others."""
    images = read_digits(DigitsData(source="digits"))
    labels = images.train.labels
    few = [row for label in RARE for row in np.flatnonzero(labels == label)[KEPT:]]
    kept = np.setdiff1d(np.arange(len(labels)), few)
    parts = {"train": (images.train.pixels[kept], labels[kept])}
    parts["evaluation"] = (images.evaluation.pixels, images.evaluation.labels)
    arrays: dict[str, Any] = {}
    for name, (pixels, of) in parts.items():
        arrays[f"{name}_images"], arrays[f"{name}_labels"] = (pixels / 16).astype(np.float32), of
    np.savez(folder / "rare.npz", **arrays)
    return folder / "rare.npz"


def spec(file: Path, allow: Sequence[str], workers: int = 1, strategy: str = "ddp", **parts: Any) -> JobSpec:
    names = {f"{part}_{what}": f"{part}_{what}" for part in ("train", "evaluation") for what in ("images", "labels")}
    return parse_spec({
        "name": "rare",
        "task": {
            "kind": "image_classification", "data": {"source": "npz", "path": str(file), **names},
            "model": {"architecture": "mlp", "hidden": [32]}, **parts.pop("task", {}),
        },
        "training": {"steps": 100, "batch_size": 96},
        "optimizer": {"name": "sgd", "momentum": 0.9, "learning_rate": 0.02},
        "evaluation": {"every_steps": 50},
        "checkpoint": {"every_steps": 20, "keep_last": 50},
        "workers": {"count": workers, "strategy": strategy, "threads": 1},
        "health": {"mode": "repair", "allow": list(allow)} if allow else {"mode": "advise"},
        **parts,
    })  # fmt: skip


def acts(path: Path, type: str = "repair.done") -> list[Mapping[str, Any]]:
    return [event["data"]["repair"]["act"] for event in JobFolder.at(path).events(1) if event["type"] == type]


def f1(path: Path) -> float:
    return float(JobFolder.at(path).series(["eval/f1"])["eval/f1"].values[-1])


def test_weights_are_inverse_to_frequency_within_bounds() -> None:
    counts = [400, 100, 4, 0, 400]
    weights = inverse_frequency(counts)
    assert np.average(weights, weights=counts) == pytest.approx(1)
    assert weights[1] / weights[0] == pytest.approx(4)
    assert weights[2] / weights[0] == pytest.approx(MOST_TIMES)
    assert weights[3] == 0


@pytest.mark.parametrize(("workers", "strategy"), [(1, "ddp"), (2, "ddp"), (2, "fsdp")])
def test_rare_classes_are_learnt(processes: Processes, tmp_path: Path, workers: int, strategy: str) -> None:
    file = rare_digits(tmp_path)
    from_file(0, 1, spec(file, ["live"]), tmp_path / "plain")
    processes.run(workers, tmp_path, from_file, spec(file, ["live", "data"], workers, strategy), tmp_path / "weighed")
    (act,) = acts(tmp_path / "weighed")
    assert (act["code"], act["consent"], act["probation"]) == ("class_imbalance", "data", 0)
    assert f1(tmp_path / "plain") < 0.8
    assert f1(tmp_path / "weighed") > f1(tmp_path / "plain") + 0.05


@pytest.mark.parametrize(("workers", "strategy"), [(1, "ddp"), (2, "fsdp")])
def test_a_job_goes_on_with_them_and_its_steps_are_done_again(
    processes: Processes, tmp_path: Path, workers: int, strategy: str
) -> None:
    job_spec = spec(rare_digits(tmp_path), ["data"], workers, strategy)
    whole = processes.run(workers, tmp_path, from_file, job_spec, tmp_path / "whole")
    processes.run(workers, tmp_path, from_file, job_spec, tmp_path / "two", (), 50)
    ends = processes.run(workers, tmp_path, from_file, job_spec, tmp_path / "two")
    assert ends[0].detail["parameters_sha256"] == whole[0].detail["parameters_sha256"]
    assert len(acts(tmp_path / "two")) == 1
    for step in (2, 3, 90):  # before it, behind it, and behind a checkpoint that has it
        found = replay(JobFolder.at(tmp_path / "two"), step)
        assert found["compared"]["same"] is True, shown(found)


def test_undone_it_counts_samples_alike_again(tmp_path: Path) -> None:
    wish = {"kind": "undo", "by": "key test", "number": 1}
    from_file(0, 1, spec(rare_digits(tmp_path), ["data"]), tmp_path / "job", [wish])
    assert len(acts(tmp_path / "job")) == 1, "what was undone is not done again"
    (undone,) = acts(tmp_path / "job", "repair.undone")
    assert undone["class_weights"]
    assert f1(tmp_path / "job") < 0.8
    for step in (4, 30):
        assert replay(JobFolder.at(tmp_path / "job"), step)["compared"]["same"] is True


def test_weights_that_the_job_has_given_are_its_own(tmp_path: Path) -> None:
    """Also those that make the frequent classes count for still more: what was meant only a person knows."""
    wrong = [100.0, *[1.0] * 9]
    from_file(0, 1, spec(rare_digits(tmp_path), ["data"], task={"class_weights": wrong}), tmp_path / "job")
    assert acts(tmp_path / "job") == []


def test_classes_of_one_size_are_left_as_they_are(tmp_path: Path) -> None:
    for name, allow in (("plain", []), ("allowed", ["live", "data"])):
        from_file(0, 1, spec(tmp_path, allow, task={"data": {"source": "digits"}}), tmp_path / name)
    assert acts(tmp_path / "allowed") == []
    assert f1(tmp_path / "plain") == f1(tmp_path / "allowed")
