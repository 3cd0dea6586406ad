"""Any training script, unmodified: which one, with which arguments, and how it is watched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator
from pydantic_core import PydanticCustomError

from workers.spec_base import PRINTABLE, Model, PathText, PositiveInt, TaskModel, not_available

Argument = Annotated[str, StringConstraints(max_length=4096, pattern=PRINTABLE)]
VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=200)]
VariableValue = Annotated[str, StringConstraints(max_length=8192, pattern=r"^[^\x00]*$")]
RelativePath = Annotated[str, StringConstraints(min_length=1, max_length=1024, pattern=PRINTABLE)]
ModuleName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$", max_length=200)
]

# What every script is told, as torchrun does it; a job cannot say otherwise.
RESERVED = frozenset(
    {
        *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_NAME"),
        *("ROLE_RANK", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES"),
    }
)
RESERVED_PREFIXES = ("TORCHELASTIC_", "CHAINRULE_", "KUBEFLOW_TRAINER_")


class ScriptCode(Model):
    path: PathText = Field(description="folder with the script and what it imports, on the machines of the workers")
    requirements: None = Field(None, description="packages that are to be installed first are not available yet")

    @field_validator("requirements", mode="before")
    @classmethod
    def _none_yet(cls, value: Any) -> Any:
        if value is not None:
            raise not_available("requirements of a script", "use what the workers' environment has")
        return value


class ScriptTask(TaskModel):
    """A script that any launcher like torchrun could start. Every worker runs it as a process of its own."""

    kind: Literal["script"]
    code: ScriptCode
    entry: RelativePath | None = Field(None, description="the script, relative to the code: train.py; or give module")
    module: ModuleName | None = Field(None, description="or a module that is run like python -m: package.train")
    arguments: Annotated[list[Argument | int | float], Field(max_length=1000)] = Field([])
    environment: Annotated[dict[VariableName, VariableValue], Field(max_length=200)] = Field(default_factory=dict)
    output: RelativePath = Field(
        "outputs", description="folder, relative to where the script runs, whose files are kept with the job"
    )
    hang_seconds: Annotated[float, Field(ge=1, le=10**7)] | None = Field(
        1800, description="without an optimizer step and without output of any worker; then the job fails. null: never"
    )
    grace_seconds: Annotated[float, Field(ge=0, le=50)] = Field(
        20, description="from the SIGTERM that asks the script to stop to the SIGKILL"
    )
    steps: PositiveInt | None = Field(None, description="optimizer steps of the whole run, if known, for the progress")
    resumable: bool = Field(
        False, description="when it is started again, it goes on from what it has written into its output folder"
    )
    observe: bool = Field(True, description="measure gradients and loss at the optimizer's steps")
    overhead_budget: Annotated[float, Field(gt=0, le=1)] = Field(
        0.02, description="largest share of a step that measuring may take; beyond it not every step is measured"
    )

    @field_validator("entry", "output")
    @classmethod
    def _inside(cls, value: str | None) -> str | None:
        if value is not None and (value.startswith(("/", "~", "-")) or {"..", "", "."} & set(value.split("/"))):
            raise PydanticCustomError("relative_path", "must be a path beneath the code's folder, without '..'")
        return value

    @field_validator("environment")
    @classmethod
    def _not_reserved(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        taken = sorted(name for name in value if name in RESERVED or name.startswith(RESERVED_PREFIXES))
        if taken:
            raise PydanticCustomError(
                "reserved_variable", "{names} is set by the service; choose other names", {"names": ", ".join(taken)}
            )
        return value

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if (self.entry is None) == (self.module is None):
            raise PydanticCustomError(
                "script_start", "give entry (a file: train.py) or module (package.train), one of them"
            )
        return self

    def unused(self) -> tuple[str, ...]:
        return ("training", "optimizer", "schedule", "checkpoint", "evaluation")

    def metrics(self) -> tuple[str, ...]:
        return ("loss",)

    def paths(self) -> list[tuple[str, str]]:
        return [("task.code.path", self.code.path)]
