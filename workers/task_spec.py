"""The task of a job specification: one of the kinds. What each kind asks for is in ``workers/kinds/``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Tag

from workers.kinds.images import ImageClassificationTask
from workers.kinds.proteins import ProteinStructureTask
from workers.kinds.tables import TabularTask
from workers.spec_base import NotAvailableKind, chosen_by

KINDS_LATER = ("language_model", "custom", "script")


class UnavailableTask(NotAvailableKind):
    kind: str

    @classmethod
    def _selector(cls) -> tuple[str, str]:
        return "kind", "image_classification, protein_structure or tabular"


Task = Annotated[
    Annotated[ImageClassificationTask, Tag("image_classification")]
    | Annotated[ProteinStructureTask, Tag("protein_structure")]
    | Annotated[TabularTask, Tag("tabular")]
    | Annotated[UnavailableTask, Tag("later")],
    chosen_by("kind", "image_classification, protein_structure or tabular", later=KINDS_LATER),
]
