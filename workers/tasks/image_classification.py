"""Images into classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from workers import flops
from workers.kinds.image_data import DigitsData, FolderData, HuggingFaceData, NpzData, ParquetData
from workers.kinds.images import CnnModel, ImageClassificationTask, TransformersImageModel
from workers.kinds.networks import MlpModel
from workers.models import builtin
from workers.sources import arrays, encoded, folders
from workers.sources.pretrained import Pretrained, read_checkpoint
from workers.sources.problems import BadDataError
from workers.tasks import classification, illustrations
from workers.tasks.augmentation import AugmentedImages, augmented, changes
from workers.tasks.base import Batch, Dataset, Datasets, ModelFacts

IN_MEMORY_BYTES = 256 << 20  # sets whose floats are smaller are converted once, not batch by batch
STATISTICS_ROWS = 4096
STATISTICS_FILES = 512  # of a folder, evenly spread, for mean and deviation


class ImageClassification(classification.WeighedByClass):
    def __init__(self, spec: ImageClassificationTask, *, seed: int) -> None:
        self._spec = spec
        self._facts: ModelFacts | None = None
        self._pretrained: Pretrained | None = None
        self._evaluation: Dataset | None = None
        self._test: Dataset | None = None
        self._seen: Mapping[str, Tensor] | None = None  # answers of the newest evaluation

    def datasets(self) -> Datasets:
        train, self._evaluation = self._images()
        self._begin_weighing(self._spec.class_weights, train.labels.numpy(), len(self.facts().class_names))
        augmentation = self._spec.augmentation
        varied = AugmentedImages(train, augmentation) if changes(augmentation) else train
        return Datasets(varied, self._evaluation, self._test)

    def _images(self) -> tuple[LabelledImages, LabelledImages]:
        data = self._spec.data
        if isinstance(data, FolderData):
            return self._of_folder(data)
        if isinstance(data, ParquetData | HuggingFaceData):
            return self._of_columns(data)
        if isinstance(data, DigitsData):
            images = arrays.read_digits(data)
        elif isinstance(data, NpzData):
            images = arrays.read_npz(data)
        else:
            images = arrays.read_idx(data)
        mean, deviation = channel_statistics(images.train.pixels, images.scale)
        self._facts = self._known(images.train.pixels.shape[1:], images.class_names, mean, deviation, images.scale)
        self._test = ArrayImages(images.test, self._facts) if images.test is not None else None
        return ArrayImages(images.train, self._facts), ArrayImages(images.evaluation, self._facts)

    def _of_folder(self, data: FolderData) -> tuple[LabelledImages, LabelledImages]:
        images = folders.read_folder(data)

        def images_of(files: folders.ImageFiles) -> Decoded:
            return Decoded(files.labels, lambda i: folders.decode(files.paths[i], data.image_size, data.channels))

        train, evaluation = images_of(images.train), images_of(images.evaluation)
        facts = self._facts = self._learnt(train, images.class_names)
        return DecodedImages(train, facts), DecodedImages(evaluation, facts)

    def _of_columns(self, data: ParquetData | HuggingFaceData) -> tuple[LabelledImages, LabelledImages]:
        images = encoded.read_parquet(data) if isinstance(data, ParquetData) else encoded.read_huggingface(data)

        def images_of(part: encoded.Encoded) -> Decoded:
            return Decoded(part.labels, lambda i: part.decode(i, data.image_size, data.channels))

        train = images_of(images.train)
        facts = self._facts = self._learnt(train, images.class_names)
        self._test = DecodedImages(images_of(images.test), facts) if images.test is not None else None
        return DecodedImages(train, facts), DecodedImages(images_of(images.evaluation), facts)

    def _learnt(self, train: Decoded, class_names: tuple[str, ...]) -> ModelFacts:
        """Mean and deviation, from a sample of the training images."""
        every = -(-len(train.labels) // STATISTICS_FILES)
        pixels = np.stack([train.decode(index) for index in range(0, len(train.labels), every)])
        mean, deviation = channel_statistics(pixels, 255.0)
        return self._known(pixels.shape[1:], class_names, mean, deviation, 255.0)

    def _known(
        self, shape: Sequence[int], classes: tuple[str, ...], mean: NDArray[Any], deviation: NDArray[Any], scale: float
    ) -> ModelFacts:
        """A checkpoint's own preprocessing goes before the statistics of the training images."""
        height, width, channels = shape
        preprocessing: dict[str, Any] = {"scale": scale, "mean": mean.tolist(), "deviation": deviation.tolist()}
        model = self._spec.model
        if isinstance(model, TransformersImageModel) and model.checkpoint is not None:
            self._pretrained = read_checkpoint(model.checkpoint, model.architecture)
            preprocessing |= of_checkpoint(self._pretrained, channels, preprocessing)
        return ModelFacts((channels, height, width), classes, preprocessing)

    def model(self) -> nn.Module:
        facts, model = self.facts(), self._spec.model
        if self._pretrained is None:
            return build_model(self._spec, facts)
        from workers.models.pretrained import fine_tuned_classifier

        assert isinstance(model, TransformersImageModel)
        channels, height, width = facts.input_shape
        return fine_tuned_classifier(model, self._pretrained, (channels, height, width), len(facts.class_names))

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        pixels, own = augmented(self._spec.augmentation, batch) if "draws" in batch else (batch["pixels"], None)
        logits = model(pixels).float()
        losses, counts = self._losses(logits, batch["labels"])
        if own is not None:  # an image of two has two labels
            other_losses, other_counts = self._losses(logits, batch["other_labels"])
            losses = own * losses + (1 - own) * other_losses
            counts = own * counts + (1 - own) * other_counts
        return losses.sum(), counts.sum()

    def _losses(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        weights = self._weights.to(logits.device) if self._weights is not None else None
        return classification.weighted_loss(logits, labels, weights, self._spec.label_smoothing)

    def flops_per_sample(self, model: nn.Module) -> float:
        return flops.of_passes(model, *self._input_shape())

    def _input_shape(self) -> tuple[int, ...]:
        """(C, H, W) of the pixels that the model gets, which a checkpoint may want of more channels than the images have."""
        _, height, width = self.facts().input_shape
        mean: Any = self.facts().preprocessing["mean"]
        return len(mean), height, width

    def evaluate(self, model: nn.Module, batch: Batch) -> Mapping[str, tuple[Tensor, Tensor]]:
        return self.sums(self.answers(model, batch))

    def answers(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        return classification.answers(model(batch["pixels"]), batch["labels"])

    def sums(self, answers: Mapping[str, Tensor]) -> Mapping[str, tuple[Tensor, Tensor]]:
        return classification.sums(answers)

    def measure(self, answers: Mapping[str, Tensor]) -> Mapping[str, float]:
        self._seen = answers
        return classification.measure(answers)

    def illustrate(self, model: nn.Module, device: torch.device) -> Mapping[str, bytes]:
        """From the answers of the newest evaluation, so that the model need not run again. Nothing before the first one."""
        if self._seen is None or self._evaluation is None:
            return {}
        return illustrations.classification_pictures(self._seen, self._evaluation, self.facts())

    def facts(self) -> ModelFacts:
        assert self._facts is not None, "datasets() comes first"
        return self._facts


def channel_statistics(pixels: NDArray[Any], scale: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation (C,) of (N, H, W, C) pixels in units of ``scale``; the same on every worker."""
    count, total, squares = 0, np.zeros(pixels.shape[-1]), np.zeros(pixels.shape[-1])
    for start in range(0, len(pixels), STATISTICS_ROWS):  # in parts: the sums need eight times the room of the pixels
        part = pixels[start : start + STATISTICS_ROWS].reshape(-1, pixels.shape[-1]).astype(np.float64) / scale
        count, total, squares = count + len(part), total + part.sum(axis=0), squares + np.square(part).sum(axis=0)
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - np.square(mean), 0.0))
    return mean, np.where(deviation > 1e-6, deviation, 1.0)


def of_checkpoint(pretrained: Pretrained, channels: int, known: Mapping[str, Any]) -> dict[str, Any]:
    """Grey images are given to every channel of a network for colours; the other way round would lose what it looks at."""
    if channels not in (1, pretrained.channels):
        raise BadDataError(
            "task.model.checkpoint",
            f"it takes images of {pretrained.channels} channel{'s' * (pretrained.channels > 1)}; the data's have {channels}",
        )
    repeated = pretrained.channels // channels
    mean, deviation = pretrained.mean_and_deviation or (known["mean"] * repeated, known["deviation"] * repeated)
    return {"mean": mean, "deviation": deviation, "size": pretrained.size, "config": dict(pretrained.config)}


def standardised(pixels: NDArray[Any], facts: ModelFacts) -> Tensor:
    """(N, H, W, C) as in the file -> (N, C, H, W) float32, each channel with mean 0 and deviation 1 over the training set.

    Or as a checkpoint wants it, with as many channels as it takes.
    """
    preprocessing: Any = facts.preprocessing
    mean = torch.tensor(preprocessing["mean"], dtype=torch.float32)
    deviation = torch.tensor(preprocessing["deviation"], dtype=torch.float32)
    values = (
        torch.from_numpy(np.ascontiguousarray(pixels)).float().div(preprocessing["scale"])
    )  # not in the caller's array
    return values.sub(mean).div_(deviation).permute(0, 3, 1, 2).contiguous()


class LabelledImages(Dataset, Protocol):
    labels: Tensor  # (N,) of all samples


class ArrayImages:
    """Images in memory."""

    def __init__(self, images: arrays.Images, facts: ModelFacts) -> None:
        self._pixels, self._facts = images.pixels, facts
        self.labels = torch.from_numpy(images.labels)
        small = images.pixels.size * 4 <= IN_MEMORY_BYTES
        self._converted = standardised(images.pixels, facts) if small else None

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Sequence[int], *, seed: int) -> Batch:
        rows = torch.as_tensor(indices, dtype=torch.int64)
        pixels = (
            self._converted[rows]
            if self._converted is not None
            else standardised(self._pixels[list(indices)], self._facts)
        )
        return {"pixels": pixels, "labels": self.labels[rows]}


@dataclass(frozen=True)
class Decoded:
    """Images that are decoded when they are needed: ``decode`` gives (H, W, C) uint8 of one."""

    labels: NDArray[np.int64]
    decode: Callable[[int], NDArray[np.uint8]]


class DecodedImages:
    def __init__(self, images: Decoded, facts: ModelFacts) -> None:
        self._images, self._facts = images, facts
        self.labels = torch.from_numpy(images.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Sequence[int], *, seed: int) -> Batch:
        pixels = np.stack([self._images.decode(index) for index in indices])
        return {"pixels": standardised(pixels, self._facts), "labels": self.labels[list(indices)]}


# --- the model, also without its data ---------------------------------------------------------------------------------


def build_model(spec: ImageClassificationTask, facts: ModelFacts) -> nn.Module:
    channels, height, width = facts.input_shape
    classes = len(facts.class_names)
    if isinstance(spec.model, MlpModel):
        return builtin.mlp(spec.model, channels * height * width, classes)
    if isinstance(spec.model, CnnModel):
        return builtin.cnn(spec.model, (channels, height, width), classes)
    from workers.models.pretrained import as_fine_tuned, transformers_classifier

    if spec.model.checkpoint is not None:
        known: Any = facts.preprocessing
        return as_fine_tuned(known["config"], tuple(known["size"]) if known["size"] else None, classes)
    return transformers_classifier(spec.model, (channels, height, width), classes)


def predict(model: nn.Module, spec: ImageClassificationTask, facts: ModelFacts, inputs: NDArray[Any]) -> dict[str, Any]:
    """``inputs``: images as in the training files, (N, H, W) or (N, H, W, C), or flat rows. Gives class, label and probabilities."""
    channels, height, width = facts.input_shape
    try:
        pixels = np.asarray(inputs).reshape(len(inputs), height, width, channels)
    except ValueError as error:
        raise BadDataError(
            "inputs", f"shape {np.shape(inputs)} does not fit images of {(height, width, channels)}"
        ) from error
    with torch.no_grad():
        probabilities = model(standardised(pixels, facts)).softmax(1).numpy()
    classes = probabilities.argmax(1)
    return {
        "class": classes,
        "label": np.array([facts.class_names[index] for index in classes]),
        "probabilities": probabilities,
    }
