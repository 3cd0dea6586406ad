"""A job is tried on one real worker before its group is taken: what is found, what is left, and what becomes of a trial that dies."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util.placement_group import placement_group_table

from tests.helpers import wait_for
from tests.integration.groups import DIGITS, Group
from tests.integration.test_custom_jobs import DIGITS as SOURCE
from tests.integration.test_custom_jobs import bundle
from workers.ray_names import NAMESPACE, actors_of, controller_name
from workers.reports import Observation, ReasonCode

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_driver")]


def own(source: str, tmp_path: Path, **health: Any) -> tuple[dict[str, Any], Path]:
    task = {"kind": "custom", "code": {"file": "file-1"}, "factory": "mine:build", "metrics": ["accuracy"]}
    spec = {
        "name": "own",
        "task": task,
        "training": {"epochs": 3, "batch_size": 96},
        "workers": {"count": 2},
        "health": {"preflight": True, **health},
    }
    return spec, bundle(tmp_path, mine=source)


def waits_once(marker: Path) -> str:
    """Whoever builds the model first waits for ever."""
    wait = f"import pathlib, time\n        seen = pathlib.Path({str(marker)!r})\n"
    wait += "        if not seen.exists():\n            seen.touch()\n            time.sleep(3600)\n        return nn.Sequential("
    return SOURCE.replace("return nn.Sequential(", wait, 1)


def types(seen: Observation) -> list[str]:
    return [event.type for event in seen.events]


def rooms(group: Group) -> list[str]:
    """Of trials."""
    found = placement_group_table().values()
    return [each["name"] for each in found if each["state"] != "REMOVED" and f"{group.name}/preflight" in each["name"]]


def trials(group: Group) -> list[str]:
    return [name for name in actors_of(group.name) if "/preflight" in name]


def test_a_rate_far_too_high_ends_the_job_before_a_group_is_taken(groups: Any) -> None:
    spec = DIGITS | {
        "optimizer": {"name": "sgd", "learning_rate": 1e5},
        "health": {"preflight": True, "on_critical": "stop"},
    }
    group = groups(spec)
    seen = group.finished()
    assert seen.outcome.code is ReasonCode.CRITICAL_FINDING, seen.outcome
    assert "before its workers were taken" in seen.outcome.message
    assert not seen.workers
    assert "workers.started" not in types(seen)
    assert seen.health["verdict"] == "critical"
    assert all(finding["evidence"]["preflight"] for finding in seen.health["findings"])
    assert not group.folder.series(), "of a trial nothing is measured"
    assert not group.folder.checkpoints()


def test_what_is_known_before_the_first_step_is_found_and_the_job_goes_on(groups: Any, tmp_path: Path) -> None:
    """Probabilities where the loss wants scores."""
    sick = SOURCE.replace("nn.Linear(self.hidden, 10),\n", "nn.Linear(self.hidden, 10),\n            nn.Softmax(1),\n")
    assert sick != SOURCE
    spec, packed = own(sick, tmp_path, on_critical="stop")
    group = groups(spec, bundle=packed)
    seen = group.finished()
    assert seen.outcome.code is ReasonCode.COMPLETED, seen.outcome
    told = [event.data["code"] for event in group.events("preflight.finding")]
    assert "output_activation" in told
    order = types(seen)
    assert order.index("preflight.done") < order.index("preflight.finding") < order.index("workers.started")
    assert not rooms(group)


def test_a_healthy_job_trains_the_same_as_without(groups: Any) -> None:
    plain, tried = groups(DIGITS), groups(DIGITS | {"health": {"preflight": True}})
    ends = [group.finished().outcome for group in (plain, tried)]
    assert [end.code for end in ends] == [ReasonCode.COMPLETED] * 2, ends
    assert ends[0].detail["parameters_sha256"] == ends[1].detail["parameters_sha256"]
    (done,) = tried.events("preflight.done")
    assert done.data["steps"] == 20
    assert "nothing is wrong" in done.message
    assert not plain.events("preflight.done")


def test_a_controller_that_dies_meanwhile_tries_again(groups: Any, tmp_path: Path) -> None:
    spec, packed = own(waits_once(tmp_path / "seen"), tmp_path)
    group = groups(spec, bundle=packed)
    wait_for("the trial", (tmp_path / "seen").exists, 60)
    left = trials(group)
    controller = ray.get_actor(controller_name(group.name), namespace=NAMESPACE)
    os.kill(ray.get(controller.pid.remote()), signal.SIGKILL)
    seen = group.finished()
    assert seen.outcome.code is ReasonCode.COMPLETED, seen.outcome
    assert len(group.events("preflight.done")) == 1
    assert left
    assert not trials(group)
    assert not rooms(group)


def test_a_trial_whose_worker_dies_is_passed_over(groups: Any, tmp_path: Path) -> None:
    spec, packed = own(waits_once(tmp_path / "seen"), tmp_path)
    group = groups(spec, bundle=packed)
    wait_for("the trial", (tmp_path / "seen").exists, 60)
    (name,) = trials(group)
    place = ray.get(ray.get_actor(name, namespace=NAMESPACE).begin.remote())
    os.kill(place.pid, signal.SIGKILL)
    seen = group.finished()
    assert seen.outcome.code is ReasonCode.COMPLETED, seen.outcome
    (failed,) = group.events("preflight.failed")
    assert "its worker was lost" in failed.message
    assert not rooms(group)
