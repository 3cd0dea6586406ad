"""The shared data sets are healthy: nothing warns, and the flaws that they are known to have are told as they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from workers.spec import parse_spec

pytestmark = [pytest.mark.distributed, pytest.mark.shared_data]

PNEUMONIA = {
    "train_images": "train_images", "train_labels": "train_labels", "evaluation_images": "val_images",
    "evaluation_labels": "val_labels", "test_images": "test_images", "test_labels": "test_labels",
}  # fmt: skip


def looked_at(task: dict[str, Any]) -> dict[str, Any]:
    """As the controller asks, in a process of its own."""
    request = parse_spec({"name": "x", "task": task}).model_dump_json().encode()
    command = [sys.executable, "-m", "workers.data_checks"]
    run = subprocess.run(command, input=request, capture_output=True, timeout=60, check=True, env=os.environ)
    assert run.stderr == b""
    report: dict[str, Any] = json.loads(run.stdout)
    assert (report["problem"], report["unchecked"]) == (None, None)
    return report


def images(path: Path, **names: str) -> dict[str, Any]:
    return {"kind": "image_classification", "data": {"source": "npz", "path": str(path), **names}}


def test_images(shared_data: Path) -> None:
    report = looked_at(images(shared_data / "fashion-mnist/fashion-mnist-12k-2k.npz"))
    assert report["findings"] == []
    assert report["summary"]["samples"] == {"training": 12_000, "evaluation": 2_000}
    assert set(report["summary"]["class_counts"]["training"].values()) == {1200}


def test_x_rays_have_the_flaws_that_their_readme_names(shared_data: Path) -> None:
    report = looked_at(images(shared_data / "medical/pneumoniamnist-balanced.npz", **PNEUMONIA))
    found = {finding["code"]: finding for finding in report["findings"]}
    assert {finding["severity"] for finding in report["findings"]} == {"note"}
    assert set(found) == {"train_evaluation_overlap", "duplicate_samples"}
    assert found["train_evaluation_overlap"]["evidence"]["shared"] == 3
    assert found["train_evaluation_overlap"]["evidence"]["part"] == "evaluation", "no test image occurs in training"
    assert found["duplicate_samples"]["evidence"]["repeated"] == 5


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_text(shared_data: Path, tokenizer: str) -> None:
    data = {"source": "text", "path": str(shared_data / "tinyshakespeare/input.txt")}
    report = looked_at({"kind": "language_model", "data": data, "tokenizer": {"kind": tokenizer}})
    assert report["findings"] == []
    assert sum(report["summary"]["characters"].values()) == 1_115_394
    assert report["summary"]["distinct_characters"] == 65


def test_proteins(shared_data: Path) -> None:
    folder = shared_data / "proteins"
    data = {"path": str(folder / "train"), "clusters": str(folder / "train.csv")}
    report = looked_at({"kind": "protein_structure", "data": data})
    assert report["findings"] == []
    assert sum(report["summary"]["chains"].values()) == 30
    assert sum(report["summary"]["residues"].values()) == 3_961
