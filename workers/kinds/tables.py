"""Classification and regression on tables: which rows, which network."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from workers.kinds.classes import CLASSIFICATION_METRICS, ClassWeights
from workers.kinds.networks import MlpModel
from workers.spec_base import ColumnName, Model, PathText, TaskModel, chosen_by, filled


class BreastCancerData(Model):
    """scikit-learn's breast cancer data: 569 rows of 30 numbers, 2 classes; a fifth of the rows is held out."""

    source: Literal["breast_cancer"]


class TableData(Model):
    """Rows of a CSV or Parquet file. Numbers are standardised with the training rows' mean and deviation, categories become one-hot."""

    source: Literal["csv", "parquet"]
    path: PathText
    evaluation_path: PathText | None = None
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.2
    target: ColumnName
    features: Annotated[list[ColumnName], Field(min_length=1, max_length=100_000)] | None = Field(
        None, description="default: every column but the target"
    )
    categorical: Annotated[list[ColumnName], Field(min_length=1, max_length=10_000)] | None = Field(
        None, description="those of the features that are names of categories, not numbers"
    )
    missing: Literal["error", "mean"] = Field(
        "error",
        description="what becomes of an empty feature: the job is refused, or it gets the training rows' mean (a category: its slot for unseen ones)",
    )

    @model_validator(mode="after")
    def _categories_are_features(self) -> Self:
        others = [name for name in self.categorical or () if self.features is not None and name not in self.features]
        if others or self.target in (self.categorical or ()):
            raise PydanticCustomError(
                "categorical",
                "categorical has {name}, which is not among the features",
                {"name": (others or [self.target])[0]},
            )
        return self


TabularData = Annotated[
    Annotated[BreastCancerData, Tag("breast_cancer")] | Annotated[TableData, Tag("table")],
    chosen_by("source", "breast_cancer, csv or parquet", same={"csv": "table", "parquet": "table"}),
]


class TabularTask(TaskModel):
    kind: Literal["tabular"]
    data: TabularData
    objective: Literal["classification", "regression"] = "classification"
    class_weights: ClassWeights | None = Field(
        None, description="how much a row of each class counts in the training loss; balanced: all classes alike"
    )
    model: MlpModel = Field(default_factory=lambda: MlpModel(architecture="mlp", hidden=[64, 32]))

    @model_validator(mode="after")
    def _objective_fits(self) -> Self:
        if self.objective == "regression" and isinstance(self.data, BreastCancerData):
            raise PydanticCustomError(
                "objective", "objective 'regression' does not fit breast_cancer, whose target is a class"
            )
        if self.objective == "regression" and self.class_weights is not None:
            raise PydanticCustomError("objective", "class_weights do not fit objective 'regression'")
        return self

    def metrics(self) -> tuple[str, ...]:
        return ("loss", *(CLASSIFICATION_METRICS if self.objective == "classification" else ("mse", "mae", "r2")))

    def paths(self) -> list[tuple[str, str]]:
        return filled(self.data, ("path", "evaluation_path"))
