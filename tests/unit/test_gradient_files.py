"""The matrix of gradients on disk: what was asked for is read, and nothing that a writer left half written."""

from __future__ import annotations

import math
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from numpy.typing import NDArray

from workers.gradient_files import GradientReader, GradientWriter
from workers.jobfolder import JobFolder

pytestmark = pytest.mark.unit

LAYERS = tuple(f"layer{index}" for index in range(200))


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    return JobFolder(tmp_path, "job-1")


def write(folder: JobFolder, norms: NDArray[np.float32], first_step: int = 1, attempt: int = 1) -> None:
    writer = GradientWriter(folder.gradients_path, attempt)
    rows = list(enumerate(norms.tolist(), first_step))
    for start in range(0, len(rows), 64):
        writer.append(LAYERS[: norms.shape[1]], rows[start : start + 64])


def lognormal(steps: int, layers: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).lognormal(size=(steps, layers)).astype(np.float32)


def test_a_few_of_many_steps_cost_little_reading(folder: JobFolder) -> None:
    """Would catch a heat map for which a long run is read whole, at every refresh."""
    norms = lognormal(20_000, 200)
    norms[12_345, 7], norms[777, 3] = 1e6, math.nan
    write(folder, norms)
    whole = sum(path.stat().st_size for path in folder.gradients_path.iterdir())
    before = psutil.Process().io_counters().read_chars
    thin = folder.gradient_matrix(max_points=50)
    read = psutil.Process().io_counters().read_chars - before
    assert len(thin.steps) == 50
    assert {12_346, 778} <= set(thin.steps.tolist())
    np.testing.assert_array_equal(thin.norms, norms[thin.steps - 1])
    index, rows = 16 * 20_000, 50 * 4 * 200
    assert index + rows <= read < index + rows + 20_000
    assert read < whole / 30


@pytest.mark.parametrize("points", [2, 7, 50, 999, 1000, 5000])
def test_of_each_stretch_the_step_with_the_largest_norm_stays(folder: JobFolder, points: int) -> None:
    norms = lognormal(1000, 3)
    write(folder, norms)
    total = np.linalg.norm(norms.astype(np.float64), axis=1)
    expected = np.array(
        [stretch[total[stretch].argmax()] for stretch in np.array_split(np.arange(1000), points) if len(stretch)]
    )
    thin = folder.gradient_matrix(max_points=points)
    assert len(thin.steps) == min(points, 1000)
    if 1000 % points == 0 or points > 1000:  # where equal stretches can be cut in one way only
        np.testing.assert_array_equal(thin.steps, expected + 1)
    np.testing.assert_array_equal(thin.norms, norms[thin.steps - 1])


@pytest.mark.parametrize(("name", "cut"), [("norms", 5), ("index", 3), ("index", 16)])
def test_what_was_left_half_written_is_passed_over(folder: JobFolder, name: str, cut: int) -> None:
    """A kill between any two bytes; the controller that comes after goes on in a part of its own."""
    norms = lognormal(10, 4)
    write(folder, norms)
    (path,) = folder.gradients_path.glob(f"*.{name}")
    if name == "norms":  # rows are written before the index names them
        path.write_bytes(path.read_bytes() + b"\0" * cut)
    else:
        path.write_bytes(path.read_bytes()[:-cut])
    there = 10 if name == "norms" else 9
    assert folder.last_gradient_step() == there
    write(folder, norms[there:] if there < 10 else norms[:1], first_step=there + 1)
    matrix = folder.gradient_matrix()
    np.testing.assert_array_equal(matrix.steps, np.arange(1, there + 2))
    np.testing.assert_array_equal(matrix.norms[:9], norms[:9])


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """As on a disk that is full: writing beyond fails, after what there is room for was written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_after_a_full_disk_rows_are_where_the_index_says(folder: JobFolder) -> None:
    """Would catch rows that are shifted by half a row from then on."""
    norms = lognormal(30, 4)
    writer = GradientWriter(folder.gradients_path, 1)
    rows = list(enumerate(norms.tolist(), 1))
    writer.append(LAYERS[:4], rows[:10])
    with files_up_to(10 * 16 + 40), pytest.raises(OSError, match="File too large"):
        writer.append(LAYERS[:4], rows[10:20])
    writer.append(LAYERS[:4], rows[10:20])
    writer.append(LAYERS[:4], rows[20:])
    matrix = folder.gradient_matrix()
    np.testing.assert_array_equal(matrix.steps, np.arange(1, 31))
    np.testing.assert_array_equal(matrix.norms, norms)


def test_of_a_step_done_twice_the_later_row_counts(folder: JobFolder) -> None:
    norms = lognormal(12, 2)
    write(folder, norms[:8])
    write(folder, norms[6:] + 1, first_step=7, attempt=2)
    matrix = folder.gradient_matrix()
    np.testing.assert_array_equal(matrix.steps, np.arange(1, 13))
    np.testing.assert_array_equal(matrix.norms, np.concatenate([norms[:6], norms[6:] + 1]))


def test_jobs_of_earlier_versions_are_read_and_go_on(folder: JobFolder) -> None:
    norms = lognormal(30, 2)
    folder.gradients_path.mkdir(parents=True)
    for number, start in enumerate((0, 10)):
        columns = {"step": np.arange(start + 1, start + 11)} | {LAYERS[j]: norms[start : start + 10, j] for j in (0, 1)}
        path = folder.gradients_path / f"attempt-0001-part-{number:06d}.parquet"
        parquet.write_table(arrow.table(columns), path, compression="zstd")
    assert folder.last_gradient_step() == 20
    write(folder, norms[20:], first_step=21)
    matrix = folder.gradient_matrix()
    assert matrix.layers == LAYERS[:2]
    np.testing.assert_array_equal(matrix.norms, norms)
    part = folder.gradient_matrix(first_step=19, last_step=22)
    np.testing.assert_array_equal(part.steps, [19, 20, 21, 22])
    np.testing.assert_array_equal(part.norms, norms[18:22])


def test_for_other_programs_it_becomes_parquet(folder: JobFolder, tmp_path: Path) -> None:
    norms = lognormal(12_000, 2)
    write(folder, norms)
    tables = [parquet.read_table(path) for path in GradientReader(folder.gradients_path).export(tmp_path)]
    table = arrow.concat_tables(tables)
    assert table.column_names == ["step", *LAYERS[:2]]
    np.testing.assert_array_equal(table.column("step"), np.arange(1, 12_001))
    np.testing.assert_array_equal(table.column(LAYERS[1]), norms[:, 1])


def test_nothing_was_recorded_yet(folder: JobFolder) -> None:
    assert folder.last_gradient_step() == -1
    matrix = folder.gradient_matrix(first_step=3, max_points=10)
    assert (matrix.layers, matrix.norms.shape) == ((), (0, 0))
