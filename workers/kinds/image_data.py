"""Where labelled images come from."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from workers.kinds.hub import FolderOrRepository
from workers.spec_base import ColumnName, Model, PathText, chosen_by


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
    test_images: ColumnName | None = Field(None, description="evaluated once, when the model is finished")
    test_labels: ColumnName | None = None

    @model_validator(mode="after")
    def _both_test_arrays_or_none(self) -> Self:
        if (self.test_images is None) != (self.test_labels is None):
            raise PydanticCustomError("pair", "test_images and test_labels must both be given, or both be null")
        return self


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


class EncodedData(Model):
    """What sources of encoded images (PNG, JPEG, ...) in a column share."""

    image_column: ColumnName = "image"
    label_column: ColumnName = "label"
    holdout: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.2, description="share held out when there is nothing to evaluate on"
    )
    image_size: Annotated[int, Field(ge=4, le=4096)] = Field(
        64, description="images are resized to this height and width, in pixels"
    )
    channels: Literal[1, 3] = 3


class ParquetData(EncodedData):
    """Files with a column of images, as bytes or as Hugging Face writes them (struct of bytes and path), and one of labels."""

    source: Literal["parquet"]
    path: PathText = Field(description="a file, or a folder of *.parquet")
    evaluation_path: PathText | None = None
    test_path: PathText | None = Field(None, description="evaluated once, when the model is finished")


class HuggingFaceData(EncodedData):
    """A data set of the datasets library: a folder that save_to_disk wrote or that load_dataset reads, or a repository of the hub."""

    source: Literal["huggingface"]
    path: FolderOrRepository
    name: ColumnName | None = Field(None, description="the configuration, where the data set has several")
    train_split: ColumnName = "train"
    evaluation_split: ColumnName | None = Field(None, description="null: hold out a part of the training images")
    test_split: ColumnName | None = Field(None, description="evaluated once, when the model is finished")


SOURCES = "digits, npz, idx, folder, parquet or huggingface"

ImageData = Annotated[
    Annotated[DigitsData, Tag("digits")]
    | Annotated[NpzData, Tag("npz")]
    | Annotated[IdxData, Tag("idx")]
    | Annotated[FolderData, Tag("folder")]
    | Annotated[ParquetData, Tag("parquet")]
    | Annotated[HuggingFaceData, Tag("huggingface")],
    chosen_by("source", SOURCES),
]
