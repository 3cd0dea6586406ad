"""The user's own task: a factory in the user's own code, and the arguments for it."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, JsonValue, StringConstraints
from pydantic_core import PydanticCustomError

from workers.kinds.code import Code
from workers.spec_base import TaskModel

_DOTTED = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"


def _factory(text: str) -> str:
    if not re.fullmatch(f"{_DOTTED}:{_DOTTED}", text, re.ASCII):
        raise PydanticCustomError("factory", "must be module:function, such as 'train:build' or 'package.module:build'")
    return text


FactoryName = Annotated[str, StringConstraints(max_length=200), AfterValidator(_factory)]
ArgumentName = Annotated[str, StringConstraints(max_length=100, pattern=r"^[A-Za-z_]\w*$")]
MetricName = Annotated[str, StringConstraints(max_length=60, pattern=r"^[a-z][a-z0-9_]*$")]


class CustomTask(TaskModel):
    """``factory`` is called with ``arguments`` and gives the task: an object with the methods of ``workers.tasks.base.Task``."""

    # ``metrics`` is a method of every task; in the document it is the list of names.
    model_config = ConfigDict(serialize_by_alias=True)

    kind: Literal["custom"]
    code: Code
    factory: FactoryName = Field(description="module:function, as in 'train:build' or 'package.module:Class.create'")
    arguments: Annotated[dict[ArgumentName, JsonValue], Field(max_length=100)] = Field(
        default_factory=dict, description="keyword arguments of the factory"
    )
    metric_names: Annotated[list[MetricName], Field(max_length=100)] = Field(
        default_factory=list, alias="metrics", description="what evaluate() gives besides loss, such as accuracy"
    )

    def metrics(self) -> tuple[str, ...]:
        return ("loss", *(name for name in self.metric_names if name != "loss"))

    def paths(self) -> list[tuple[str, str]]:
        return self.code.paths()
