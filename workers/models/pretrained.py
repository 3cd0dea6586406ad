"""Image classifiers of the transformers library, from a configuration, with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from workers.kinds.images import TransformersImageModel
from workers.sources.problems import BadDataError

GIVEN = frozenset({"num_labels", "num_channels", "dtype", "return_dict", "id2label", "label2id"})
SMALL_IMAGE = 64  # pixels; the library's defaults are made for 224 and would shrink these to nothing


def transformers_classifier(spec: TransformersImageModel, image: tuple[int, int, int], classes: int) -> nn.Module:
    """(B, C, H, W) -> (B, classes); ``image`` is (C, H, W). Raises BadDataError for configurations that cannot be built."""
    from transformers import AutoConfig, AutoModelForImageClassification

    settings = {**_defaults(spec.architecture, image), **spec.config}
    known = AutoConfig.for_model(spec.architecture)
    for key in spec.config:
        if key in GIVEN or key not in known.to_dict():
            raise BadDataError(
                f"task.model.config.{key}", f"{spec.architecture} has no such setting, or the data decides it"
            )
    given = {"num_labels": classes, "num_channels": image[0]}
    if hasattr(known, "image_size") and "image_size" not in spec.config:
        given["image_size"] = image[1]
    try:
        config = AutoConfig.for_model(spec.architecture, **settings, **given)
        model = Logits(AutoModelForImageClassification.from_config(config))
        _freeze_what_is_not_used(model, image)
    except Exception as error:  # whatever the library raises for settings that do not go together
        raise BadDataError("task.model.config", f"{spec.architecture} cannot be built so: {error}") from error
    return model


def _freeze_what_is_not_used(model: nn.Module, image: tuple[int, int, int]) -> None:
    """Some architectures carry parameters of other uses (DINOv2's mask token). They would wait for a gradient that never comes.

    One step on two blank images finds them, and settings with which the model does not run. Draws nothing from the generators that
    the weights came from, and leaves no trace in the running statistics.
    """
    kept = {name: value.clone() for name, value in model.named_buffers()}
    with torch.random.fork_rng(devices=[]):
        logits = model(torch.zeros(2, *image))
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise ValueError("its output is no table of logits")
        logits.sum().backward()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None
    for name, value in model.named_buffers():
        value.copy_(kept[name])


def _defaults(architecture: str, image: tuple[int, int, int]) -> Mapping[str, Any]:
    """Settings for small images; what the job says comes on top."""
    size = min(image[1:])
    if size > SMALL_IMAGE:
        return {}
    patch = max(p for p in (1, 2, 4, 8) if (size % p == 0 and size // p >= 4) or p == 1)
    transformer = {
        "patch_size": patch,
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 256,
    }
    convnext = {"patch_size": 2, "num_stages": 3, "hidden_sizes": [32, 64, 128], "depths": [2, 2, 2]}
    table: dict[str, Mapping[str, Any]] = {
        "resnet": {
            "embedding_size": 32,
            "hidden_sizes": [32, 64, 128],
            "depths": [2, 2, 2],
            "layer_type": "basic",
        },
        "vit": transformer,
        "beit": transformer,
        "dinov2": {k: v for k, v in transformer.items() if k != "intermediate_size"},
        "convnext": convnext,
        "convnextv2": convnext,
    }
    return table.get(architecture, {})


class Logits(nn.Module):
    """Gives the logits alone. Parameters keep the names that the library gives them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.network = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(pixel_values=x).logits
        return logits
