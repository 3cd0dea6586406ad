"""What attempts leave behind on a Ray that goes on living: nothing but standbys. ``benchmarks/soak.py`` asks the same of the whole service."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.util.placement_group import placement_group_table

from tests.helpers import wait_for
from tests.integration.groups import DIGITS, at_work, long
from workers import launcher
from workers.ray_names import actors_of, kill_actor
from workers.reports import ReasonCode, StopMode

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_driver")]

STANDBYS = 2
ROUNDS = 4  # of three attempts, at the same time
RESTING = {"ray::TrainWorker", "ray::DashboardAgent", "ray::RuntimeEnvAgent"}
POOLS = 6  # descriptors that Ray's own pools may open for good; twelve attempts that leave one each are more


@pytest.fixture
def standbys() -> Iterator[None]:
    launcher.refill(STANDBYS)
    yield
    for name in actors_of(None, ("standby",)):
        kill_actor(name)


def three_attempts(groups: Any) -> None:
    """One that ends by itself, one that is cancelled, one that ends although a worker was killed."""
    alone = groups(DIGITS | {"training": {"steps": 5, "batch_size": 96}, "workers": {"count": 1}})
    cancelled = groups(long(training={"epochs": 10_000, "batch_size": 96}, workers={"count": 1}))
    hurt = groups(DIGITS | {"training": {"steps": 800, "batch_size": 96}})
    cancelled.until_step(1)
    launcher.stop(cancelled.name, StopMode.CANCEL)
    os.kill(at_work(hurt.until_step(1))[1].pid, signal.SIGKILL)
    ends = [group.finished() for group in (alone, cancelled, hurt)]
    completed, stopped = ReasonCode.COMPLETED, ReasonCode.CANCELLED
    assert [end.outcome.code for end in ends] == [completed, stopped, completed]
    assert len(ends[2].recoveries) == 1
    for group in (alone, cancelled, hurt):
        launcher.remove(group.name)  # the controller, as the control plane does once it has seen the end
    launcher.refill(STANDBYS)


def raylets() -> list[psutil.Process]:
    return [process for process in psutil.Process().children(recursive=True) if process.name() == "raylet"]


def processes() -> Counter[str]:
    """Those of Ray by what they are, but for idle workers, of which it keeps as many as it likes. What has ended and nobody collected counts."""
    found: Counter[str] = Counter()
    for raylet in raylets():
        for process in raylet.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                found[(process.cmdline() or [f"{process.status()} {process.name()}"])[0].split(" ")[0]] += 1
    del found["ray::IDLE"]
    return found


def abandoned_segments() -> set[str]:
    """Shared memory that no process has mapped, so that nobody will remove it."""
    mapped = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            mapped |= {line.partition("/dev/shm/")[2] for line in maps.read_text().splitlines()}
    return {path.name for path in Path("/dev/shm").iterdir()} - mapped


def descriptors() -> dict[str, int]:
    return {"driver": psutil.Process().num_fds(), "raylet": sum(raylet.num_fds() for raylet in raylets())}


@pytest.mark.timeout(400)
def test_attempts_leave_nothing_behind(groups: Any, standbys: None) -> None:
    """Would catch workers that nobody ends, room that stays reserved, and connections that a controller or this driver keeps."""
    three_attempts(groups)
    known = wait_for("rest", at_rest, 90)
    segments, files = abandoned_segments(), descriptors()
    for _ in range(ROUNDS):
        three_attempts(groups)
    assert wait_for("rest", at_rest, 90) == known
    assert abandoned_segments() <= segments
    now = descriptors()
    assert all(now[whose] <= files[whose] + POOLS for whose in now), f"{files} before, {now} after"


def at_rest() -> Counter[str] | None:
    """The processes, when only standbys are left in Ray, no room is reserved, and nothing is starting or ending any more."""
    reserved = [entry["name"] for entry in placement_group_table().values() if entry["state"] != "REMOVED"]
    actors = actors_of(None, ("controller", "worker", "standby"))
    if reserved or len(actors) != STANDBYS or not all(name.startswith("standby/") for name in actors):
        return None
    found = processes()
    return found if set(found) == RESTING and found["ray::TrainWorker"] == STANDBYS else None
