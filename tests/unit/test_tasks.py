"""Tasks and their models: shapes, sums, standardisation, export without pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import nn

from workers.export import export_model, load_model
from workers.kinds.images import TransformersArchitecture, TransformersImageModel
from workers.models.pretrained import transformers_classifier
from workers.sources.problems import BadDataError
from workers.spec import JobSpec, parse_spec
from workers.tasks import build_task
from workers.weights import full_state_dict

pytestmark = pytest.mark.unit


def job(task: dict[str, Any]) -> JobSpec:
    return parse_spec({"name": "x", "task": task})


DIGITS = {"kind": "image_classification", "data": {"source": "digits"}}
BREAST_CANCER = {"kind": "tabular", "data": {"source": "breast_cancer"}}


@pytest.mark.parametrize(
    "model",
    [
        {"architecture": "mlp", "hidden": [8], "activation": "tanh", "normalization": "layer", "dropout": 0.1},
        {"architecture": "mlp", "hidden": [], "activation": "selu"},
        {"architecture": "cnn", "channels": [4, 8, 8, 8, 8], "normalization": "none"},
        {"architecture": "resnet"},
        {"architecture": "vit"},
    ],
    ids=str,
)
def test_every_layer_gets_a_gradient(model: dict[str, Any]) -> None:
    torch.manual_seed(0)
    task = build_task(job({**DIGITS, "model": model}).task, 0)
    train = task.datasets().train
    network = task.model()
    loss_sum, count = task.loss(network, train.batch(range(8), seed=0))
    loss_sum.backward()
    assert count.item() == 8
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters() if p.ndim > 1)


def test_loss_is_a_sum() -> None:
    """Would catch a mean, which would weigh ragged batches wrongly."""
    torch.manual_seed(0)
    task = build_task(job(DIGITS).task, 0)
    train, network = task.datasets().train, task.model().eval()
    whole = task.loss(network, train.batch(range(10), seed=0))[0]
    parts = [task.loss(network, train.batch(part, seed=0))[0] for part in (range(7), range(7, 10))]
    torch.testing.assert_close(whole, sum(parts))


def test_pixels_are_standardised_with_the_training_images() -> None:
    datasets = build_task(job(DIGITS).task, 0).datasets()
    pixels = datasets.train.batch(range(len(datasets.train)), seed=0)["pixels"]
    assert pixels.shape == (1437, 1, 8, 8)
    assert abs(pixels.mean().item()) < 1e-4
    assert abs(pixels.std().item() - 1) < 1e-3


def test_regression_metrics_are_in_the_targets_unit(tmp_path: Path) -> None:
    path = tmp_path / "line.csv"
    path.write_text("x,y\n" + "".join(f"{x},{1000 * x}\n" for x in range(50)))
    data = {"source": "csv", "path": str(path), "target": "y"}
    task = build_task(job({"kind": "tabular", "objective": "regression", "data": data}).task, 0)
    evaluation = task.datasets().evaluation
    assert evaluation is not None

    class Zero(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(x), 1)

    sums = task.evaluate(Zero(), evaluation.batch(range(len(evaluation)), seed=0))
    mean_error = (sums["mae"][0] / sums["mae"][1]).item()
    assert 1000 < mean_error < 50_000, "the constant answer is off by thousands, not by standard deviations"


def test_unknown_settings_of_a_library_model_are_named() -> None:
    spec = TransformersImageModel(architecture="resnet", config={"hiden_sizes": [1]})
    with pytest.raises(BadDataError, match=r"task\.model\.config\.hiden_sizes: resnet has no such setting"):
        transformers_classifier(spec, (1, 8, 8), 10)


@pytest.mark.parametrize("architecture", ["convnext", "beit", "dinov2", "mobilenet_v2"])
def test_more_architectures_of_the_library(architecture: str) -> None:
    assert architecture in get_args(TransformersArchitecture)
    spec = TransformersImageModel(architecture=architecture)  # type: ignore[arg-type]
    logits = transformers_classifier(spec, (1, 28, 28), 7)(torch.zeros(2, 1, 28, 28))
    assert logits.shape == (2, 7)


def test_parameters_of_other_uses_do_not_wait_for_a_gradient() -> None:
    """DINOv2's mask token gets none in classification; two workers would wait for it for ever."""
    network = transformers_classifier(TransformersImageModel(architecture="dinov2"), (1, 28, 28), 7)
    frozen = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
    assert any("mask_token" in name for name in frozen)
    network(torch.randn(2, 1, 28, 28)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters() if parameter.requires_grad)


def test_settings_with_which_a_model_does_not_run_are_refused() -> None:
    for config in ({"image_size": 16}, {"patch_size": 9}, {"hidden_size": "x"}):
        with pytest.raises(BadDataError, match=r"task\.model\.config"):
            transformers_classifier(TransformersImageModel(architecture="vit", config=config), (1, 8, 8), 10)  # type: ignore[arg-type]


@pytest.mark.parametrize("task_spec", [DIGITS, BREAST_CANCER], ids=["digits", "breast_cancer"])
def test_an_exported_model_answers_like_the_trained_one(tmp_path: Path, task_spec: dict[str, Any]) -> None:
    torch.manual_seed(1)
    spec = job(task_spec)
    task = build_task(spec.task, 0)
    evaluation = task.datasets().evaluation
    assert evaluation is not None
    network = task.model().eval()
    export_model(tmp_path / "model", full_state_dict(network), task, spec)
    export_model(tmp_path / "model", full_state_dict(network), task, spec)  # again, over the first

    from workers.kinds.image_data import DigitsData
    from workers.kinds.tables import BreastCancerData
    from workers.sources import arrays, tables

    raw: Any
    if task_spec is DIGITS:
        raw = arrays.read_digits(DigitsData(source="digits")).evaluation.pixels
    else:
        raw = tables.read_breast_cancer(BreastCancerData(source="breast_cancer")).evaluation.features
    batch = evaluation.batch(range(len(evaluation)), seed=0)
    with torch.no_grad():
        expected = network(batch.get("pixels", batch.get("features"))).softmax(1).numpy()
    given = raw.copy()
    answers = load_model(tmp_path / "model").predict(raw)
    assert (raw == given).all(), "the caller's array is as it was"
    np.testing.assert_allclose(answers["probabilities"], expected, rtol=1e-4, atol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"], "no half-made folder stays"
    with pytest.raises(BadDataError, match="does not fit"):
        load_model(tmp_path / "model").predict(np.zeros((2, 5)))


def test_an_exported_model_holds_no_pickle(tmp_path: Path) -> None:
    spec = job(DIGITS)
    task = build_task(spec.task, 0)
    task.datasets()
    export_model(tmp_path / "model", full_state_dict(task.model()), task, spec)
    for path in (tmp_path / "model").iterdir():
        assert path.suffix in {".safetensors", ".json", ".yaml", ".txt", ""}
        assert not path.read_bytes().startswith((b"\x80", b"PK"))
    assert json.loads((tmp_path / "model" / "model.json").read_text())["format"] == 1
