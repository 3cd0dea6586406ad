"""Real photographs and X-rays, where they lie beside the project: they are read, accepted, and a network learns from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.toys import Memory
from workers.reports import ReasonCode
from workers.sources.inspect import inspect_data
from workers.spec import parse_spec
from workers.train import RunContext, train

pytestmark = [pytest.mark.distributed, pytest.mark.shared_data]

SETS: dict[str, tuple[dict[str, Any], dict[str, Any], int, float]] = {
    "fashion-mnist": (
        {"path": "fashion-mnist/fashion-mnist-12k-2k.npz"},
        {"architecture": "mlp", "hidden": [128]},
        250,
        0.78,
    ),
    "pneumonia": (
        {
            "path": "medical/pneumoniamnist-balanced.npz",
            "train_images": "train_images",
            "train_labels": "train_labels",
            "evaluation_images": "val_images",
            "evaluation_labels": "val_labels",
        },
        {"architecture": "cnn", "channels": [8, 16]},
        120,
        0.8,
    ),
}


@pytest.mark.parametrize("name", SETS)
def test_a_network_learns(shared_data: Path, tmp_path: Path, name: str) -> None:
    data, model, steps, accuracy = SETS[name]
    spec = parse_spec(
        {
            "name": name,
            "task": {
                "kind": "image_classification",
                "data": {"source": "npz", **data, "path": str(shared_data / data["path"])},
                "model": model,
            },
            "training": {"steps": steps, "batch_size": 64},
            "optimizer": {"learning_rate": 2e-3},
            "evaluation": {"every_steps": steps},
        }
    )
    assert inspect_data(spec) == []
    context = RunContext(
        rank=0,
        world_size=1,
        local_rank=0,
        device=torch.device("cpu"),
        reporter=Memory(),
        checkpoints=str(tmp_path / "checkpoints"),
        model_folder=tmp_path / "model",
        stop_requested=lambda: None,
    )
    outcome = train(spec, context)
    assert outcome.code is ReasonCode.COMPLETED
    assert outcome.detail["metrics"]["eval/accuracy"] > accuracy
    assert outcome.detail["health"]["verdict"] == "healthy"
