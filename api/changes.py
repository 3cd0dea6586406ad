"""Bodies that change what is there: a job in its course, a node's use. As strict as job files, with the same kind of messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Self, TypeVar

from pydantic import BeforeValidator, Field, StringConstraints, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from service.errors import InvalidRequest
from service.jobs import ResumeFrom
from service.values import WorkerRange
from workers.problems import Problem, problem_of, shorten
from workers.spec import MOST_LEFT_OUT, JobSpec, Metadata, Priority, WorkerCount
from workers.spec_base import PRINTABLE, Model


class WorkersChange(Model):
    """A fixed ``count``, or an elastic number from ``min`` to ``max``."""

    count: WorkerCount | None = None
    min: WorkerCount | None = None
    max: WorkerCount | None = None

    @model_validator(mode="after")
    def _count_or_range(self) -> Self:
        if {name for name, value in self if value is not None} not in ({"count"}, {"min", "max"}):
            raise PydanticCustomError("worker_range", "give count, or min and max")
        return self

    def range(self) -> WorkerRange:
        return WorkerRange(self.min or self.count or 1, self.max or self.count or 1)


class OptimizerChange(Model):
    learning_rate: Annotated[float, Field(gt=0, le=1e6)] | None = Field(
        None, description="at the top of the job's schedule, from the next step on; the schedule itself stays"
    )

    @model_validator(mode="after")
    def _given(self) -> Self:
        if self.learning_rate is None:
            raise PydanticCustomError("nothing", "give learning_rate")
        return self


class TrainingChange(Model):
    clip_norm: Annotated[float, Field(gt=0)] | None = Field(
        None, description="largest global gradient norm, from the next step on"
    )

    @model_validator(mode="after")
    def _given(self) -> Self:
        if self.clip_norm is None:
            raise PydanticCustomError("nothing", "give clip_norm")
        return self


class JobChange(Model):
    """What can be changed of a job while it waits or runs; what is not given stays as it is."""

    priority: Priority | None = Field(None, description="higher starts first")
    metadata: Metadata | None = Field(None, description="takes the place of all pairs that were there")
    workers: WorkersChange | None = Field(
        None, description="how many from now on: the group grows or shrinks at the end of a step"
    )

    optimizer: OptimizerChange | None = Field(
        None, description="of a job that runs: taken up after a step, told as a repair, and undone like one"
    )
    training: TrainingChange | None = Field(None, description="as ``optimizer``")

    @model_validator(mode="after")
    def _not_nothing(self) -> Self:
        if all(value is None for _, value in self):
            raise PydanticCustomError("nothing", f"give at least one of {', '.join(JobChange.model_fields)}")
        return self

    @property
    def steers(self) -> bool:
        return self.optimizer is not None or self.training is not None


LONGEST_NAME = 4096


def _sample(value: object) -> object:
    """One problem for each that is neither, where a union would tell two."""
    index = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
    name = isinstance(value, str) and 0 < len(value) <= LONGEST_NAME and value.isprintable()
    if not (index or name):
        raise PydanticCustomError("sample", "must be a sample's index, from 0 on, or its name as a step shows it")
    return value


Samples = Annotated[list[Annotated[int | str, BeforeValidator(_sample)]], Field(min_length=1, max_length=MOST_LEFT_OUT)]


class QuarantineChange(Model):
    """Training samples, by their index in the training set or by their name as a step shows it."""

    leave_out: Samples | None = Field(
        None, description="from the next step on; others take their places in the batches"
    )
    take_in: Samples | None = Field(None, description="of those that are left out, again")

    @model_validator(mode="after")
    def _given(self) -> Self:
        if self.leave_out is None and self.take_in is None:
            raise PydanticCustomError("nothing", "give at least one of leave_out, take_in")
        return self


class Resume(Model):
    """From where a paused job goes on."""

    start: ResumeFrom | None = Field(
        None,
        alias="from",
        description="latest: the newest checkpoint; healthy: the last one before anything was found to be wrong. Default: healthy after a pause for "
        "a critical finding, else latest",
    )


class Cordon(Model):
    reason: Annotated[str, StringConstraints(max_length=500, pattern=PRINTABLE)] | None = Field(
        None, description="for others who look at the cluster", examples=["new memory on Monday"]
    )


M = TypeVar("M", bound=Model)


def parse(kind: type[M], document: object) -> M:
    """Raises InvalidRequest with everything that is wrong."""
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        found = [problem for details in error.errors(include_url=False) for problem in _problems(details, document)]
        raise InvalidRequest(found) from None


def _problems(details: ErrorDetails, document: object) -> Iterator[Problem]:
    problem = problem_of(details, document)
    if details["type"] != "extra_forbidden" or problem.path.partition(".")[0] not in JobSpec.model_fields:
        yield problem if problem.path else Problem("body", problem.message)
        return
    value = document[problem.path] if isinstance(document, Mapping) and problem.path in document else None
    fields = (
        {f"{problem.path}.{key}": value[key] for key in value}
        if isinstance(value, Mapping) and value
        else {problem.path: value}
    )
    for field, given in fields.items():
        yield Problem(field, "cannot be changed after the job was submitted; submit another one", shorten(given))
