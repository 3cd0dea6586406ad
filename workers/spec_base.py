"""What all parts of a job specification are made of: strict models, bounded fields, and refusals of what is not there yet."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    StringConstraints,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError

# No control characters: a name goes into logs, headers and terminals. (pydantic itself refuses lone surrogates.)
PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$"
Name = Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=PRINTABLE, strip_whitespace=True)]
ColumnName = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=PRINTABLE)]
PathText = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=PRINTABLE)]
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=PRINTABLE)]
MetadataValue = Annotated[str, StringConstraints(max_length=512, pattern=PRINTABLE)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(ge=1, le=2**31 - 1)]
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
Width = Annotated[int, Field(ge=1, le=1_000_000)]

Activation = Literal["relu", "leaky_relu", "gelu", "silu", "elu", "selu", "tanh", "sigmoid"]


class Model(BaseModel):
    """Base of every part: unknown keys refused, no coercion, finite numbers only."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True, protected_namespaces=())


class TaskModel(Model, ABC):
    """What every kind of task tells about itself without importing what it trains with."""

    @abstractmethod
    def metrics(self) -> tuple[str, ...]:
        """The names of what its evaluation measures, ``loss`` among them; reported as ``eval/<name>``."""

    @abstractmethod
    def paths(self) -> list[tuple[str, str]]:
        """Every file or folder that it reads, as (path of the field, value)."""

    def unused(self) -> tuple[str, ...]:
        """Parts of a job that mean nothing for this kind; giving one is an error."""
        return ()


def filled(data: Model, names: tuple[str, ...], prefix: str = "task.data") -> list[tuple[str, str]]:
    """(path of the field, value) for those of ``names`` that ``data`` has and that are not null."""
    found = ((f"{prefix}.{name}", getattr(data, name, None)) for name in names)
    return [(field, value) for field, value in found if value is not None]


def not_available(what: str, instead: str) -> PydanticCustomError:
    return PydanticCustomError(
        "not_available", "{what} is not available yet; {instead}", {"what": what, "instead": instead}
    )


class NotAvailableKind(Model):
    """A kind that the design names and this version cannot do: refused whatever its other fields are."""

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, value: Any) -> Any:
        key, allowed = cls._selector()
        raise not_available(f"{key} {value.get(key)!r}" if isinstance(value, Mapping) else key, f"use {allowed}")

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"not": {}}  # nothing is valid here; a document must fit just one member of its union

    @classmethod
    def _selector(cls) -> tuple[str, str]:
        raise AssertionError("each subclass names its selector")


def chosen_by(
    key: str, allowed: str, same: Mapping[str, str] | None = None, later: tuple[str, ...] = ()
) -> Discriminator:
    """Chooses the member of a union by ``value[key]``; anything else is an error that names ``key`` and ``allowed``."""

    def tag(value: object) -> str | None:
        selected = value.get(key) if isinstance(value, Mapping) else getattr(value, key, None)
        if not isinstance(selected, str):
            return None
        return "later" if selected in later else (same or {}).get(selected, selected)

    return Discriminator(
        tag,
        custom_error_type="one_of",
        custom_error_message="{key} must be one of: {allowed}",
        custom_error_context={"key": key, "allowed": allowed},
    )
