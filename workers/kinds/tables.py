"""Classification and regression on tables: which rows, which network."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from workers.kinds.networks import MlpModel
from workers.spec_base import ColumnName, Model, PathText, TaskModel, chosen_by, filled


class BreastCancerData(Model):
    """scikit-learn's breast cancer data: 569 rows of 30 numbers, 2 classes; a fifth of the rows is held out."""

    source: Literal["breast_cancer"]


class TableData(Model):
    """Rows of a CSV or Parquet file. Features are numbers; they are standardised with the training rows' mean and deviation."""

    source: Literal["csv", "parquet"]
    path: PathText
    evaluation_path: PathText | None = None
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.2
    target: ColumnName
    features: Annotated[list[ColumnName], Field(min_length=1, max_length=100_000)] | None = Field(
        None, description="default: every column but the target"
    )


TabularData = Annotated[
    Annotated[BreastCancerData, Tag("breast_cancer")] | Annotated[TableData, Tag("table")],
    chosen_by("source", "breast_cancer, csv or parquet", same={"csv": "table", "parquet": "table"}),
]


class TabularTask(TaskModel):
    kind: Literal["tabular"]
    data: TabularData
    objective: Literal["classification", "regression"] = "classification"
    model: MlpModel = Field(default_factory=lambda: MlpModel(architecture="mlp", hidden=[64, 32]))

    @model_validator(mode="after")
    def _objective_fits(self) -> Self:
        if self.objective == "regression" and isinstance(self.data, BreastCancerData):
            raise PydanticCustomError(
                "objective", "objective 'regression' does not fit breast_cancer, whose target is a class"
            )
        return self

    def metrics(self) -> tuple[str, ...]:
        return ("loss", "accuracy") if self.objective == "classification" else ("loss", "mse", "mae")

    def paths(self) -> list[tuple[str, str]]:
        return filled(self.data, ("path", "evaluation_path"))
