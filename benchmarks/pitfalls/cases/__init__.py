"""All cases, by family."""

from __future__ import annotations

from benchmarks.pitfalls.case import Case
from benchmarks.pitfalls.cases import (
    alternating,
    deep,
    distributed,
    embeddings,
    held_back,
    recurrent,
    regression,
    tabular,
    text,
    unseen_field,
    unseen_field_data,
    unseen_field_ordinary,
    unseen_field_sound,
    unseen_people,
    unseen_people_data,
    unseen_people_sound,
    unseen_pictures,
    unseen_sequences,
    unseen_signals,
    unseen_tables,
    unseen_words,
    vision,
)

ALL: tuple[Case, ...] = (
    *vision.CASES,
    *deep.CASES,
    *recurrent.CASES,
    *text.CASES,
    *regression.CASES,
    *tabular.CASES,
    *embeddings.CASES,
    *distributed.CASES,
    *alternating.CASES,
    *held_back.CASES,
    *unseen_pictures.CASES,
    *unseen_tables.CASES,
    *unseen_sequences.CASES,
    *unseen_words.CASES,
    *unseen_signals.CASES,
    *unseen_people.CASES,
    *unseen_people_data.CASES,
    *unseen_people_sound.CASES,
    *unseen_field.CASES,
    *unseen_field_data.CASES,
    *unseen_field_sound.CASES,
    *unseen_field_ordinary.CASES,
)
