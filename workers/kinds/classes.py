"""What every kind of task that sorts samples into classes asks for, and what it measures."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

CLASSIFICATION_METRICS = ("accuracy", "auroc", "f1")

ClassWeight = Annotated[float, Field(gt=0, le=1e6)]
ClassWeights = Literal["balanced"] | Annotated[list[ClassWeight], Field(min_length=2, max_length=100_000)]
