"""Series that are followed while they are written: always what a reader who comes new would see, for the price of what is new."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.recorded_series import RecordedSeries
from workers.jobfolder import JobFolder, append_lines, encode, read_lines
from workers.metric_series import SeriesReader

pytestmark = pytest.mark.unit


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    return JobFolder(tmp_path, "job-1")


def write(folder: JobFolder, steps: range, attempt: int = 1, **values: float) -> None:
    encoded = {key: encode(value) for key, value in values.items()}
    rows = [{"step": step, "timestamp": float(step), "values": encoded | {"train/loss": 1 / step}} for step in steps]
    append_lines(folder.metrics_path(attempt), rows)


def bytes_read() -> int:
    return int(psutil.Process().io_counters().read_chars)


def test_only_what_is_new_is_read(folder: JobFolder) -> None:
    write(folder, range(1, 20_001))
    reader = SeriesReader(folder.metrics_folder)
    reader.read()
    write(folder, range(20_001, 20_011))
    before = bytes_read()
    series = reader.read(["train/loss"])["train/loss"]
    assert bytes_read() - before < 20_000  # of more than a megabyte
    np.testing.assert_array_equal(series.steps, np.arange(1, 20_011))
    np.testing.assert_array_equal(series.values, 1 / np.arange(1, 20_011))


def test_a_line_counts_when_its_end_is_there(folder: JobFolder) -> None:
    write(folder, range(1, 3))
    path, reader = folder.metrics_path(1), SeriesReader(folder.metrics_folder)
    line = b'{"step":3,"timestamp":3.0,"values":{"train/loss":0.5}}\n'
    with path.open("ab", buffering=0) as stream:
        for byte in line[:-1]:
            stream.write(bytes([byte]))
            assert reader.read()["train/loss"].steps[-1] == 2
        stream.write(line[-1:])
        assert reader.read()["train/loss"].steps[-1] == 3


def test_a_torn_line_spoils_only_itself(folder: JobFolder) -> None:
    write(folder, range(1, 3))
    path, reader = folder.metrics_path(1), SeriesReader(folder.metrics_folder)
    with path.open("ab") as stream:
        stream.write(b'{"step":3,"timest')
    reader.read()
    write(folder, range(4, 5))  # closes the torn line
    assert reader.read()["train/loss"].steps.tolist() == [1, 2, 4]


def test_a_folder_that_was_put_back_is_read_anew(folder: JobFolder, tmp_path: Path) -> None:
    write(folder, range(1, 5))
    reader = SeriesReader(folder.metrics_folder)
    shutil.copytree(folder.metrics_folder, tmp_path / "copy")
    write(folder, range(5, 9))
    assert len(reader.read()["train/loss"].steps) == 8
    shutil.rmtree(folder.metrics_folder)
    assert reader.read() == {}
    shutil.copytree(tmp_path / "copy", folder.metrics_folder)
    write(folder, range(5, 7))
    assert reader.read()["train/loss"].steps.tolist() == [1, 2, 3, 4, 5, 6]


ROWS = st.lists(
    st.tuples(
        st.integers(1, 2),  # attempt
        st.integers(0, 6),  # step
        st.dictionaries(st.sampled_from(["a", "b", "c"]), st.floats(width=32), min_size=1),
        st.booleans(),  # whether somebody reads just then
    ),
    max_size=30,
)


@settings(deadline=None, max_examples=100)
@given(rows=ROWS)
def test_following_equals_reading_at_the_end(
    rows: list[tuple[int, int, dict[str, float], bool]], tmp_path_factory: Any
) -> None:
    """Steps done twice, metrics that come and go, several attempts: of a step the later line counts, attempt after attempt."""
    folder = JobFolder(tmp_path_factory.mktemp("series"), "job-1")
    reader = SeriesReader(folder.metrics_folder)
    expected: dict[str, dict[int, float]] = {}
    for attempt, step, values, is_read in sorted(rows, key=lambda row: row[0]):
        encoded = {key: encode(value) for key, value in values.items()}
        append_lines(folder.metrics_path(attempt), [{"step": step, "timestamp": float(step), "values": encoded}])
        for key, value in values.items():
            expected.setdefault(key, {})[step] = value
        if is_read:
            reader.read()
    for found in (reader.read(), folder.series()):
        assert list(found) == sorted(expected)
        for key, by_step in expected.items():
            assert found[key].steps.tolist() == sorted(by_step)
            np.testing.assert_array_equal(found[key].values, [by_step[step] for step in sorted(by_step)])
            np.testing.assert_array_equal(found[key].timestamps, sorted(by_step))


def test_words_for_what_is_not_finite(folder: JobFolder) -> None:
    for step, value in enumerate([math.nan, math.inf, -math.inf, 1.5], 1):
        write(folder, range(step, step + 1), x=value)
    np.testing.assert_array_equal(folder.series(["x"])["x"].values, [math.nan, math.inf, -math.inf, 1.5])
    assert next(read_lines(folder.metrics_path(1)))["values"]["x"] == "NaN"


def test_readers_that_nobody_asked_for_longest_are_forgotten(tmp_path: Path) -> None:
    folders = [JobFolder(tmp_path, f"job-{number}") for number in range(4)]
    for folder in folders:
        write(folder, range(1, 1001))
    one = SeriesReader(folders[0].metrics_folder)
    one.read()
    kept = RecordedSeries(limit_bytes=2 * one.bytes_held)
    for number in (0, 1, 0, 2, 3):
        assert len(kept.read(folders[number], ["train/loss"])["train/loss"].steps) == 1000
        assert kept.bytes_held <= 2 * one.bytes_held
    before = bytes_read()
    kept.read(folders[3])
    assert bytes_read() - before < 1000
    kept.read(folders[0])  # was forgotten: read whole
    assert bytes_read() - before > folders[0].metrics_path(1).stat().st_size
