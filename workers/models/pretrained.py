"""Image classifiers of the transformers library: from a configuration with random weights, or from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.kinds.images import TransformersImageModel
from workers.sources.pretrained import FIELD, Pretrained
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


def fine_tuned_classifier(
    spec: TransformersImageModel, pretrained: Pretrained, image: tuple[int, int, int], classes: int
) -> nn.Module:
    """The checkpoint's weights, with a new last layer where it had other classes. Raises BadDataError for weights that do not fit."""
    from transformers import AutoModelForImageClassification

    assert spec.checkpoint is not None
    config = _configuration(pretrained.config, classes)
    try:
        network, found = AutoModelForImageClassification.from_pretrained(
            pretrained.folder,
            config=config,
            ignore_mismatched_sizes=True,
            use_safetensors=True,  # never a pickle
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
        _must_be_loaded(network, found)
        model = Logits(network, pretrained.size, frozen=spec.freeze_backbone)
        _freeze_what_is_not_used(model, (pretrained.channels, *image[1:]))
    except Exception as error:  # whatever the library raises for files that do not fit together
        raise BadDataError(FIELD, f"{spec.checkpoint} cannot be used: {error}") from error
    return model


def as_fine_tuned(config: Mapping[str, Any], size: tuple[int, int] | None, classes: int) -> nn.Module:
    """The same network without its weights, which come from elsewhere: the checkpoint need not be there any more."""
    from transformers import AutoModelForImageClassification

    return Logits(AutoModelForImageClassification.from_config(_configuration(config, classes)), size)


def _configuration(config: Mapping[str, Any], classes: int) -> Any:
    from transformers import AutoConfig

    known = type(AutoConfig.for_model(config["model_type"]))
    names = {"id2label", "label2id", "num_labels", "dtype", "torch_dtype"}
    return known.from_dict({key: value for key, value in config.items() if key not in names}, num_labels=classes)


def _must_be_loaded(network: nn.Module, found: Mapping[str, Any]) -> None:
    """A checkpoint of something else gives a model of random weights, and a line in a log."""
    new = {*found["missing_keys"], *(entry[0] for entry in found["mismatched_keys"])}
    sizes = {name: value.numel() for name, value in network.named_parameters()}
    backbone = {name for name in sizes if name.startswith(f"{network.base_model_prefix}.")}
    absent = sorted(new & backbone)
    if sum(sizes[name] for name in absent) > 0.5 * sum(sizes[name] for name in backbone):
        raise ValueError(f"most of its weights are missing or of another shape, {absent[0]} for one")


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
    for parameter in model.parameters():  # one that is frozen already has no gradient either
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
    """Gives the logits alone. Parameters keep the names that the library gives them.

    ``size``: height and width to which images are resized before. ``frozen``: all but the classifier stays as it is, batch norm's running
    statistics and dropout included.
    """

    def __init__(self, model: nn.Module, size: tuple[int, int] | None = None, *, frozen: bool = False) -> None:
        super().__init__()
        self.network = model
        self._size, self._frozen = size, frozen
        if frozen:
            if model.base_model is model:
                raise ValueError("freeze_backbone: the library does not say which part of it is the backbone")
            model.base_model.requires_grad_(False)
            self.train()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self._frozen:
            self.network.base_model.eval()  # type: ignore[union-attr]
        return self

    def forward(self, x: Tensor) -> Tensor:
        if self._size is not None and tuple(x.shape[2:]) != self._size:
            x = functional.interpolate(x, self._size, mode="bilinear", antialias=True)
        logits: Tensor = self.network(pixel_values=x).logits
        return logits
