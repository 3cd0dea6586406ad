"""One worker through the loop: what it reports, when it stops, what it refuses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from upath import UPath

from tests.distributed.toys import CLASSES, Memory, Points, Result, Toy, job, train_toy
from workers import checkpoints
from workers.batches import Plan
from workers.checkpoint_folders import MANIFEST, Manifest, key_of
from workers.recording import NONFINITE_LIMIT
from workers.reports import ReasonCode
from workers.tasks.base import BadDataError

pytestmark = pytest.mark.distributed

EVERY_STEP = {
    "train/loss",
    "train/learning_rate",
    "train/epoch",
    "train/step_seconds",
    "train/data_wait_seconds",
    "train/samples_per_second",
    "gradient/norm",
    "gradient/norm_clipped",
    "gradient/clipped",
    "gradient/largest_layer_norm",
    "gradient/smallest_layer_norm",
    "gradient/first_to_last_ratio",
    "gradient/nonfinite_layers",
}


def train(folder: Path, toy: Toy | None = None, **parts: Any) -> Result:
    return train_toy(0, 1, toy or Toy(), job(**parts), folder)


def test_every_step_is_reported(tmp_path: Path) -> None:
    result = train(tmp_path, training={"epochs": 3, "batch_size": 12, "clip_norm": 0.4})
    memory = result.memory
    assert sorted(memory.rows) == list(range(1, 16))
    assert all(row.keys() >= EVERY_STEP for row in memory.rows.values())
    assert all(math.isfinite(value) for row in memory.rows.values() for value in row.values())
    assert [step for step, row in sorted(memory.rows.items()) if "eval/loss" in row] == [5, 10, 15]
    assert memory.series("train/epoch") == pytest.approx([step / 5 for step in range(1, 16)])
    for row in memory.rows.values():
        assert row["gradient/norm_clipped"] == pytest.approx(min(row["gradient/norm"], 0.4), rel=1e-5)
        assert row["gradient/clipped"] == float(row["gradient/norm"] > 0.4)
    assert {0.0, 1.0} >= set(memory.series("gradient/clipped")) >= {1.0}
    last = memory.progressed[-1]
    assert (last.step, last.steps, last.eta_seconds) == (15, 15, 0.0)


def test_gradient_norms_by_layer_are_those_of_the_step(tmp_path: Path) -> None:
    """The first step's, computed a second time with nothing but torch. Catches a scale of sums, ranks or microbatches."""
    memory = train(tmp_path, training={"epochs": 1, "batch_size": 50, "accumulate": 3}).memory
    assert memory.layers == ("0", "2", "4")
    assert sorted(memory.norms) == [1]
    data = Points(50, seed=1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, CLASSES))
    loss = nn.functional.cross_entropy(model(data.points), data.labels)
    loss.backward()
    expected = [
        math.hypot(*(float(p.grad.norm()) for p in layer.parameters() if p.grad is not None))
        for layer in model
        if isinstance(layer, nn.Linear)
    ]
    assert memory.norms[1] == pytest.approx(expected, rel=1e-5)
    assert memory.rows[1]["train/loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert memory.rows[1]["gradient/norm"] == pytest.approx(math.hypot(*expected), rel=1e-5)


def test_fewer_gradient_rows_when_asked(tmp_path: Path) -> None:
    memory = train(tmp_path, gradients={"every_steps": 4}).memory
    assert sorted(memory.norms) == [1, 4, 8, 12]
    assert len(memory.series("gradient/norm")) == 15


def test_events_tell_the_story(tmp_path: Path) -> None:
    result = train(tmp_path, checkpoint={"every_steps": 6, "keep_last": 9})
    memory = result.memory
    (started,) = memory.found("training.started")
    assert started["steps"] == 15
    assert started["steps_per_epoch"] == 5
    assert (started["train_samples"], started["evaluation_samples"]) == (50, 23)
    assert (started["world_size"], started["threads"], started["resumed_from"]) == (1, 1, None)
    assert [event["step"] for event in memory.found("evaluation")] == [5, 10, 15]
    saved = memory.found("checkpoint.saved")
    assert [event["step"] for event in saved] == [6, 12, 15]
    for event in saved:
        files = [file for file in Path(event["path"]).iterdir() if file.name != MANIFEST]
        assert event["bytes"] == sum(file.stat().st_size for file in files)
    (finished,) = memory.found("training.finished")
    assert finished["parameters_sha256"] == result.outcome.detail["parameters_sha256"]
    assert result.outcome.detail["samples_seen"] == 150
    assert result.outcome.code is ReasonCode.COMPLETED
    assert result.outcome.detail["health"]["verdict"] == "unknown"  # 15 steps say nothing
    assert (tmp_path / "model" / "model.safetensors").exists()


def test_a_damaged_checkpoint_is_told_and_an_older_one_taken(tmp_path: Path) -> None:
    first = train(tmp_path, checkpoint={"every_steps": 6, "keep_last": 9})
    newest = Path(first.memory.found("checkpoint.saved")[-1]["path"])
    (newest / "state.json").write_bytes((newest / "state.json").read_bytes()[:-1])
    again = train(tmp_path, checkpoint={"every_steps": 6, "keep_last": 9})
    (damaged,) = again.memory.found("checkpoint.damaged")
    assert damaged["path"] == str(newest)
    assert again.memory.found("training.resumed") == [{"step": 12}]
    assert not newest.exists()
    assert again.outcome.detail["parameters_sha256"] == first.outcome.detail["parameters_sha256"]
    anew = UPath(again.memory.found("checkpoint.saved")[-1]["path"])
    assert isinstance(checkpoints.verify(anew), Manifest)


def test_it_learns(tmp_path: Path) -> None:
    result = train(
        tmp_path,
        Toy(samples=400, evaluation_samples=200),
        training={"epochs": 15, "batch_size": 20},
        optimizer={"name": "adamw", "learning_rate": 0.01},
        schedule={"name": "cosine", "warmup_steps": 10},
    )
    losses = result.memory.series("train/loss")
    assert sum(losses[-10:]) < 0.2 * sum(losses[:10])
    assert result.outcome.detail["metrics"]["eval/accuracy"] > 0.9
    assert result.outcome.detail["health"]["verdict"] == "healthy"
    assert [found["verdict"] for found in result.memory.found("health.verdict")][-1] == "healthy"
    assert [raised for raised in result.memory.found("finding.raised") if raised["finding"]["severity"] != "note"] == []


def test_bf16_trains_with_weights_in_fp32(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"optimizer": {"name": "adamw", "learning_rate": 0.01}}
    toy = Toy(samples=200, normalization=True)
    bf16 = train(tmp_path / "a", toy, training={"epochs": 10, "batch_size": 20, "precision": "bf16"}, **settings)
    fp32 = train(tmp_path / "b", toy, training={"epochs": 10, "batch_size": 20}, **settings)
    losses, exact = bf16.memory.series("train/loss"), fp32.memory.series("train/loss")
    assert losses[-1] < 0.5 * losses[0]
    assert losses[:5] == pytest.approx(exact[:5], rel=0.05)
    assert losses != exact  # autocast was on
    newest, _ = checkpoints.newest(tmp_path / "a" / "checkpoints")
    assert newest is not None
    weights = FileSystemReader(str(newest.path)).read_metadata().state_dict_metadata
    assert {
        meta.properties.dtype
        for name, meta in weights.items()
        if isinstance(meta, TensorStorageMetadata) and name.endswith(("weight", "bias"))
    } == {torch.float32}


def test_early_stopping_keeps_the_best_checkpoint(tmp_path: Path) -> None:
    result = train(
        tmp_path,
        Toy(untaught=True),
        training={"epochs": 40, "batch_size": 12},
        optimizer={"name": "adamw", "learning_rate": 0.03},
        evaluation={"every_steps": 3, "early_stopping": {"patience": 4}},
        checkpoint={"every_steps": 3, "keep_last": 1, "keep_best": 1},
    )
    assert result.outcome.code is ReasonCode.EARLY_STOPPED
    losses = result.memory.series("eval/loss")
    best = losses.index(min(losses))
    assert len(losses) == best + 1 + 4  # patience
    kept = sorted(filter(None, (key_of(path.name) for path in (tmp_path / "checkpoints").iterdir())))
    assert [key.step for key in kept] == [(best + 1) * 3, len(losses) * 3]


@pytest.mark.parametrize(
    ("mode", "min_delta", "expected"), [("max", 0.0, "completed"), ("min", 1000.0, "early_stopped")]
)
def test_early_stopping_reads_mode_and_min_delta(tmp_path: Path, mode: str, min_delta: float, expected: str) -> None:
    """A rising loss is an improvement when larger is better; small improvements count for nothing below min_delta."""
    settings: dict[str, Any] = {
        "every_steps": 3,
        "early_stopping": {"patience": 2, "min_delta": min_delta},
        "mode": mode,
    }
    result = train(
        tmp_path,
        Toy(untaught=mode == "max"),
        training={"epochs": 6, "batch_size": 12},
        optimizer={"name": "adamw", "learning_rate": 0.03},
        evaluation=settings,
    )
    assert result.outcome.code == expected


def test_a_loss_that_stays_nan_ends_the_run_and_no_such_weights_are_saved(tmp_path: Path) -> None:
    result = train(
        tmp_path,
        Toy(broken_loss_from=8),
        training={"epochs": 1000, "batch_size": 12},
        checkpoint={"every_steps": 2},
        evaluation={"every_steps": 10_000},
    )
    assert result.outcome.code is ReasonCode.NONFINITE
    assert result.outcome.detail["steps"] >= 7 + NONFINITE_LIMIT
    newest, _ = checkpoints.newest(tmp_path / "checkpoints")
    assert newest is not None
    assert newest.step == 6
    assert result.memory.found("checkpoint.skipped")[0]["step"] == 8
    assert not (tmp_path / "model").exists()
    verdict = result.outcome.detail["health"]
    assert verdict["verdict"] == "critical"
    assert verdict["findings"][0]["first_bad_step"] == 8
    assert all(math.isnan(loss) for loss in result.memory.series("train/loss")[7:])


def test_more_than_there_is(tmp_path: Path) -> None:
    with pytest.raises(BadDataError, match=r"training\.batch_size: 51 is larger than the 50 training samples"):
        train(tmp_path, training={"epochs": 1, "batch_size": 51})
    assert train(tmp_path, training={"epochs": 1, "batch_size": 50}).outcome.code is ReasonCode.COMPLETED


def test_nothing_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(BadDataError, match="no training samples"):
        train(tmp_path, Toy(samples=0))


def test_nothing_to_evaluate_on(tmp_path: Path) -> None:
    result = train(tmp_path, Toy(evaluation_samples=0))
    assert result.outcome.code is ReasonCode.COMPLETED
    assert not result.memory.found("evaluation")


REGRESSION = {"kind": "tabular", "objective": "regression", "data": {"source": "csv", "path": "x", "target": "y"}}


def test_an_unknown_metric_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadDataError, match=r"evaluation\.best.*eval/loss, eval/accuracy"):
        train(tmp_path, task=REGRESSION, evaluation={"best": "eval/mse"})  # which the toy does not measure


def test_what_was_measured_before_an_exception_is_not_lost(tmp_path: Path) -> None:
    bad = next(step for step in range(5) if 7 in Plan(50, 12, 0, 5).step_indices(step))
    memory = Memory()
    with pytest.raises(BadDataError, match="sample 7 cannot be read"):
        train_toy(0, 1, Toy(bad_sample=7), job(), tmp_path, memory=memory)
    assert sorted(memory.rows) == list(range(1, bad + 1))
