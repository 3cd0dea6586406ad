"""Who made which step of which samples, from what a job's folder tells: groups that change, are lost, and do steps again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workers.jobfolder import JobFolder, append_lines
from workers.kinds.image_data import FolderData
from workers.repair.acts import Act, Entry
from workers.sample_order import plan_of
from workers.sources import naming
from workers.spec import parse_spec
from workers.step_ledger import NoSuchStepError, StepLedger, UnknownStepError, ranks_of

pytestmark = pytest.mark.unit

JOB: dict[str, Any] = {
    "name": "cells",
    "task": {"kind": "tabular", "data": {"source": "breast_cancer"}},
    "training": {"steps": 100, "batch_size": 10},
}
PLAN = plan_of(parse_spec(JOB), 455)


def folder_of(path: Path, **parts: Any) -> JobFolder:
    folder = JobFolder.at(path)
    folder.create(parse_spec({**JOB, **parts}).model_dump_json())
    return folder


def event(folder: JobFolder, attempt: int, at: float, type: str, **data: Any) -> None:
    row = {"sequence": 1, "timestamp": at, "level": "info", "type": type, "message": "", "data": data, "source": None}
    append_lines(folder.events_path(attempt), [row])


def started(folder: JobFolder, attempt: int, at: float, workers: int, step: int = 0, accumulate: int = 1) -> None:
    event(
        folder, attempt, at, "training.started", world_size=workers, accumulate=accumulate, train_samples=455,
        resumed_from=step or None, machine={"torch": "2"},
    )  # fmt: skip


def steps(folder: JobFolder, attempt: int, numbers: Sequence[int], at: float) -> None:
    """A step a second."""
    values = {"train/loss": 0.5, "gradient/norm": "NaN", "train/learning_rate": 0.1}
    rows = [{"step": n, "timestamp": at + place, "values": values} for place, n in enumerate(numbers)]
    append_lines(folder.metrics_path(attempt), rows)


def test_a_job_of_one_group(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    started(folder, 1, 10.0, 3, accumulate=2)
    steps(folder, 1, range(1, 61), 11.0)
    ledger = StepLedger(folder)
    made = ledger.step(47)
    assert (made.epoch, made.group.world_size, made.group.accumulate, made.group.attempt) == (1, 3, 2, 1)
    assert (made.recorded.loss, made.recorded.learning_rate, made.recorded.at) == (0.5, 0.1, 57.0)
    assert made.recorded.norm is not None
    assert np.isnan(made.recorded.norm)
    ranks = [made.of_rank(rank) for rank in range(3)]
    assert sorted(index for rank in ranks for index in rank.indices.tolist()) == sorted(PLAN.step_indices(46).tolist())
    assert [rank.microbatches for rank in ranks] == [(2, 2), (2, 1), (1, 2)]
    assert made.samples == 10
    for step in (0, 61):
        with pytest.raises(NoSuchStepError, match="steps 1 to 60"):
            ledger.step(step)


def test_groups_that_take_over_from_memory(tmp_path: Path) -> None:
    """One of two workers is lost after step 6, another comes after step 9, and memory ran out there: more microbatches."""
    folder = folder_of(tmp_path)
    started(folder, 1, 0.0, 2)
    steps(folder, 1, range(1, 7), 1.0)
    event(folder, 1, 10.0, "training.continued", step=6, world_size=1, accumulate=1)
    steps(folder, 1, range(7, 10), 11.0)
    event(folder, 1, 20.0, "training.continued", step=9, world_size=2, accumulate=2)
    steps(folder, 1, range(10, 12), 21.0)
    ledger = StepLedger(folder)
    made = {step: ledger.step(step).group for step in (6, 7, 9, 10)}
    assert [(group.world_size, group.accumulate) for group in made.values()] == [(2, 1), (1, 1), (1, 1), (2, 2)]
    assert [(each.first, each.last) for each in ledger.lineage(11)] == [(1, 6), (7, 9), (10, 11)]
    assert ledger.step(11).group.machine == {"torch": "2"}


def test_a_step_that_was_made_twice_is_the_one_that_is_recorded(tmp_path: Path) -> None:
    """Two workers made steps up to 8 and were lost; one goes on from the checkpoint of step 5. What is recorded of 6 to 8 is the two's (the
    service keeps what was told first), and the state of step 12 is the one's."""
    folder = folder_of(tmp_path)
    started(folder, 1, 0.0, 2)
    steps(folder, 1, range(1, 9), 1.0)
    started(folder, 2, 100.0, 1, step=5)
    steps(folder, 2, range(9, 13), 104.0)
    ledger = StepLedger(folder)
    assert [ledger.step(step).group.world_size for step in (5, 7, 8, 9)] == [2, 2, 2, 1]
    assert ledger.step(9).group.attempt == 2
    assert [(each.first, each.last, each.group.world_size) for each in ledger.lineage(12)] == [(1, 5, 2), (6, 12, 1)]
    assert [(each.first, each.last) for each in ledger.lineage(7)] == [(1, 7)]


def test_acts_of_steps_that_were_left_behind_are_not_part_of_what_came_after(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    started(folder, 1, 0.0, 1)
    act = Act(1, 4, "lr_too_high", "live", "a lower rate", rate=0.1, probation=2)
    lost = Act(2, 7, "lr_too_high", "live", "an even lower rate", rate=0.01, instead_of=1, probation=2)
    event(folder, 1, 5.0, "repair.done", step=4, repair=Entry(act, "trial", {}).document())
    event(folder, 1, 8.0, "repair.taken_back", step=7, repair=Entry(act, "taken_back", {}, ended=7).document())
    event(folder, 1, 8.1, "repair.done", step=7, repair=Entry(lost, "trial", {}).document())
    steps(folder, 1, range(1, 9), 1.0)
    started(folder, 2, 100.0, 1, step=5)
    event(folder, 2, 102.0, "repair.kept", step=6, repair=Entry(act, "kept", {}, ended=6).document())
    steps(folder, 2, range(9, 11), 104.0)
    ledger = StepLedger(folder)
    (before, after) = ledger.lineage(10)
    assert [each.act for each in before.changes] == [act]
    assert [(each.act.number, each.act.verdict, each.act.step) for each in after.changes] == [(1, "kept", 6)]
    (alone,) = ledger.lineage(8)
    assert [each.act for each in alone.changes] == [act, lost], "the end of the first is part of the second"


def test_what_cannot_be_told_is_said(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "silent")
    steps(folder, 1, [1, 2], 1.0)
    with pytest.raises(UnknownStepError, match="was not recorded"):
        StepLedger(folder).step(2)
    with pytest.raises(NoSuchStepError, match="none yet"):
        StepLedger(folder_of(tmp_path / "young")).step(1)
    with pytest.raises(UnknownStepError, match=r"job\.json is missing"):
        StepLedger(JobFolder.at(tmp_path / "nothing"))


def test_earlier_versions_tell_no_microbatches(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, training={"steps": 9, "batch_size": 10, "accumulate": 2})
    event(folder, 1, 0.0, "training.started", world_size=2, train_samples=455, resumed_from=None)
    steps(folder, 1, [1], 1.0)
    group = StepLedger(folder).step(1).group
    assert (group.world_size, group.accumulate, group.machine) == (2, 2, {})


# --- names ------------------------------------------------------------------------------------------------------------


def test_rows_of_a_table_are_those_of_its_file(tmp_path: Path) -> None:
    """Held-out rows do not count: the third training sample need not be the third row."""
    file = tmp_path / "cells.csv"
    file.write_text("a,b,y\n" + "".join(f"{n},{n * n},{n % 2}\n" for n in range(50)))
    task = {
        "kind": "tabular",
        "data": {"source": "csv", "path": str(file), "target": "y"},
        "objective": "classification",
    }
    spec = parse_spec({**JOB, "task": task})
    name = naming.names_of(spec, 40)
    assert name is not None
    named = [name(index) for index in range(40)]
    assert len(set(named)) == 40
    assert named != [f"row {index} of {file}" for index in range(40)]
    from workers.sources.tables import read_table

    train = read_table(spec.task.data, "classification").train  # type: ignore[union-attr,arg-type]
    assert named[7] == f"row {int(train.features[7, 0])} of {file}"
    assert naming.names_of(spec, 41) is None, "it has other rows now"


def test_images_of_a_folder_are_files(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for number in range(5):
            (tmp_path / label / f"{number}.png").touch()
    spec = parse_spec(
        {**JOB, "task": {"kind": "image_classification", "data": {"source": "folder", "path": str(tmp_path)}}}
    )
    assert isinstance(spec.task.data, FolderData)  # type: ignore[union-attr]
    name = naming.names_of(spec, 8)
    assert name is not None
    assert all(Path(name(index)).is_file() for index in range(8))


def test_what_has_no_names_has_indices(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, task={"kind": "image_classification", "data": {"source": "digits"}})
    event(folder, 1, 0.0, "training.started", world_size=2, accumulate=1, train_samples=1437, resumed_from=None)
    steps(folder, 1, [1], 1.0)
    ledger = StepLedger(folder)
    ranks = ranks_of(ledger.spec, ledger.step(1), 3)
    assert [(each["samples"], len(each["indices"]), each["left_out"], each["names"]) for each in ranks] == [
        (5, 3, 2, None)
    ] * 2
