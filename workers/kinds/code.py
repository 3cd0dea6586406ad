"""Code of the user's own, that tasks of some kinds run: where it comes from, and what it needs to be imported."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated, Self
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from workers.spec_base import PRINTABLE, Model, PathText

FileId = Annotated[str, StringConstraints(pattern=r"^file-[A-Za-z0-9]{1,60}$")]
GitUrl = Annotated[
    str, StringConstraints(max_length=2000, pattern=r"^git\+(https|ssh|file)://[^\s\x00-\x1f@][^\s\x00-\x1f]*$")
]

# A name, extras, then versions or an address, then a marker: what pip calls a requirement specifier. pip itself says the rest.
_REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\s*(?:\[[A-Za-z0-9._,\s-]*\])?\s*"
    r"(?:@\s*(?P<url>\S+)|\(?(?:(?:===|==|~=|!=|<=|>=|<|>)\s*[A-Za-z0-9.*+!_-]+\s*,?\s*)*\)?)\s*(?:;.*)?"
)
_ADDRESSES = ("https", "http", "file", "git+https", "git+ssh", "git+file")


def _requirement(text: str) -> str:
    found = _REQUIREMENT.fullmatch(text.strip())
    if found is None:
        raise PydanticCustomError(
            "requirement",
            "is no requirement of pip such as 'einops', 'einops>=0.8,<1' or 'name @ https://host/name.whl'",
        )
    if found["url"] is not None and urlsplit(found["url"]).scheme not in _ADDRESSES:
        raise PydanticCustomError(
            "requirement", "the address of a requirement must begin with {allowed}",
            {"allowed": ", ".join(f"{scheme}://" for scheme in _ADDRESSES)},
        )  # fmt: skip
    return text.strip()


def _inside(text: str) -> str:
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or "\\" in text:
        raise PydanticCustomError("relative", "must be a folder of the code, relative to it, such as 'src'")
    return text


Requirement = Annotated[
    str, StringConstraints(min_length=1, max_length=500, pattern=PRINTABLE), AfterValidator(_requirement)
]
InnerFolder = Annotated[PathText, AfterValidator(_inside)]


class Code(Model):
    """Where the code is: a folder, or a bundle that was uploaded before (``POST /v1/files``)."""

    path: PathText | None = Field(
        None,
        description="a folder on the machines of the service; `chainrule submit` uploads one that is named relative to the job file",
    )
    file: FileId | None = Field(None, description="id of an uploaded bundle: a zip or tar of the folder's content")
    git: GitUrl | None = Field(
        None,
        description="for `chainrule submit`, which clones it and uploads a bundle: git+https://host/repository@revision",
    )
    python_path: Annotated[list[InnerFolder], Field(max_length=16)] = Field(
        default_factory=list,
        description="folders of the code from which modules are imported, besides its top; such as src",
    )
    requirements: Annotated[list[Requirement], Field(max_length=100)] = Field(
        default_factory=list, description="what pip installs for this job's workers, besides what they have"
    )

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        given = [name for name in ("path", "file", "git") if getattr(self, name) is not None]
        if len(given) != 1:
            raise PydanticCustomError(
                "code",
                "give exactly one of path, file or git{given}",
                {"given": f", not {' and '.join(given)}" if given else ""},
            )
        return self

    def paths(self, prefix: str = "task.code") -> list[tuple[str, str]]:
        """(path of the field, value) of the folder, if it is one."""
        return [(f"{prefix}.path", self.path)] if self.path is not None else []

    def local_requirements(self, prefix: str = "task.code") -> list[tuple[str, str]]:
        """(path of the field, file) of the requirements that are files on the machines of the service."""
        found = []
        for index, text in enumerate(self.requirements):
            match = _REQUIREMENT.fullmatch(text)
            parts = urlsplit(match["url"] or "") if match is not None else urlsplit("")
            if parts.scheme.rpartition("+")[2] == "file":
                found.append((f"{prefix}.requirements[{index}]", unquote(parts.path)))
        return found
