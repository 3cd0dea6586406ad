"""Image classification: which images, which model."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, JsonValue, Tag, field_validator, model_validator
from pydantic_core import PydanticCustomError

from workers.kinds.networks import MlpModel
from workers.spec_base import (
    Activation,
    ColumnName,
    Model,
    NotAvailableKind,
    PathText,
    TaskModel,
    Width,
    chosen_by,
    filled,
    not_available,
)


class DigitsData(Model):
    """scikit-learn's 1,797 handwritten digits, 8 x 8, grey; 360 of them are held out for evaluation."""

    source: Literal["digits"]


class LabelledImages(Model):
    """What sources of images with labels in arrays share; what the two names mean is up to the source."""

    evaluation_images: str | None
    evaluation_labels: str | None
    holdout: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.2, description="share held out when there are no evaluation images"
    )
    classes: Annotated[int, Field(ge=2, le=1_000_000)] | None = Field(
        None, description="number of classes; default: largest label + 1"
    )

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.evaluation_images is None) != (self.evaluation_labels is None):
            raise PydanticCustomError(
                "pair", "evaluation_images and evaluation_labels must both be given, or both be null"
            )
        return self


class NpzData(LabelledImages):
    """Arrays of one ``.npz`` file: images (N, H, W) or (N, H, W, C) of uint8 or float, labels (N,) or (N, 1) of integers."""

    source: Literal["npz"]
    path: PathText
    train_images: ColumnName = "x_train"
    train_labels: ColumnName = "y_train"
    evaluation_images: ColumnName | None = Field("x_test", description="null: hold out a part of the training images")
    evaluation_labels: ColumnName | None = "y_test"


class IdxData(LabelledImages):
    """Files in the idx format of MNIST (also gzipped): images (N, H, W) of unsigned bytes, labels (N,)."""

    source: Literal["idx"]
    train_images: PathText
    train_labels: PathText
    evaluation_images: PathText | None = None
    evaluation_labels: PathText | None = None


class FolderData(Model):
    """A folder with one folder of image files a class; class names are the sorted folder names."""

    source: Literal["folder"]
    path: PathText
    evaluation_path: PathText | None = Field(None, description="null: hold out a part of the training images")
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.2
    image_size: Annotated[int, Field(ge=4, le=4096)] = Field(
        64, description="images are resized to this height and width, in pixels"
    )
    channels: Literal[1, 3] = 3


class UnavailableImageData(NotAvailableKind):
    source: str

    @classmethod
    def _selector(cls) -> tuple[str, str]:
        return "source", "digits, npz, idx or folder"


IMAGE_SOURCES_LATER = ("huggingface", "parquet")

ImageData = Annotated[
    Annotated[DigitsData, Tag("digits")]
    | Annotated[NpzData, Tag("npz")]
    | Annotated[IdxData, Tag("idx")]
    | Annotated[FolderData, Tag("folder")]
    | Annotated[UnavailableImageData, Tag("later")],
    chosen_by("source", "digits, npz, idx or folder", later=IMAGE_SOURCES_LATER),
]


# --- models -----------------------------------------------------------------------------------------------------------


class CnnModel(Model):
    """3 x 3 convolutions, each block halving height and width, then one linear layer on the spatial mean."""

    architecture: Literal["cnn"]
    channels: Annotated[list[Width], Field(min_length=1, max_length=16)] = Field([32, 64])
    activation: Activation = "relu"
    normalization: Literal["none", "batch"] = "batch"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


TransformersArchitecture = Literal[
    "resnet", "vit", "convnext", "convnextv2", "regnet", "mobilenet_v1", "mobilenet_v2", "beit", "poolformer", "cvt",
    "dinov2",
]  # fmt: skip


class TransformersImageModel(Model):
    """An image classifier of the transformers library, built from its configuration with random weights."""

    architecture: TransformersArchitecture
    config: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="overrides of the architecture's configuration, for example {hidden_sizes: [32, 64], depths: [1, 1]}",
    )
    checkpoint: None = Field(None, description="fine-tuning from a checkpoint is not available yet")

    @field_validator("checkpoint", mode="before")
    @classmethod
    def _no_checkpoint(cls, value: Any) -> Any:
        if value is not None:
            raise not_available("fine-tuning from a checkpoint", "leave the field out")
        return value


ImageModel = Annotated[
    Annotated[MlpModel, Tag("mlp")]
    | Annotated[CnnModel, Tag("cnn")]
    | Annotated[TransformersImageModel, Tag("transformers")],
    chosen_by(
        "architecture",
        "mlp, cnn, " + ", ".join(get_args(TransformersArchitecture)),
        same=dict.fromkeys(get_args(TransformersArchitecture), "transformers"),
    ),
]


# --- the task ---------------------------------------------------------------------------------------------------------


class ImageClassificationTask(TaskModel):
    kind: Literal["image_classification"]
    data: ImageData
    model: ImageModel = Field(default_factory=lambda: CnnModel(architecture="cnn"))

    def metrics(self) -> tuple[str, ...]:
        return ("loss", "accuracy")

    def paths(self) -> list[tuple[str, str]]:
        names = _IDX_PATHS if isinstance(self.data, IdxData) else ("path", "evaluation_path")
        return filled(self.data, names)


_IDX_PATHS = ("train_images", "train_labels", "evaluation_images", "evaluation_labels")
