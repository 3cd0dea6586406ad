"""Names of models and data sets: a folder of the machine, or a repository of the Hugging Face hub."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from workers.spec_base import PathText

FOLDER_STARTS = ("/", "./", "../", "~/")
REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")


def is_folder(name: str) -> bool:
    """Told by its beginning, not by what lies on a disk: a job must mean the same on every machine."""
    return name.startswith(FOLDER_STARTS)


def _folder_or_repository(name: str) -> str:
    if is_folder(name) or REPOSITORY.fullmatch(name):
        return name
    raise PydanticCustomError(
        "folder_or_repository",
        "must be a folder that begins with / or ./, or a repository of the Hugging Face hub such as google/vit-base-patch16-224",
    )


FolderOrRepository = Annotated[PathText, AfterValidator(_folder_or_repository)]
