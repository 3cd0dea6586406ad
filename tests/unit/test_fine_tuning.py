"""Fine-tuning an image model from a local checkpoint: weights, preprocessing, what is frozen, export, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from workers.export import export_model, load_model
from workers.problems import SpecError
from workers.sources.inspect import inspect_data
from workers.sources.problems import BadDataError
from workers.spec import JobSpec, data_paths, parse_spec
from workers.tasks import build_task
from workers.tasks.image_classification import ImageClassification
from workers.weights import full_state_dict

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ViT of five classes for images of 16 x 16 in colour, as save_pretrained writes it."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(3)
    config = ViTConfig(
        image_size=16, patch_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=5
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder)
    processor = ViTImageProcessor(
        size={"height": 16, "width": 16}, image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.5, 0.25]
    )
    processor.save_pretrained(folder)
    return folder


def job(checkpoint: Path, **model: Any) -> JobSpec:
    model = {"architecture": "vit", "checkpoint": str(checkpoint), **model}
    return parse_spec(
        {"name": "x", "task": {"kind": "image_classification", "data": {"source": "digits"}, "model": model}}
    )


def built(spec: JobSpec) -> tuple[ImageClassification, torch.nn.Module]:
    task = build_task(spec.task, 0)
    assert isinstance(task, ImageClassification)
    task.datasets()
    torch.manual_seed(0)
    return task, task.model()


def test_the_weights_are_the_checkpoints_and_the_last_layer_is_new(checkpoint: Path) -> None:
    spec = job(checkpoint)
    assert inspect_data(spec) == []
    assert ("task.model.checkpoint", str(checkpoint)) in data_paths(spec)
    _, network = built(spec)
    from transformers import ViTForImageClassification

    saved = ViTForImageClassification.from_pretrained(checkpoint).state_dict()
    now = network.state_dict()
    assert now["network.classifier.weight"].shape == (10, 16)
    for name, value in saved.items():
        if not name.startswith("classifier"):
            torch.testing.assert_close(now[f"network.{name}"], value, rtol=0, atol=0)


def test_grey_images_become_what_the_checkpoint_takes(checkpoint: Path) -> None:
    """Its own mean and deviation of each channel, and its size."""
    task, network = built(job(checkpoint))
    batch = task.datasets().train.batch([0, 1], seed=0)
    assert batch["pixels"].shape == (2, 3, 8, 8)
    grey = batch["pixels"][:, 0] * 0.5 + 0.1
    assert grey.min() >= 0
    assert grey.max() <= 1
    torch.testing.assert_close(batch["pixels"][:, 2] * 0.25 + 0.3, grey)
    assert network(batch["pixels"]).shape == (2, 10)


def test_a_frozen_backbone_stays(checkpoint: Path) -> None:
    task, network = built(job(checkpoint, freeze_backbone=True))
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert trained == ["network.classifier.weight", "network.classifier.bias"]
    network.train()
    batch = task.datasets().train.batch(range(8), seed=0)
    task.loss(network, batch)[0].backward()
    assert network.get_parameter("network.classifier.weight").grad is not None
    assert not any(module.training for module in network.get_submodule("network.vit").modules()), "dropout would go on"


def test_the_exported_model_needs_the_checkpoint_no_more(checkpoint: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    spec = job(copy)
    task, network = built(spec)
    export_model(tmp_path / "model", full_state_dict(network), task, spec)
    shutil.rmtree(copy)
    raw = np.random.default_rng(0).integers(0, 17, (3, 8, 8)).astype(np.float32)
    answers = load_model(tmp_path / "model").predict(raw)
    facts = task.facts()
    from workers.tasks.image_classification import standardised

    with torch.no_grad():
        expected = network.eval()(standardised(raw[..., np.newaxis], facts)).softmax(1).numpy()
    np.testing.assert_allclose(answers["probabilities"], expected, rtol=1e-4, atol=1e-6)


def test_what_is_no_checkpoint_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    def said(spec: JobSpec) -> str:
        problems = inspect_data(spec)
        assert [problem.path for problem in problems] == ["task.model.checkpoint"]
        return problems[0].message

    assert "there is no folder" in said(job(tmp_path / "none"))
    assert "has no config.json" in said(job(tmp_path))
    assert "is of architecture 'vit', not 'resnet'" in said(job(checkpoint, architecture="resnet"))
    (tmp_path / "config.json").write_text("{")
    assert "is not JSON" in said(job(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80pickle")
    assert "pickled weights are not read" in said(job(tmp_path))


def test_weights_of_something_else_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    """The library would only warn, and train a model of random weights."""
    from safetensors.torch import save_file

    shutil.copy(checkpoint / "config.json", tmp_path)
    save_file({"other.weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(BadDataError, match="most of its weights are missing"):
        built(job(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(BadDataError, match=r"^task\.model\.checkpoint: .* cannot be used"):
        built(job(tmp_path))


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"checkpoint": "pre trained"}, "must be a folder that begins with / or ./, or a repository"),
        ({"checkpoint": "a/b/c"}, "must be a folder"),
        ({"checkpoint": "./x", "config": {"hidden_size": 8}}, "config does not go with checkpoint"),
        ({"freeze_backbone": True}, "freeze_backbone needs a checkpoint"),
    ],
)
def test_bad_fields(model: dict[str, Any], says: str) -> None:
    task = {"kind": "image_classification", "data": {"source": "digits"}, "model": {"architecture": "vit", **model}}
    with pytest.raises(SpecError, match=says):
        parse_spec({"name": "x", "task": task})
