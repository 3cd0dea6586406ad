"""A job's folder in storage: the only place that knows its layout. The controller writes it, the API reads it.

    job.json                                       the job specification
    controller.json                                what a restarted controller needs
    metrics/attempt-0001.jsonl                     {"step", "timestamp", "values": {series: value}}, one line a report
    gradients/attempt-0001-part-000000.parquet     step, then one column of norms a layer; at most 1,000 rows a part
    events/attempt-0001.jsonl                      the controller's events
    logs/attempt-0001/rank-0.log                   what the worker printed, each line with its time
    checkpoints/step-0000000100-g000001/           see workers/checkpoint_folders.py; may lie elsewhere
    model/                                         the finished model
    mlflow.json                                    the run and how far it has been told

Lines are appended whole; a torn last line (the writer was killed) is passed over. Of a step that was done twice, the later line counts.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.checkpoint_folders import Manifest, complete
from workers.storage import folder_at

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PART_ROWS = 1000
NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@dataclass(frozen=True)
class Series:
    """One metric over the run, sorted by step; the three arrays have the same length."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    timestamps: NDArray[np.float64]  # seconds since the epoch


@dataclass(frozen=True)
class GradientMatrix:
    """Norms of the layers' gradients: ``norms[i, j]`` is that of ``layers[j]`` (network order) at ``steps[i]``."""

    layers: tuple[str, ...]
    steps: NDArray[np.int64]  # (S,)
    norms: NDArray[np.float32]  # (S, L)


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
    def gradients_path(self) -> Path:
        return self.path / "gradients"

    def metrics_path(self, attempt: int) -> Path:
        return self.path / "metrics" / f"attempt-{attempt:04d}.jsonl"

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
        import numpy as np

        points: dict[str, dict[int, tuple[float, float]]] = {}
        for path in sorted((self.path / "metrics").glob("attempt-*.jsonl")):
            for row in read_lines(path):
                step, timestamp = row["step"], row["timestamp"]
                for key, value in row["values"].items():
                    if keys is None or key in keys:
                        points.setdefault(key, {})[step] = (decode(value), timestamp)
        found = {}
        for key, by_step in points.items():
            steps = sorted(by_step)
            table = np.array([by_step[step] for step in steps], dtype=np.float64)
            found[key] = Series(np.array(steps, dtype=np.int64), table[:, 0], table[:, 1])
        return found

    def gradient_matrix(
        self, first_step: int | None = None, last_step: int | None = None, max_points: int | None = None
    ) -> GradientMatrix:
        """The matrix layer x step. With ``max_points`` neighbouring steps share a row: the step with the largest norm stands for them."""
        import numpy as np
        import pyarrow.parquet as parquet

        layers: tuple[str, ...] = ()
        rows: dict[int, NDArray[np.float32]] = {}
        for path in sorted(self.gradients_path.glob("attempt-*.parquet")):
            table = parquet.read_table(path, filters=_step_filter(first_step, last_step))
            layers = tuple(name for name in table.column_names if name != "step")
            norms = np.column_stack([table.column(name).to_numpy() for name in layers]) if layers else None
            for index, step in enumerate(table.column("step").to_pylist()):
                if norms is not None:
                    rows[step] = norms[index]
        steps = np.array(sorted(rows), dtype=np.int64)
        matrix = np.array([rows[step] for step in steps], dtype=np.float32).reshape(len(steps), len(layers))
        if max_points is not None and len(steps) > max_points:
            chosen = _largest_of_each_bucket(matrix, max_points)
            steps, matrix = steps[chosen], matrix[chosen]
        return GradientMatrix(layers, steps, matrix)

    def last_gradient_step(self) -> int:
        """-1 when there is none."""
        import pyarrow.parquet as parquet

        parts = sorted(self.gradients_path.glob("attempt-*.parquet"))[-2:]
        steps = [parquet.read_table(path, columns=["step"]).column("step") for path in parts]
        return max((column[-1].as_py() for column in steps if len(column)), default=-1)

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


# --- gradients --------------------------------------------------------------------------------------------------------


class GradientWriter:
    """Writes the matrix as Parquet parts. The open part is written anew at each ``append`` and replaced at once, so that what is on disk
    is always readable; ``append`` returns when it is there."""

    def __init__(self, folder: Path, attempt: int) -> None:
        self._folder, self._attempt = folder, attempt
        self._part, self._layers = 0, tuple[str, ...]()
        self._rows: list[tuple[int, Sequence[float]]] = []
        parts = sorted(folder.glob(f"attempt-{attempt:04d}-part-*.parquet"))
        if parts:  # a restarted controller begins a part of its own
            self._part = int(parts[-1].stem.rpartition("-")[2]) + 1

    def append(self, layers: Sequence[str], rows: Sequence[tuple[int, Sequence[float]]]) -> None:
        if self._layers and tuple(layers) != self._layers:
            self._next_part()
        self._layers = tuple(layers)
        for start in range(0, len(rows), PART_ROWS):
            self._rows.extend(rows[start : start + PART_ROWS])
            self._write()
            if len(self._rows) >= PART_ROWS:
                self._next_part()

    def _next_part(self) -> None:
        self._part += 1
        self._rows = []

    def _write(self) -> None:
        import numpy as np
        import pyarrow as arrow
        import pyarrow.parquet as parquet

        norms = np.array([norms for _, norms in self._rows], dtype=np.float32)
        columns: dict[str, NDArray[Any]] = {"step": np.array([step for step, _ in self._rows], dtype=np.int64)}
        columns |= {layer: norms[:, index] for index, layer in enumerate(self._layers)}
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"attempt-{self._attempt:04d}-part-{self._part:06d}.parquet"
        partial = path.with_suffix(".partial")
        parquet.write_table(arrow.table(columns), partial, compression="zstd")
        partial.replace(path)


def _step_filter(first: int | None, last: int | None) -> list[tuple[str, str, int]] | None:
    conditions = [("step", ">=", first)] if first is not None else []
    conditions += [("step", "<=", last)] if last is not None else []
    return conditions or None


def _largest_of_each_bucket(matrix: NDArray[np.float32], points: int) -> NDArray[np.int64]:
    """Rows to keep: of each of ``points`` runs of neighbouring rows the one with the largest norm, so that no spike is lost."""
    import numpy as np

    total = np.square(np.nan_to_num(matrix.astype(np.float64), nan=np.inf, posinf=np.inf)).sum(axis=1)
    edges = np.linspace(0, len(matrix), points + 1).astype(np.int64)
    return np.array([start + int(np.argmax(total[start:end])) for start, end in itertools.pairwise(edges)])
