"""Documents to learn from, one a line of a JSONL file or a row of a Parquet file, in one of three shapes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.kinds.language import DocumentData
from workers.problems import shorten
from workers.sources.problems import BadDataError
from workers.sources.text import lines

FIELDS = (("messages",), ("prompt", "completion"), ("text",))
ALLOWED = "messages, or prompt and completion, or text"
ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Document:
    """``messages`` is None, or the other two are empty. ``completion`` is what is learnt; a plain text is all completion."""

    where: str  # "line 3 of FILE", for messages
    prompt: str = ""
    completion: str = ""
    messages: tuple[Mapping[str, str], ...] | None = None


@dataclass(frozen=True)
class Documents:
    train: tuple[Document, ...]
    evaluation: tuple[Document, ...]


def read_documents(data: DocumentData) -> Documents:
    """Without an ``evaluation_path`` the last ``holdout`` of the documents is held out, at least one."""
    found = tuple(documents_of("task.data.path", data.path, data.source))
    if data.evaluation_path is not None:
        return Documents(found, tuple(documents_of("task.data.evaluation_path", data.evaluation_path, data.source)))
    return hold_out(found, data)


def hold_out(found: Sequence[Document], data: DocumentData) -> Documents:
    if len(found) < 2:
        raise BadDataError("task.data.path", f"{data.path} has one document; at least 2 are needed, to hold one out")
    left = min(len(found) - 1, max(1, math.floor(len(found) * (1 - data.holdout))))
    return Documents(tuple(found[:left]), tuple(found[left:]))


def documents_of(field: str, path: str, source: str, limit: int | None = None) -> Iterator[Document]:
    """The documents of a file, at most ``limit``. Raises BadDataError that names the line or row, also when there is none."""
    if not Path(path).is_file():
        raise BadDataError(field, f"there is no file {path}")
    rows = _lines(field, Path(path)) if source == "jsonl" else _rows(field, Path(path))
    count = 0
    for where, row in rows:
        if count == limit:
            return
        yield document_of(field, where, row)
        count += 1
    if count == 0:
        raise BadDataError(field, f"{path} has no documents")


def _lines(field: str, path: Path) -> Iterator[tuple[str, object]]:
    with path.open("rb") as stream:
        for number, line in lines(stream, path):
            where = f"line {number} of {path}"
            try:
                yield where, json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                what = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else "too deep"
                raise BadDataError(field, f"{where} is not JSON: {what}; each line must be one JSON object") from error


def _rows(field: str, path: Path) -> Iterator[tuple[str, object]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = [name for name in file.schema_arrow.names if any(name in shape for shape in FIELDS)]
            number = 0
            for batch in file.iter_batches(batch_size=1000, columns=names):
                for row in batch.to_pylist():
                    yield f"row {number} of {path}", {key: value for key, value in row.items() if value is not None}
                    number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise BadDataError(field, f"{path} cannot be read as parquet: {error}") from error


# --- one document -----------------------------------------------------------------------------------------------------


def document_of(field: str, where: str, row: object) -> Document:
    if not isinstance(row, Mapping):
        raise BadDataError(field, f"{where} is {shorten(row)}; it must be an object with {ALLOWED}")
    shapes = [shape for shape in FIELDS if any(name in row for name in shape)]
    if len(shapes) != 1:
        found = ", ".join(sorted(map(str, row)))[:200] or "nothing"
        problem = "is ambiguous" if shapes else "has nothing to learn"
        raise BadDataError(field, f"{where} {problem}: it must have {ALLOWED}; it has {found}")
    if shapes[0] == ("messages",):
        return Document(where, messages=tuple(_messages(field, where, row["messages"])))
    for name in shapes[0]:
        if not isinstance(row.get(name), str):
            raise BadDataError(field, f"{where}: {name} must be a text, and is {shorten(row.get(name))}")
    completion = row[shapes[0][-1]]
    if not completion:
        raise BadDataError(field, f"{where}: {shapes[0][-1]} is empty")
    return Document(where, prompt=row.get("prompt", "") if len(shapes[0]) == 2 else "", completion=completion)


def _messages(field: str, where: str, messages: Any) -> Iterator[dict[str, str]]:
    if not isinstance(messages, list) or not messages:
        raise BadDataError(field, f"{where}: messages must be a list of messages, and is {shorten(messages)}")
    for index, message in enumerate(messages):
        place = f"{where}: messages[{index}]"
        if not isinstance(message, Mapping):
            raise BadDataError(field, f"{place} must be an object with role and content, and is {shorten(message)}")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise BadDataError(field, f"{place}.role is {shorten(role)}; allowed is {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise BadDataError(field, f"{place}.content must be a text, and is {shorten(content)}")
        yield {"role": role, "content": content}
    if not any(message["role"] == "assistant" for message in messages):
        raise BadDataError(field, f"{where} has no message of the assistant, so there is nothing to learn in it")
