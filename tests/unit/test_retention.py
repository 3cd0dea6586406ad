"""Which checkpoints stay after one is published."""

from __future__ import annotations

from pathlib import Path

import pytest
from upath import UPath

from workers.checkpoint_folders import (
    INDEX,
    STATE,
    Key,
    Manifest,
    Retention,
    complete,
    folder_of,
    prune,
    stored,
    write_manifest,
)

pytestmark = pytest.mark.unit


def publish(root: Path, step: int, generation: int = 1, loss: float | None = 1.0, verdict: str = "unknown") -> Key:
    folder = folder_of(UPath(root), step, generation)
    folder.mkdir(parents=True)
    files = {INDEX: b"index", STATE: b"{}"}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    metrics = {} if loss is None else {"eval/loss": loss}
    listed = tuple(stored(name, content) for name, content in files.items())
    write_manifest(Manifest(folder, step, generation, 1.8e9, 1, metrics, verdict, listed))
    return Key(step, generation)


def left(root: Path) -> list[tuple[int, int]]:
    return sorted((int(path.name[5:15]), int(path.name[-6:])) for path in root.iterdir())


def pruned(root: Path, newest: Key, keep_last: int = 1, keep_best: int = 0, mode: str = "min") -> list[tuple[int, int]]:
    prune(UPath(root), Retention(keep_last, keep_best, "eval/loss", mode), newest)
    return left(root)


@pytest.mark.parametrize(
    ("keep_last", "keep_best", "mode", "kept"),
    [
        (1, 0, "min", [50]),
        (2, 1, "min", [20, 40, 50]),
        (1, 2, "max", [10, 30, 50]),
        (9, 0, "min", [10, 20, 30, 40, 50]),
    ],
)
def test_the_last_and_the_best_stay(tmp_path: Path, keep_last: int, keep_best: int, mode: str, kept: list[int]) -> None:
    for step, loss in ((10, 9.0), (20, 1.0), (30, 5.0), (40, 3.0), (50, 2.0)):
        newest = publish(tmp_path, step, loss=loss)
    assert [step for step, _ in pruned(tmp_path, newest, keep_last, keep_best, mode)] == kept


def test_the_last_healthy_one_stays_however_old(tmp_path: Path) -> None:
    for step, verdict in ((10, "healthy"), (20, "healthy"), (30, "warning"), (40, "unknown"), (50, "critical")):
        newest = publish(tmp_path, step, verdict=verdict)
        pruned(tmp_path, newest)
    assert left(tmp_path) == [(20, 1), (50, 1)]
    assert pruned(tmp_path, publish(tmp_path, 60, verdict="healthy")) == [(60, 1)]


def test_one_without_the_metric_is_never_the_best(tmp_path: Path) -> None:
    publish(tmp_path, 10, loss=None)
    publish(tmp_path, 20, loss=5.0)
    assert pruned(tmp_path, publish(tmp_path, 30, loss=9.0), keep_best=2) == [(20, 1), (30, 1)]


def test_unfinished_ones_go_unless_a_later_group_is_at_them(tmp_path: Path) -> None:
    for step, generation in ((10, 1), (30, 1), (30, 2), (30, 3)):
        folder_of(UPath(tmp_path), step, generation).mkdir(parents=True)
    assert pruned(tmp_path, publish(tmp_path, 20, generation=2)) == [(20, 2), (30, 3)]


def test_what_another_future_left_is_gone_and_does_not_count(tmp_path: Path) -> None:
    """Training went back to step 20, before a damaged or unhealthy checkpoint: the new one of step 30 must not be the one that goes."""
    for step in (10, 20, 40, 50):
        publish(tmp_path, step, generation=1)
    assert pruned(tmp_path, publish(tmp_path, 30, generation=2), keep_last=2) == [(20, 1), (30, 2)]


def test_a_group_that_lags_behind_removes_nothing_of_a_later_one(tmp_path: Path) -> None:
    publish(tmp_path, 50, generation=2)
    assert pruned(tmp_path, publish(tmp_path, 30, generation=1)) == [(30, 1), (50, 2)]


def test_the_same_step_of_an_earlier_group_goes(tmp_path: Path) -> None:
    publish(tmp_path, 10, generation=1)
    publish(tmp_path, 20, generation=1)
    assert pruned(tmp_path, publish(tmp_path, 20, generation=2), keep_last=2) == [(10, 1), (20, 2)]


def test_listed_are_complete_ones_oldest_first(tmp_path: Path) -> None:
    for step, generation in ((20, 1), (10, 1), (20, 2)):
        publish(tmp_path, step, generation)
    folder_of(UPath(tmp_path), 30, 1).mkdir()
    (folder_of(UPath(tmp_path), 10, 1) / "manifest.json").write_text("{")
    (tmp_path / "notes.txt").write_text("mine")
    assert [found.key for found in complete(UPath(tmp_path))] == [(20, 2)]
    assert complete(UPath(tmp_path) / "nowhere") == []
