"""``python -m workers.train`` and ``torchrun -m workers.train``, as a user starts them: no Ray, no MLflow, no service."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.distributed

ROOT = Path(__file__).parents[2]
JOB = """
name: digits on its own
task:
  kind: image_classification
  data: {source: digits}
  model: {architecture: cnn, channels: [8], normalization: batch}
training: {epochs: 2, batch_size: 100, clip_norm: 1.0}
optimizer: {name: adamw, learning_rate: 1e-2}
workers: {count: 1, threads: 1}
"""
PYTHON = [sys.executable]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def start(launcher: list[str], folder: Path, job: str = JOB) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    (folder / "job.yaml").write_text(job)
    command = [*launcher, "-m", "workers.train", str(folder / "job.yaml"), "--output", str(folder / "output")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120, check=False)


def losses(folder: Path) -> list[float]:
    lines = (folder / "output/metrics/attempt-0001.jsonl").read_text().splitlines()
    rows = [(row["step"], row["values"]) for row in map(json.loads, lines)]
    return [values["train/loss"] for _, values in sorted(rows, key=lambda row: row[0]) if "train/loss" in values]


def test_alone_and_under_torchrun_it_trains_the_same(tmp_path: Path) -> None:
    alone, pair = start(PYTHON, tmp_path / "alone"), start(TORCHRUN, tmp_path / "pair")
    for run in (alone, pair):
        assert run.returncode == 0, run.stderr
        assert "completed: all 30 steps done" in run.stdout
    assert alone.stderr == ""  # no warning that a user would have to wonder about
    assert "Warning" not in pair.stderr
    assert len(losses(tmp_path / "alone")) == 30
    np.testing.assert_allclose(losses(tmp_path / "pair"), losses(tmp_path / "alone"), rtol=1e-4)
    written = {path.relative_to(tmp_path / "pair/output").parts[0] for path in (tmp_path / "pair/output").iterdir()}
    assert written >= {"metrics", "gradients", "events", "checkpoints", "model"}


def test_relative_paths_are_those_of_the_job_file(tmp_path: Path) -> None:
    job = JOB.replace("{source: digits}", "{source: npz, path: data/none.npz}")
    run = start(PYTHON, tmp_path, job)
    assert run.returncode == 2
    assert str(tmp_path / "data/none.npz") in run.stderr


def test_what_is_wrong_is_said_in_a_line_each(tmp_path: Path) -> None:
    bad = start(PYTHON, tmp_path, JOB.replace("epochs: 2", "epochs: 0").replace("name: adamw", "name: adamm"))
    assert bad.returncode == 2
    lines = bad.stderr.splitlines()
    assert [line.partition(": ")[2].partition(":")[0] for line in lines] == ["training.epochs", "optimizer.name"]
    large = start(PYTHON, tmp_path, JOB.replace("batch_size: 100", "batch_size: 5000"))
    assert (large.returncode, large.stderr.count("\n")) == (2, 1)
    assert "training.batch_size" in large.stderr
    assert not (tmp_path / "output/checkpoints").exists()


def test_the_data_is_looked_at_first(tmp_path: Path) -> None:
    """Would catch findings that only the service gets to see."""
    job = JOB.replace("{source: digits}", "{source: npz, path: images.npz, classes: 2}")
    pixels, labels = np.random.default_rng(0).integers(0, 256, (200, 8, 8), dtype=np.uint8), np.arange(200) % 2
    np.savez(tmp_path / "images.npz", x_train=pixels, y_train=labels, x_test=pixels[:50], y_test=labels[:50])
    run = start(PYTHON, tmp_path, job)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert lines[0] == "Images: 200 for training, 50 for evaluation; 2 classes; 8 x 8 x 1."
    assert lines[1].startswith("50 of 50 evaluation images (100 %) are in the training part as well")
    (finding,) = json.loads((tmp_path / "output/data.json").read_text())["findings"]
    assert finding["code"] == "train_evaluation_overlap"
    labels[3] = 2
    np.savez(tmp_path / "images.npz", x_train=pixels, y_train=labels, x_test=pixels[:50], y_test=labels[:50])
    run = start(PYTHON, tmp_path, job)
    assert (run.returncode, run.stdout) == (2, "")
    assert "label 2 of row 3 is out of range" in run.stderr
