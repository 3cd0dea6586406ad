"""Rows of numbers: scikit-learn's breast cancer set, CSV and Parquet files."""

from __future__ import annotations

import os
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from workers.kinds.tables import BreastCancerData, TableData, TabularTask
from workers.sources.arrays import SPLIT_SEED, builtin_rows, stratified_holdout
from workers.sources.problems import BadDataError

if TYPE_CHECKING:
    import pandas

MAX_CATEGORIES = 1000  # of one column; each is an input of the network
LARGEST = 1e100  # its square is still a number
Objective = Literal["classification", "regression"]


@dataclass(frozen=True)
class Rows:
    """``features`` (N, F) float64, NaN where missing, of categories their code; ``targets`` (N,) int64 classes or float64 values.

    Standardised before they become float32: a time in seconds has more digits than that has room for.
    """

    features: NDArray[np.float64]
    targets: NDArray[Any]
    rows: NDArray[np.int64] | None = None  # (N,) of the file, where a part is held out; None: all, in their order


@dataclass(frozen=True)
class Tables:
    train: Rows
    evaluation: Rows
    feature_names: tuple[str, ...]
    class_names: tuple[str, ...]  # empty for regression
    categories: Mapping[str, tuple[str, ...]] = field(
        default_factory=dict
    )  # of each categorical feature, in order of their codes


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
    categories = {name: _categories(frame, name) for name in _categorical(frame, data)}
    read = partial(
        _rows, names=names, target=data.target, classes=class_names, categories=categories, missing=data.missing
    )
    rows = read("task.data.path", frame)
    if data.evaluation_path is not None:
        other = _frame("task.data.evaluation_path", data.evaluation_path, data.source)
        return Tables(rows, read("task.data.evaluation_path", other), names, class_names, categories)
    size = round(len(rows.targets) * data.holdout)
    if not 0 < size < len(rows.targets):
        raise BadDataError("task.data.holdout", f"{data.holdout} of {len(rows.targets)} rows leaves a part without any")
    if class_names:
        held_out = stratified_holdout(rows.targets, size)
    else:
        held_out = np.zeros(len(rows.targets), dtype=np.bool_)
        held_out[np.random.default_rng(SPLIT_SEED).permutation(len(rows.targets))[:size]] = True
    return Tables(_take(rows, ~held_out), _take(rows, held_out), names, class_names, categories)


def _categorical(frame: pandas.DataFrame, data: TableData) -> list[str]:
    _need(frame, data.categorical or [], "task.data.categorical")
    return list(dict.fromkeys(data.categorical or ()))


def _categories(frame: pandas.DataFrame, name: str) -> tuple[str, ...]:
    values = sorted({text for text in map(category, frame[name].tolist()) if text is not None})
    if not 1 <= len(values) <= MAX_CATEGORIES:
        raise BadDataError(
            "task.data.categorical", f"column {name!r} has {len(values)} categories; allowed is 1 to {MAX_CATEGORIES}"
        )
    return tuple(values)


def category(value: Any) -> str | None:
    """The name of a category; None: missing. 3.0 is 3: a column of numbers with a gap is read as floats."""
    if value is None or value != value:
        return None
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def codes_of(values: Iterable[Any], categories: Sequence[str]) -> NDArray[np.float64]:
    """What was not seen in training, or is missing, has the code after the last one."""
    known: dict[str | None, int] = {name: code for code, name in enumerate(categories)}
    return np.array([known.get(category(value), len(categories)) for value in values], dtype=np.float64)


def _take(rows: Rows, mask: NDArray[np.bool_]) -> Rows:
    return Rows(rows.features[mask], rows.targets[mask], np.flatnonzero(mask))


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


def _rows(
    where: str,
    frame: pandas.DataFrame,
    *,
    names: tuple[str, ...],
    target: str,
    classes: tuple[str, ...],
    categories: Mapping[str, tuple[str, ...]],
    missing: str,
) -> Rows:
    _need(frame, list(names), "task.data.features")
    _need(frame, [target], "task.data.target")
    columns = [
        _codes(where, frame, name, categories[name], missing)
        if name in categories
        else _numbers(where, frame, name, missing)
        for name in names
    ]
    features = np.column_stack(columns)
    if not classes:
        return Rows(features, _numbers(where, frame, target, "error"))
    codes = {name: code for code, name in enumerate(classes)}
    labels = [codes.get(str(value), -1) for value in frame[target].tolist()]
    if -1 in labels:
        row = labels.index(-1)
        raise BadDataError(
            where, f"row {row}: class {frame[target].tolist()[row]!r} does not occur in the training rows"
        )
    return Rows(features, np.array(labels, dtype=np.int64))


def _codes(
    where: str, frame: pandas.DataFrame, name: str, categories: tuple[str, ...], missing: str
) -> NDArray[np.float64]:
    empty = frame[name].isna().to_numpy()
    if missing == "error" and empty.any():
        raise BadDataError(where, f"column {name!r} is empty in row {int(empty.argmax())}; missing: mean allows that")
    return codes_of(frame[name].tolist(), categories)


def _numbers(where: str, frame: pandas.DataFrame, name: str, missing: str) -> NDArray[np.float64]:
    column = frame[name]
    if column.dtype.kind not in "iufb":
        import pandas

        texts = (pandas.to_numeric(column, errors="coerce").isna() & column.notna()).to_numpy()
        row = int(texts.argmax())
        raise BadDataError(
            where,
            f"column {name!r} must be numbers; row {row} has {str(column.iloc[row])[:40]!r}. Columns of names go into categorical",
        )
    values: NDArray[np.float64] = column.to_numpy(dtype=np.float64)
    empty = np.isnan(values)
    if empty.any() and (missing == "error" or empty.all()):
        instead = "; missing: mean allows that" if name and missing == "error" and not empty.all() else ""
        raise BadDataError(where, f"column {name!r} is empty or NaN in row {int(empty.argmax())}{instead}")
    bad = ~empty & ~(np.abs(values) < LARGEST)
    if bad.any():
        raise BadDataError(where, f"column {name!r} is infinite or beyond {LARGEST:g} in row {int(bad.argmax())}")
    return values
