"""The task of a job specification: one of the kinds. What each kind asks for is in ``workers/kinds/``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Tag

from workers.kinds.images import ImageClassificationTask
from workers.kinds.language import LanguageModelTask
from workers.kinds.proteins import ProteinStructureTask
from workers.kinds.scripts import ScriptTask
from workers.kinds.tables import TabularTask
from workers.spec_base import NotAvailableKind, chosen_by

KINDS = ("image_classification", "language_model", "protein_structure", "tabular", "script")
KINDS_LATER = ("custom",)
ALLOWED = ", ".join(KINDS[:-1]) + f" or {KINDS[-1]}"


class UnavailableTask(NotAvailableKind):
    kind: str

    @classmethod
    def _selector(cls) -> tuple[str, str]:
        return "kind", ALLOWED


Task = Annotated[
    Annotated[ImageClassificationTask, Tag("image_classification")]
    | Annotated[LanguageModelTask, Tag("language_model")]
    | Annotated[ProteinStructureTask, Tag("protein_structure")]
    | Annotated[TabularTask, Tag("tabular")]
    | Annotated[ScriptTask, Tag("script")]
    | Annotated[UnavailableTask, Tag("later")],
    chosen_by("kind", ALLOWED, later=KINDS_LATER),
]
