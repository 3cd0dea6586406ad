"""Files that one process appends rows to: parts of an attempt, each with a head that says what its rows are.

    attempt-0001-part-000000.json     the head
    attempt-0001-part-000000.*        rows

Who writes on, or has rows of another kind, begins a part of their own. Standard library only.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from workers.storage import folder_at, write_whole


class PartFiles:
    """The parts of an attempt in ``folder``, which need not be there yet."""

    def __init__(self, folder: Path, attempt: int) -> None:
        self._folder, self._attempt = folder, attempt
        parts = (path.name.partition(".")[0] for path in folder.glob(f"attempt-{attempt:04d}-part-*"))
        self._next = max((int(part.rpartition("-")[2]) + 1 for part in parts), default=0)
        self._part: Path | None = None
        self._head: Mapping[str, Any] = {}

    @contextlib.contextmanager
    def appending(self, head: Mapping[str, Any]) -> Iterator[Path]:
        """The part for rows of that kind, without its suffix, to append to inside ``with``.

        A part that takes only half of what is appended (a full disk) gets no more: its rows would be shifted.
        """
        part = self._part if self._part is not None and head == self._head else self._begin(head)
        self._part = None
        yield part
        self._part = part

    def _begin(self, head: Mapping[str, Any]) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        part = self._folder / f"attempt-{self._attempt:04d}-part-{self._next:06d}"
        self._next += 1
        write_whole(folder_at(part.with_suffix(".json")), json.dumps(head).encode())
        self._head = head
        return part


def append(path: Path, content: bytes) -> None:
    with path.open("ab") as stream:
        stream.write(content)
