"""Lists on the wire: OpenAI's envelope, and the parameters that walk through it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from api.errors import ApiError
from service.values import Status
from workers.spec_base import PRINTABLE


def _plain_integer(value: Any) -> Any:
    """Query parameters are text; int() would also take '1_0', ' 7 ' and the digits of other scripts."""
    if isinstance(value, str):
        if not re.fullmatch(r"-?[0-9]{1,18}", value, re.ASCII):
            raise ValueError("must be an integer")
        return int(value)
    return value


def _plain_boolean(value: Any) -> Any:
    if isinstance(value, str):
        if value not in ("true", "false"):
            raise ValueError("must be true or false")
        return value == "true"
    return value


# The last annotation, behind the bounds: before them it would hide them from the OpenAPI document.
PLAIN_INTEGER = BeforeValidator(_plain_integer)
PLAIN_BOOLEAN = BeforeValidator(_plain_boolean)
Step = Annotated[int, Field(ge=0, le=2**53), PLAIN_INTEGER]
Cursor = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9_.:,=-]+$")]
Order = Literal["asc", "desc"]


class Query(BaseModel):
    """Base of all query parameters: unknown ones are refused, so that a misspelt filter is never ignored."""

    model_config = ConfigDict(extra="forbid")


class JobsQuery(Query):
    after: Cursor | None = Field(
        None, description="id of the last job of the page before", examples=["job-5f0c2a9be61d4873a0c4d7e2"]
    )
    limit: Annotated[int, Field(ge=1, le=100, description="jobs of a page"), PLAIN_INTEGER] = 20
    order: Annotated[Order, Field(description="by time of creation: desc is newest first")] = "desc"
    status: Annotated[Status | None, Field(description="only jobs in this state")] = None
    name: Annotated[
        Annotated[str, Field(min_length=1, max_length=100, pattern=PRINTABLE)] | None,
        Field(description="only jobs of this name"),
    ] = None


class StepsQuery(Query):
    """Some of a job's steps."""

    first_step: Annotated[Step | None, Field(description="leave out steps before this one")] = None
    last_step: Annotated[Step | None, Field(description="leave out steps after this one")] = None

    def check(self) -> None:
        """Raises ApiError."""
        if self.first_step is not None and self.last_step is not None and self.first_step > self.last_step:
            raise ApiError(400, "invalid_parameter", "first_step is after last_step.", param="first_step")


class CreateQuery(Query):
    dry_run: Annotated[
        bool, Field(description="check the job and answer with its plan; nothing is created"), PLAIN_BOOLEAN
    ] = False


class FilesQuery(Query):
    after: Cursor | None = Field(None, description="id of the last file of the page before")
    limit: Annotated[int, Field(ge=1, le=10000, description="files of a page"), PLAIN_INTEGER] = 20
    order: Annotated[Order, Field(description="by time of creation: desc is newest first")] = "desc"
    purpose: Annotated[
        Annotated[str, Field(min_length=1, max_length=40, pattern=PRINTABLE)] | None,
        Field(description="only files for this purpose"),
    ] = None


def page(data: Sequence[dict[str, Any]], *, has_more: bool = False) -> dict[str, Any]:
    """The list envelope. ``last_id`` is the ``after`` of the next page."""
    return {
        "object": "list",
        "data": list(data),
        "has_more": has_more,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
    }
