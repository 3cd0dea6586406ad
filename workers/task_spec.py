"""The task of a job specification: one of the kinds. What each kind asks for is in ``workers/kinds/``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Tag

from workers.kinds.custom import CustomTask
from workers.kinds.images import ImageClassificationTask
from workers.kinds.language import LanguageModelTask
from workers.kinds.proteins import ProteinStructureTask
from workers.kinds.scripts import ScriptTask
from workers.kinds.tables import TabularTask
from workers.spec_base import chosen_by

KINDS = ("image_classification", "language_model", "protein_structure", "tabular", "custom", "script")
ALLOWED = ", ".join(KINDS[:-1]) + f" or {KINDS[-1]}"

Task = Annotated[
    Annotated[ImageClassificationTask, Tag("image_classification")]
    | Annotated[LanguageModelTask, Tag("language_model")]
    | Annotated[ProteinStructureTask, Tag("protein_structure")]
    | Annotated[TabularTask, Tag("tabular")]
    | Annotated[ScriptTask, Tag("script")]
    | Annotated[CustomTask, Tag("custom")],
    chosen_by("kind", ALLOWED),
]
