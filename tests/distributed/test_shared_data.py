"""Real photographs and X-rays, where they lie beside the project: they are read, accepted, and a network learns from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.toys import Memory, context_in
from workers.membership import Alone
from workers.reports import ReasonCode
from workers.sources.inspect import inspect_data
from workers.spec import parse_spec
from workers.train import train

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
    context = context_in(tmp_path, Memory(), Alone(0, 1))
    outcome = train(spec, context)
    assert outcome.code is ReasonCode.COMPLETED
    assert outcome.detail["metrics"]["eval/accuracy"] > accuracy
    assert outcome.detail["health"]["verdict"] == "healthy"


def test_a_language_model_learns(shared_data: Path, tmp_path: Path) -> None:
    """Characters of Shakespeare: after 60 steps well below what their frequencies alone allow (3.3 nats)."""
    spec = parse_spec(
        {
            "name": "tinyshakespeare",
            "task": {
                "kind": "language_model",
                "data": {"source": "text", "path": str(shared_data / "tinyshakespeare" / "input.txt"), "holdout": 0.01},
                "tokenizer": {"kind": "char"},
                "model": {"architecture": "llama", "layers": 2, "heads": 4, "width": 64},
                "block_size": 32,
            },
            "training": {"steps": 60, "batch_size": 16, "clip_norm": 1.0},
            "optimizer": {"learning_rate": 1e-2, "betas": [0.9, 0.99], "weight_decay": 0.1},
            "schedule": {"name": "cosine", "warmup_steps": 10},
            "evaluation": {"every_steps": 60},
        }
    )
    assert inspect_data(spec) == []
    context = context_in(tmp_path, Memory(), Alone(0, 1))
    outcome = train(spec, context)
    assert outcome.detail["metrics"]["eval/loss"] < 2.9
