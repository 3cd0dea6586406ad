"""What people ask of a running job: a small file each in the job's folder, there until the job has taken it up. Standard library and pydantic only.

The API writes them, rank 0 reads them; so a request outlives both, and needs no other way between them than the folder that both have.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Request:
    """``undo``: of the repair of that number. ``steer``: what is given of rate, clipping and samples holds from now on."""

    id: str
    kind: Literal["undo", "steer"]
    by: str  # name of the key
    number: int | None = None
    learning_rate: float | None = None  # at the top of the schedule
    clip_norm: float | None = None
    leave_out: list[int] | None = None  # samples of the training set
    take_in: list[int] | None = None  # of those that are left out


def ask(folder: Path, kind: Literal["undo", "steer"], by: str, **wanted: Any) -> Request:
    """Whole or not at all. They are taken up in the order in which they were asked."""
    request = Request(f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}", kind, by, **wanted)
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{request.id}.part"
    part.write_text(json.dumps(asdict(request)), encoding="utf-8")
    os.replace(part, folder / f"{request.id}.json")
    return request


def asked(folder: Path, taken: Collection[str]) -> list[Request]:
    """Those that are not among ``taken``, oldest first."""
    if not folder.is_dir():
        return []
    paths = [path for path in sorted(folder.glob("*.json")) if path.stem not in taken]
    return [_of(json.loads(path.read_text("utf-8"))) for path in paths]


def _of(document: Mapping[str, Any]) -> Request:
    return Request(**document)
