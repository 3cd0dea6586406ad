"""Small built-in networks, which several kinds of tasks can choose."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from workers.spec_base import Activation, Model, Width


class MlpModel(Model):
    """Fully connected layers; images are flattened."""

    architecture: Literal["mlp"]
    hidden: Annotated[list[Width], Field(min_length=0, max_length=1000)] = Field([256, 128])
    activation: Activation = "relu"
    normalization: Literal["none", "batch", "layer"] = "none"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
