"""A job's folder in storage: the only place that knows its layout. The controller writes it, the API reads it.

    job.json                                       the job specification
    controller.json                                what a restarted controller needs
    data.json                                      what was seen of the data before workers were taken
    facts.json                                     what was seen in the run's first pass, see workers/watch/facts.py
    metrics/attempt-0001.jsonl                     {"step", "timestamp", "values": {series: value}}, one line a report
    gradients/attempt-0001-part-000000.*           the norms of every layer, see workers/gradient_files.py
    probes/attempt-0001-part-000000.*              what is measured now and then, see workers/watch/probe_files.py
    ranks/attempt-0001-part-000000.*               what each rank had by itself, see workers/watch/rank_files.py
    events/attempt-0001.jsonl                      the controller's events
    logs/attempt-0001/rank-0.log                   what the worker printed, each line with its time
    checkpoints/step-0000000100-g000001/           see workers/checkpoint_folders.py; may lie elsewhere
    model/                                         the finished model
    code/                                          the user's own code, unpacked, and what it requires
    artifacts/step-0000000100/samples.txt          what the task showed after a step, see workers/artifacts.py
    requests/                                      what people ask of the job while it runs, see workers/repair/requests.py
    mlflow.json                                    the run and how far it has been told

Lines are appended whole; a torn last line (the writer was killed) is passed over. Of a step that was done twice, the later line counts.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.checkpoint_folders import Manifest, complete
from workers.gradient_files import GradientMatrix, GradientReader
from workers.metric_series import Series, SeriesReader
from workers.storage import folder_at
from workers.watch import probe_files, rank_files

FACTS = "facts.json"
NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@dataclass(frozen=True)
class LogFile:
    attempt: int
    rank: int
    path: Path
    bytes: int


class JobFolder:
    """``checkpoints``: the folder or URL beneath which the checkpoints of all jobs lie, if not in their own folders."""

    def __init__(self, storage: str | Path, job_id: str, checkpoints: str | None = None) -> None:
        self.path = Path(storage) / "jobs" / job_id
        self._checkpoints = f"{checkpoints.rstrip('/')}/{job_id}" if checkpoints else None

    @staticmethod
    def at(path: str | Path, checkpoints: str | None = None) -> JobFolder:
        """``checkpoints``: the folder or URL of this job's own."""
        folder = JobFolder.__new__(JobFolder)
        folder.path, folder._checkpoints = Path(path), checkpoints
        return folder

    # --- where things are ---------------------------------------------------------------------------------------------

    @property
    def checkpoints_root(self) -> str:
        """Folder or URL."""
        return self._checkpoints or str(self.path / "checkpoints")

    @property
    def model_path(self) -> Path:
        return self.path / "model"

    @property
    def code_path(self) -> Path:
        return self.path / "code"

    @property
    def artifacts_path(self) -> Path:
        return self.path / "artifacts"

    @property
    def requests_path(self) -> Path:
        return self.path / "requests"

    @property
    def gradients_path(self) -> Path:
        return self.path / "gradients"

    @property
    def probes_path(self) -> Path:
        return self.path / "probes"

    @property
    def ranks_path(self) -> Path:
        return self.path / "ranks"

    @property
    def metrics_folder(self) -> Path:
        return self.path / "metrics"

    def metrics_path(self, attempt: int) -> Path:
        return self.metrics_folder / f"attempt-{attempt:04d}.jsonl"

    def events_path(self, attempt: int) -> Path:
        return self.path / "events" / f"attempt-{attempt:04d}.jsonl"

    def log_path(self, attempt: int, rank: int) -> Path:
        return self.path / "logs" / f"attempt-{attempt:04d}" / f"rank-{rank}.log"

    # --- small documents ----------------------------------------------------------------------------------------------

    def create(self, spec_json: str) -> None:
        self.write_document("job.json", json.loads(spec_json))

    def write_document(self, name: str, document: Mapping[str, Any]) -> None:
        """Replaces the document at once: a reader sees the old one or the new one."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        partial.write_text(json.dumps(document), encoding="utf-8")
        partial.replace(path)

    def read_document(self, name: str) -> dict[str, Any] | None:
        try:
            document: dict[str, Any] = json.loads((self.path / name).read_bytes())
        except FileNotFoundError:
            return None
        return document

    # --- series -------------------------------------------------------------------------------------------------------

    def series(self, keys: Collection[str] | None = None) -> dict[str, Series]:
        """Each series of all attempts (those of ``keys`` only, when given). A key without points is not in the result."""
        return SeriesReader(self.metrics_folder).read(keys)

    def gradient_matrix(
        self, first_step: int | None = None, last_step: int | None = None, max_points: int | None = None
    ) -> GradientMatrix:
        """The matrix layer x step. With ``max_points`` neighbouring steps share a row: the step with the largest norm stands for them."""
        reader = GradientReader(self.gradients_path)
        positions = reader.between(first_step, last_step)
        if max_points is not None:
            positions = reader.largest_of_each_stretch(positions, max_points)
        return reader.read(positions)

    def last_gradient_step(self) -> int:
        """-1 when there is none."""
        return max(GradientReader(self.gradients_path).steps.tolist()[-1:], default=-1)

    def last_probe_step(self) -> int:
        """-1 when there is none."""
        return probe_files.last_step(self.probes_path)

    def last_rank_step(self) -> int:
        """-1 when there is none."""
        return rank_files.last_step(self.ranks_path)

    # --- files --------------------------------------------------------------------------------------------------------

    def checkpoints(self) -> list[Manifest]:
        """Complete checkpoints, oldest first. Digests are recorded, not verified here."""
        return complete(folder_at(self.checkpoints_root))

    def model_files(self) -> list[tuple[str, int]]:
        """(relative path, bytes) of the finished model's files; empty while there is none."""
        files = (file for file in sorted(self.model_path.rglob("*")) if file.is_file())
        return [(str(file.relative_to(self.model_path)), file.stat().st_size) for file in files]

    def log_files(self, attempt: int | None = None, rank: int | None = None) -> list[LogFile]:
        found = []
        for path in sorted((self.path / "logs").glob("attempt-*/rank-*.log")):
            log = LogFile(int(path.parent.name[8:]), int(path.stem[5:]), path, path.stat().st_size)
            if attempt in (None, log.attempt) and rank in (None, log.rank):
                found.append(log)
        return sorted(found, key=lambda log: (log.attempt, log.rank))

    def events(self, attempt: int) -> list[dict[str, Any]]:
        return list(read_lines(self.events_path(attempt)))


# --- lines ------------------------------------------------------------------------------------------------------------


def encode(value: float) -> float | str:
    """JSON has no NaN and no infinity; they travel as text."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def decode(value: float | str) -> float:
    return NON_FINITE[value] if isinstance(value, str) else value


def append_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Appends rows as JSON lines with one write. A torn line of a killed writer is closed first, so that it spoils only itself."""
    import orjson

    text = b"".join(orjson.dumps(row) + b"\n" for row in rows)
    if not text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as stream:
        if stream.tell() and not _ends_with_newline(stream.fileno(), stream.tell()):
            text = b"\n" + text
        stream.write(text)


def _ends_with_newline(descriptor: int, size: int) -> bool:
    return os.pread(descriptor, 1, size - 1) == b"\n"


def read_lines(path: Path, offset: int = 0) -> Iterator[dict[str, Any]]:
    """The rows from byte ``offset`` on. Lines that are no JSON (torn by a kill) are passed over."""
    import orjson

    try:
        stream = path.open("rb")
    except FileNotFoundError:
        return
    with stream:
        stream.seek(offset)
        for line in stream:
            try:
                yield orjson.loads(line)
            except orjson.JSONDecodeError:
                continue


def read_last_lines(path: Path, size: int = 1 << 18) -> Iterator[dict[str, Any]]:
    """The rows in the last ``size`` bytes, without one that begins before them."""
    start = max(0, path.stat().st_size - size) if path.exists() else 0
    rows = read_lines(path, start)
    return rows if start == 0 else (row for row in rows if isinstance(row, dict))
