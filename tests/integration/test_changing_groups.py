"""Groups that change while they train, on a real Ray: frozen workers, other numbers of them, pauses, a controller that dies too."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import Any

import numpy as np
import psutil
import pytest

from tests.helpers import wait_for
from tests.integration.groups import at_work, long, slow
from workers import launcher
from workers.reports import ReasonCode, StopMode

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_driver")]


def losses(group: Any) -> np.ndarray:
    """Every step's loss; fails when a step was told twice, or not at all."""
    paths = sorted(group.folder.path.glob("metrics/*"))
    rows = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    steps = [row["step"] for row in rows if "train/loss" in row["values"]]
    assert steps == list(range(1, steps[-1] + 1)), "each step once, in order"
    return np.array([row["values"]["train/loss"] for row in rows if "train/loss" in row["values"]])


def test_a_frozen_worker_is_found_and_replaced(groups: Any) -> None:
    """Would catch a group that waits for the timeout of its process group, and a stack that nobody took."""
    group = groups(long(checkpoint={}))
    victim = at_work(group.until_step(200))[1]
    os.kill(victim.pid, signal.SIGSTOP)
    stopped_at = time.time()
    group.until("the recovery", lambda seen: seen.recoveries)
    told = group.events("worker.hung")
    assert [(event.data["rank"], event.data["pid"]) for event in told] == [(1, victim.pid)], [e.message for e in told]
    hung = told[0]
    assert hung.timestamp - stopped_at < 10 + 8, "found within 10 s; stacks are taken before it is told"
    assert set(hung.data["stacks"]) == {"0", "1"}
    assert "workers/train.py" in hung.data["stacks"]["0"]
    assert "train" in hung.data["stacks"]["1"]
    assert not psutil.pid_exists(victim.pid)
    end = group.finished()
    assert end.outcome.code is ReasonCode.COMPLETED
    losses(group)


@pytest.mark.parametrize(("first", "others"), [(2, (1, 2)), (1, (4, 2))])
def test_another_number_of_workers(groups: Any, first: int, others: tuple[int, ...]) -> None:
    """Would catch samples that are skipped or seen twice at a change, a step that is lost, and momentum that newcomers lack."""
    spec = slow(
        workers={"min": 1, "max": 4, "cpus": 0.5, "threads": 1},
        optimizer={"name": "sgd", "learning_rate": 3e-3, "momentum": 0.9},  # does not blow roundings up as Adam does
    )
    fixed = groups(spec, workers=1)
    fixed.finished()
    group = groups(spec, workers=first)
    for at, count in zip((100, 300), others, strict=True):
        group.until_step(at)
        group.reshape(count)
        group.until(
            f"{count} workers", lambda seen, count=count: len(at_work(seen)) == count and seen.phase == "running"
        )
    end = group.finished()
    assert end.outcome.code is ReasonCode.COMPLETED, end.outcome
    assert not end.recoveries, "nobody was lost"
    sizes = [len(event.data["workers"]) for event in group.events("workers.formed")]
    assert sizes[-2:] == list(others), "before these, an elastic job may have begun with fewer"
    np.testing.assert_allclose(losses(group), losses(fixed), rtol=0, atol=1e-4)


def test_a_pause_goes_on_bit_for_bit(groups: Any) -> None:
    undisturbed = groups(long())
    whole = undisturbed.finished()
    first = groups(long())
    first.until_step(333)
    launcher.stop(first.name, StopMode.PAUSE)
    end = first.finished()
    assert end.outcome.code is ReasonCode.PAUSED, end.outcome
    wait_for("the workers' end", lambda: not any(psutil.pid_exists(worker.pid) for worker in end.workers), 10)
    step = end.outcome.detail["steps"]
    assert first.folder.checkpoints()[-1].step == step
    second = groups(long(), job_id=first.job_id, number=2)
    again = second.finished()
    assert again.outcome.code is ReasonCode.COMPLETED
    (resumed,) = second.events("training.resumed")
    assert resumed.data["step"] == step
    assert again.outcome.detail["parameters_sha256"] == whole.outcome.detail["parameters_sha256"]
    np.testing.assert_array_equal(losses(second), losses(undisturbed))


def test_controller_and_worker_die_together(groups: Any) -> None:
    """Would catch a restarted controller that waits for a worker which died while nobody looked."""
    import ray

    group = groups(long(checkpoint={}))
    victim = at_work(group.until_step(100))[0]
    controller = ray.get(ray.get_actor(f"controller/{group.name}", namespace="chainrule").pid.remote())
    os.kill(controller, signal.SIGKILL)
    os.kill(victim.pid, signal.SIGKILL)
    end = group.finished()
    assert end.outcome.code is ReasonCode.COMPLETED, end.outcome
    assert [list(recovery.ranks) for recovery in end.recoveries] == [[0]]
    assert end.recoveries[0].source == "memory"
    losses(group)


def test_shards_that_are_lost_come_from_the_newest_checkpoint(groups: Any) -> None:
    spec = long(workers={"count": 2, "strategy": "fsdp"})
    whole = groups(spec).finished()
    group = groups(spec)
    os.kill(at_work(group.until_step(300))[1].pid, signal.SIGKILL)
    end = group.finished()
    assert end.outcome.code is ReasonCode.COMPLETED, end.outcome
    (recovery,) = end.recoveries
    assert recovery.source == "checkpoint"
    assert end.outcome.detail["parameters_sha256"] == whole.outcome.detail["parameters_sha256"]
    losses(group)
