"""Image classification: which images (workers/kinds/image_data.py), how they are varied, which model."""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, JsonValue, Tag, model_validator
from pydantic_core import PydanticCustomError

from workers.kinds.classes import CLASSIFICATION_METRICS, ClassWeights
from workers.kinds.hub import FolderOrRepository, is_folder
from workers.kinds.image_data import HuggingFaceData, IdxData, ImageData
from workers.kinds.networks import MlpModel
from workers.spec_base import Activation, Model, TaskModel, Width, chosen_by, filled


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
    """An image classifier of the transformers library, from its configuration with random weights, or from a checkpoint."""

    architecture: TransformersArchitecture
    config: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="overrides of the architecture's configuration, for example {hidden_sizes: [32, 64], depths: [1, 1]}",
    )
    checkpoint: FolderOrRepository | None = Field(
        None, description="begin with these weights: a folder that save_pretrained wrote, or a repository of the hub"
    )
    freeze_backbone: bool = Field(False, description="with a checkpoint: train the classifier on top alone")

    @model_validator(mode="after")
    def _checkpoint_fits(self) -> Self:
        if self.checkpoint is not None and self.config:
            raise PydanticCustomError("checkpoint_config", "config does not go with checkpoint, which has its own")
        if self.freeze_backbone and self.checkpoint is None:
            raise PydanticCustomError("checkpoint_config", "freeze_backbone needs a checkpoint")
        return self


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


class Augmentation(Model):
    """Random changes of the training images, new ones at each epoch. A sample's are the same on every number of workers."""

    horizontal_flip: bool = Field(False, description="mirror every second image, left to right")
    crop_padding: Annotated[int, Field(ge=0, le=256)] = Field(
        0, description="shift by up to so many pixels in both directions; the border's pixels are repeated"
    )
    mixup: Annotated[float, Field(ge=0, le=100)] = Field(
        0.0, description="blend with another training image; the share is drawn from Beta(mixup, mixup). 0: never"
    )
    cutmix: Annotated[float, Field(ge=0, le=100)] = Field(
        0.0, description="paste a box of another training image; as mixup. With both, each image gets one of the two"
    )


class ImageClassificationTask(TaskModel):
    kind: Literal["image_classification"]
    data: ImageData
    model: ImageModel = Field(default_factory=lambda: CnnModel(architecture="cnn"))
    augmentation: Augmentation = Field(default_factory=Augmentation)
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="share of each training label that is spread evenly over all classes"
    )
    class_weights: ClassWeights | None = Field(
        None, description="how much a sample of each class counts in the training loss; balanced: all classes alike"
    )

    def metrics(self) -> tuple[str, ...]:
        return ("loss", *CLASSIFICATION_METRICS)

    def paths(self) -> list[tuple[str, str]]:
        data, checkpoint = self.data, getattr(self.model, "checkpoint", None)
        names = _IDX_PATHS if isinstance(data, IdxData) else ("path", "evaluation_path", "test_path")
        remote = isinstance(data, HuggingFaceData) and not is_folder(data.path)
        folder = [("task.model.checkpoint", checkpoint)] if checkpoint is not None and is_folder(checkpoint) else []
        return ([] if remote else filled(data, names)) + folder


_IDX_PATHS = ("train_images", "train_labels", "evaluation_images", "evaluation_labels")
