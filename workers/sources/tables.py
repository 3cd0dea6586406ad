"""Rows of numbers: scikit-learn's breast cancer set, CSV and Parquet files."""

from __future__ import annotations

import os
import warnings
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from workers.kinds.tables import BreastCancerData, TableData, TabularTask
from workers.sources.arrays import SPLIT_SEED, builtin_rows, stratified_holdout
from workers.sources.problems import BadDataError

if TYPE_CHECKING:
    import pandas

LARGEST = 1e100  # its square is still a number
Objective = Literal["classification", "regression"]


@dataclass(frozen=True)
class Rows:
    """``features`` (N, F) float64; ``targets`` (N,) int64 classes or float64 values.

    Standardised before they become float32: a time in seconds has more digits than that has room for.
    """

    features: NDArray[np.float64]
    targets: NDArray[Any]


@dataclass(frozen=True)
class Tables:
    train: Rows
    evaluation: Rows
    feature_names: tuple[str, ...]
    class_names: tuple[str, ...]  # empty for regression


def training_samples(task: TabularTask) -> int:
    """How many rows there are to train on. Raises BadDataError for what cannot be used."""
    if isinstance(task.data, BreastCancerData):
        return 455
    return len(read_table(task.data, task.objective).train.targets)


def read_breast_cancer(_: BreastCancerData) -> Tables:
    """569 rows; a stratified fifth, 114 rows, is held out. Class 0 is malignant, 1 benign, as in scikit-learn."""
    table = np.array(builtin_rows("breast_cancer.csv", skip=1), dtype=np.float64)
    rows = Rows(table[:, :-1], table[:, -1].astype(np.int64))
    held_out = stratified_holdout(rows.targets, 114)
    names = tuple(f"{statistic}_{value}" for statistic in ("mean", "error", "worst") for value in _MEASURES)
    return Tables(_take(rows, ~held_out), _take(rows, held_out), names, ("malignant", "benign"))


_MEASURES = (
    "radius", "texture", "perimeter", "area", "smoothness", "compactness", "concavity", "concave_points", "symmetry",
    "fractal_dimension",
)  # fmt: skip


def read_table(data: TableData, objective: Objective) -> Tables:
    frame = _frame("task.data.path", data.path, data.source)
    names = tuple(data.features) if data.features else tuple(c for c in map(str, frame.columns) if c != data.target)
    if data.target in names:
        raise BadDataError(
            "task.data.features", f"{data.target!r} is the target; as a feature it would give the answer away"
        )
    if not names:
        raise BadDataError("task.data.features", f"{data.path} has no column besides the target")
    class_names = _class_names(frame, data.target) if objective == "classification" else ()
    rows = _rows("task.data.path", frame, names, data.target, class_names)
    if data.evaluation_path is not None:
        other = _frame("task.data.evaluation_path", data.evaluation_path, data.source)
        evaluation = _rows("task.data.evaluation_path", other, names, data.target, class_names)
        return Tables(rows, evaluation, names, class_names)
    size = round(len(rows.targets) * data.holdout)
    if not 0 < size < len(rows.targets):
        raise BadDataError("task.data.holdout", f"{data.holdout} of {len(rows.targets)} rows leaves a part without any")
    if class_names:
        held_out = stratified_holdout(rows.targets, size)
    else:
        held_out = np.zeros(len(rows.targets), dtype=np.bool_)
        held_out[np.random.default_rng(SPLIT_SEED).permutation(len(rows.targets))[:size]] = True
    return Tables(_take(rows, ~held_out), _take(rows, held_out), names, class_names)


def _take(rows: Rows, mask: NDArray[np.bool_]) -> Rows:
    return Rows(rows.features[mask], rows.targets[mask])


def _frame(field: str, path: str, source: str) -> pandas.DataFrame:
    import pandas
    import pyarrow

    if not os.path.isfile(path):
        raise BadDataError(field, f"there is no file {path}")
    try:
        frame = _read_csv(path) if source == "csv" else pandas.read_parquet(path)
    except (ValueError, OSError, EOFError, zlib.error, pyarrow.ArrowException) as error:
        raise BadDataError(field, f"{path} cannot be read as {source}: {error}") from error
    if frame.empty:
        raise BadDataError(field, f"{path} has no rows")
    return frame


def _read_csv(path: str) -> pandas.DataFrame:
    """Rows with more values than the header has names are an error: pandas would take the first column for names of rows, and every
    other column would stand under its neighbour's name."""
    import pandas

    with warnings.catch_warnings():
        warnings.simplefilter("error", pandas.errors.ParserWarning)
        try:
            return pandas.read_csv(path, index_col=False, compression=compression(path))
        except pandas.errors.ParserWarning as error:
            raise ValueError("a row has more values than its header has names") from error


def compression(path: str) -> Literal["gzip"] | None:
    """By the name; only gzip is read, for what other archives unpack to has no bound."""
    return "gzip" if path.endswith(".gz") else None


def _class_names(frame: pandas.DataFrame, target: str) -> tuple[str, ...]:
    _need(frame, [target], "task.data.target")
    column = frame[target]
    if column.isna().any():
        raise BadDataError(
            "task.data.target", f"column {target!r} is empty in row {int(column.isna().to_numpy().argmax())}"
        )
    try:
        values = sorted(column.unique().tolist())
    except TypeError as error:
        raise BadDataError("task.data.target", f"column {target!r} has values that are no classes: {error}") from error
    if not 2 <= len(values) <= 100_000:
        raise BadDataError(
            "task.data.target", f"column {target!r} has {len(values)} different values; classes need at least 2"
        )
    if column.dtype.kind == "f" and len(values) > 0.5 * len(column):
        raise BadDataError(
            "task.data.target", f"column {target!r} looks like numbers, not classes; use objective: regression"
        )
    return tuple(map(str, values))


def _need(frame: pandas.DataFrame, names: list[str], field: str) -> None:
    columns = list(map(str, frame.columns))
    missing = [name for name in names if name not in columns]
    if missing:
        raise BadDataError(field, f"there is no column {missing[0]!r}; there are: {', '.join(columns[:50])}")


def _rows(field: str, frame: pandas.DataFrame, names: tuple[str, ...], target: str, classes: tuple[str, ...]) -> Rows:
    _need(frame, list(names), "task.data.features")
    _need(frame, [target], "task.data.target")
    features = np.column_stack([_numbers(field, frame, name) for name in names])
    if not classes:
        return Rows(features, _numbers(field, frame, target))
    codes = {name: code for code, name in enumerate(classes)}
    labels = [codes.get(str(value), -1) for value in frame[target].tolist()]
    if -1 in labels:
        row = labels.index(-1)
        raise BadDataError(
            field, f"row {row}: class {frame[target].tolist()[row]!r} does not occur in the training rows"
        )
    return Rows(features, np.array(labels, dtype=np.int64))


def _numbers(field: str, frame: pandas.DataFrame, name: str) -> NDArray[np.float64]:
    column = frame[name]
    if column.dtype.kind not in "iufb":
        import pandas

        texts = pandas.to_numeric(column, errors="coerce").isna().to_numpy()
        row = int(texts.argmax())
        raise BadDataError(field, f"column {name!r} must be numbers; row {row} has {str(column.iloc[row])[:40]!r}")
    values: NDArray[np.float64] = column.to_numpy(dtype=np.float64)
    bad = ~(np.abs(values) < LARGEST)  # NaN too
    if bad.any():
        raise BadDataError(
            field, f"column {name!r} is empty, NaN, infinite or beyond {LARGEST:g} in row {int(bad.argmax())}"
        )
    return values
