"""What the control plane allows for scripts: they cannot be interrupted like a loop of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service import jobs, repairs
from service.database import Store
from service.errors import Conflict
from service.fake_cluster import FakeCluster
from service.values import Status, WorkerRange
from tests.integration.databases import database_url, postgres, sqlite_url, store  # noqa: F401 (fixtures)
from tests.integration.worlds import CALLER, World
from workers.repair import requests

# ruff: noqa: F811 (fixtures are imported and then named as parameters)

pytestmark = [pytest.mark.integration, pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)]


def world(store: Store, tmp_path: Path) -> World:
    return World(store, tmp_path, FakeCluster(steps=None))


def task(**changes: Any) -> dict[str, Any]:
    return {"kind": "script", "code": {"path": "/code"}, "entry": "train.py", **changes}


def test_a_running_script_is_not_paused_by_accident(store: Store, tmp_path: Path) -> None:
    here = world(store, tmp_path)
    job = here.create(task=task())
    here.run_until(job, Status.RUNNING)
    with pytest.raises(Conflict, match=r"task\.resumable: true"):
        jobs.pause_job(store, CALLER, job)
    assert here.job(job).status is Status.RUNNING


def test_one_that_goes_on_by_itself_is(store: Store, tmp_path: Path) -> None:
    here = world(store, tmp_path)
    job = here.create(task=task(resumable=True))
    here.run_until(job, Status.RUNNING)
    jobs.pause_job(store, CALLER, job)
    here.run_until(job, Status.PAUSED)
    jobs.resume_job(store, CALLER, job)
    here.run_until(job, Status.RUNNING)


def test_one_in_the_queue_may_be_paused_and_changed(store: Store, tmp_path: Path) -> None:
    here = world(store, tmp_path)
    job = here.create(task=task())
    jobs.update_job(store, CALLER, job, workers=WorkerRange(2, 2))
    jobs.pause_job(store, CALLER, job)
    assert here.job(job).status is Status.PAUSED


def test_the_number_of_its_workers_is_fixed_while_it_runs(store: Store, tmp_path: Path) -> None:
    here = world(store, tmp_path)
    job = here.create(task=task())
    here.run_until(job, Status.RUNNING)
    with pytest.raises(Conflict, match="fixed while it runs"):
        jobs.update_job(store, CALLER, job, workers=WorkerRange(2, 2))


def test_its_rate_can_be_changed_where_it_may_be_repaired(store: Store, tmp_path: Path) -> None:
    here = world(store, tmp_path)
    for health in ({}, {"mode": "repair"}):
        job = here.create(task=task(), health=health)
        here.run_until(job, Status.RUNNING)
        if health:
            asked = repairs.steer(store, CALLER, job, tmp_path / "requests", learning_rate=1e-4)
            assert [each.id for each in requests.asked(tmp_path / "requests", ())] == [asked.id]
        else:
            with pytest.raises(Conflict, match=r"with health\.mode repair only, not with advise"):
                repairs.steer(store, CALLER, job, tmp_path / "requests", learning_rate=1e-4)


@pytest.mark.parametrize("resumable", [False, True])
def test_a_job_of_higher_priority_never_makes_one_begin_anew(store: Store, tmp_path: Path, resumable: bool) -> None:
    here = world(store, tmp_path)
    workers = {"cpus": 2}
    script = here.create(task=task(resumable=resumable), workers=workers)
    here.run_until(script, Status.RUNNING)
    here.run_pass(60)
    urgent = here.create(workers=workers, priority=5)
    if resumable:
        here.run_until(urgent, Status.RUNNING)
        assert here.job(script).status is Status.QUEUED
        return
    for _ in range(5):
        here.run_pass(2)
    assert here.job(script).status is Status.RUNNING
    assert here.job(urgent).waiting == (
        f"waits for script {script} of lower priority, which would begin anew after a pause (task.resumable is false)"
    )
