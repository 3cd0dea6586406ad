"""A run that is in MLflow alone, put back as a job's folder, so that everything that reads such a folder reads it.

Not all of it: specification, facts, series, norms, probes and rows of ranks are there; events, logs and checkpoints are not. Probes, rows of ranks,
and norms of an attempt that has not ended, are thinned when there are many (workers/watch/statistics_file.py). MLflow keeps infinity as the largest
double: it comes back.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.jobfolder import JobFolder, append_lines, encode
from workers.tracking_health import COPIED, FOLDER, GRADIENTS, STATISTICS
from workers.watch import statistics_file

if TYPE_CHECKING:
    from mlflow import MlflowClient

TIMEOUT_SECONDS = "60"  # a long series is one answer
LARGEST = sys.float_info.max  # MLflow's SQL store has it for infinity


def restore(
    run_id: str, tracking_uri: str, target: Path, wanted: Callable[[str], bool] = lambda key: True
) -> JobFolder:
    """``target``: an empty folder. ``wanted``: which series.

    Raises ValueError that names the run when MLflow does not have it, cannot be reached or has no series of Chainrule's there.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nobody else is called
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # else nobody there is told after minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", TIMEOUT_SECONDS)
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ModuleNotFoundError as error:
        raise ValueError("MLflow's client is not installed here: pip install 'chainrule[tracking]'") from error
    folder = JobFolder.at(target)
    try:
        client = MlflowClient(tracking_uri)
        keys = [key for key in client.get_run(run_id).data.metrics if wanted(key)]
        if not keys:
            raise ValueError(f"run {run_id} of MLflow at {tracking_uri} has no series of a training.")
        append_lines(folder.metrics_path(1), _lines(client, run_id, keys))
        _restore_files(client, run_id, folder)
    except (MlflowException, OSError) as error:
        raise ValueError(f"run {run_id} of MLflow at {tracking_uri}: {error}") from error
    return folder


def _lines(client: MlflowClient, run_id: str, keys: list[str]) -> Iterator[dict[str, Any]]:
    """One for each step, with what was measured at it."""
    rows: dict[int, dict[str, Any]] = {}
    for key in keys:
        for point in client.get_metric_history(run_id, key):
            row = rows.setdefault(point.step, {"step": point.step, "timestamp": point.timestamp / 1000, "values": {}})
            row["values"][key] = encode(_value(point.value))
    yield from (rows[step] for step in sorted(rows))


def _value(stored: float) -> float:
    return math.copysign(math.inf, stored) if abs(stored) == LARGEST else stored


def _restore_files(client: MlflowClient, run_id: str, folder: JobFolder) -> None:
    present = [file.path for parent in (FOLDER, GRADIENTS) for file in client.list_artifacts(run_id, parent)]
    with tempfile.TemporaryDirectory() as scratch:

        def fetched(path: str) -> Path:
            return Path(client.download_artifacts(run_id, path, scratch))

        for name in COPIED:
            if f"{FOLDER}/{name}" in present:
                shutil.move(fetched(f"{FOLDER}/{name}"), folder.path / name)
        folder.gradients_path.mkdir(parents=True)
        parquet = sorted(path for path in present if path.startswith(GRADIENTS) and path.endswith(".parquet"))
        for number, path in enumerate(parquet):
            shutil.move(fetched(path), folder.gradients_path / f"attempt-0001-part-{number:06d}.parquet")
        if f"{FOLDER}/{STATISTICS}" in present:
            statistics_file.restore(fetched(f"{FOLDER}/{STATISTICS}"), folder)
