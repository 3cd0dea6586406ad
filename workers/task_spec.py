"""The task of a job specification: one of the kinds. What each kind asks for is in ``workers/kinds/``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Tag

from workers.kinds.images import ImageClassificationTask
from workers.kinds.language import LanguageModelTask
from workers.kinds.tables import TabularTask
from workers.spec_base import NotAvailableKind, chosen_by

KINDS = "image_classification, language_model or tabular"
KINDS_LATER = ("protein_structure", "custom", "script")


class UnavailableTask(NotAvailableKind):
    kind: str

    @classmethod
    def _selector(cls) -> tuple[str, str]:
        return "kind", KINDS


Task = Annotated[
    Annotated[ImageClassificationTask, Tag("image_classification")]
    | Annotated[LanguageModelTask, Tag("language_model")]
    | Annotated[TabularTask, Tag("tabular")]
    | Annotated[UnavailableTask, Tag("later")],
    chosen_by("kind", KINDS, later=KINDS_LATER),
]
