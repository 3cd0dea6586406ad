"""Runs judged anew from what was recorded of them: for the service, and for whoever has a folder or MLflow but no service. Needs NumPy."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from workers.jobfolder import JobFolder
from workers.tracked_runs import restore
from workers.watch.diagnosis import diagnose
from workers.watch.memory import EVALUATED
from workers.watch.record import Record
from workers.watch.stored import NAMES, from_folder
from workers.watch.watching import timeline


def of_folder(path: str) -> Record:
    """Raises ValueError when nothing of a job is there."""
    return from_folder(JobFolder.at(path))


def of_mlflow(run_id: str, tracking_uri: str) -> Record:
    """From MLflow alone. Raises ValueError when there is no such run."""
    with tempfile.TemporaryDirectory() as folder:
        restored = restore(run_id, tracking_uri, Path(folder), lambda key: key in NAMES or key.startswith(EVALUATED))
        return from_folder(restored)


def judged(record: Record) -> dict[str, Any]:
    """verdict, sentence, findings and timeline, as ``GET /v1/jobs/{id}/diagnosis`` has them."""
    return diagnose(record).as_dict() | {"timeline": [asdict(entry) for entry in timeline(record)]}
