"""Workers killed at random moments: how long until the next step, whether anything is lost, and what share of the time is useful.

Ours: one job of two workers in the running service with its default of two standbys. A worker, chosen at random, is killed by pid with SIGKILL;
once the service has recorded the recovery and a random 0.5 to 8 s have passed, the next: some kills find a new standby waiting and some do not.
Measured from the clock before the kill to the time stamp of the first step that the new group has done. Afterwards the weights must be those of an
undisturbed run of the same job, bit for bit, and MLflow must have each step exactly once.

Theirs: Ray Train's TorchTrainer on the same cluster with ``FailureConfig(max_failures=-1)`` and a checkpoint every 10 steps, killed in the same way;
measured to any step that new workers have done, also one that had been done before. Half of its kills come before ours and half after.

Then, with the service alone, a kill a minute: the share of the wall time that the distinct steps of the run would have taken without any.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil

from benchmarks.measure import medians, write
from benchmarks.stack import Stack, stack
from workers.jobfolder import JobFolder, read_lines

T = TypeVar("T")

STANDBY_SECONDS = 20.0  # until new standbys wait
CALIBRATION_STEPS = 150
CHECKPOINT_EVERY = 10  # steps of the peer
SHORTEST_PAUSE = 0.5  # seconds between a recovery and the next kill
KILL_EVERY_SECONDS = 60.0
DISTURBED_SECONDS = 15.0  # after a kill, in which steps do not count as usual ones


def job(steps: int) -> dict[str, Any]:
    """3.3 million parameters; a step takes 50 to 100 ms on a processor of these years."""
    return {
        "name": "recovery",
        "task": {
            "kind": "image_classification",
            "data": {"source": "digits"},
            "model": {"architecture": "mlp", "hidden": [1024, 1024, 1024, 1024]},
        },
        "training": {"steps": steps, "batch_size": 256},
        "optimizer": {"name": "adamw", "learning_rate": 1e-4},
        "workers": {"count": 2, "threads": 1},
        "evaluation": {"every_steps": 10**6},
    }


def wait_until(what: str, look: Callable[[], T | None], seconds: float = 120.0, pause: float = 0.1) -> T:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = look()
        if found is not None:
            return found
        time.sleep(pause)
    raise TimeoutError(what)


def kill(pid: int) -> float:
    """SIGKILL for a process beneath this one; returns when, in seconds since the epoch."""
    if pid not in {process.pid for process in psutil.Process().children(recursive=True)}:
        raise RuntimeError(f"{pid} is not a process of this benchmark")
    at = time.time()
    os.kill(pid, signal.SIGKILL)
    return at


# --- ours -------------------------------------------------------------------------------------------------------------


class Job:
    """A job in the service, and what it has left in its folder."""

    def __init__(self, running: Stack, spec: dict[str, Any]) -> None:
        self.running = running
        self.id: str = running.client.create_job(spec)["id"]
        self.folder = JobFolder(running.home / "storage", self.id)

    def at_work(self, recoveries: int) -> list[dict[str, Any]] | None:
        """The workers, by rank, when the group works after so many recoveries. None: not yet. RuntimeError when the job has ended."""
        seen = self.running.client.get_job(self.id)
        if seen["finished_at"]:
            raise RuntimeError(f"the job has ended ({seen['status']}) after {seen['recoveries']} recoveries")
        workers = [worker for worker in seen["workers"] if worker["state"] == "running"]
        stepped = seen["progress"] is not None and seen["progress"]["step"] > 0
        whole = seen["recoveries"] == recoveries and stepped and len(workers) == 2
        return sorted(workers, key=lambda worker: worker["rank"]) if whole else None

    def kill_one(self, recoveries: int, chance: random.Random, longest_pause: float) -> dict[str, Any]:
        """Kills one of the two workers some time after the group works."""
        workers = wait_until(f"recovery {recoveries}", lambda: self.at_work(recoveries))
        time.sleep(chance.uniform(SHORTEST_PAUSE, longest_pause))
        victim = chance.choice(workers)
        return {"rank": victim["rank"], "pid": victim["pid"], "killed_at": kill(victim["pid"])}

    def finish(self) -> None:
        self.running.finish(self.id, 1200)

    def parameters_sha256(self) -> str:
        (told,) = {event["data"]["parameters_sha256"] for event in self.events("training.finished")}
        return str(told)

    def events(self, type_: str) -> list[dict[str, Any]]:
        return [event for event in self.folder.events(1) if event["type"] == type_]

    def stepped_at(self) -> np.ndarray:
        """When each step was done, in seconds since the epoch."""
        series = self.folder.series(["train/loss"])["train/loss"]
        assert series.steps.tolist() == list(range(1, len(series.steps) + 1)), "the folder has each step"
        return series.timestamps

    def steps_in_mlflow(self) -> list[int]:
        """Of every point of train/loss that the server has, in order."""
        from mlflow import MlflowClient

        url = self.running.environment["CHAINRULE_MLFLOW_URL"]
        link: str = self.running.client.get_job(self.id)["links"]["mlflow"]
        history = MlflowClient(url).get_metric_history(link.rpartition("/")[2], "train/loss")
        return sorted(metric.step for metric in history)


def timed(done: Job, kills: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each kill with the next step of the group that was formed after it, and what happened in between, in seconds after the kill.

    A step that the old group still completed does not count, although it is told later. ``by_controller``: the service's own figure, from its
    notice on.
    """
    stepped = done.stepped_at()
    formed = [event["timestamp"] for event in done.events("workers.formed")]
    lost = [event["timestamp"] for event in done.events("worker.lost")]
    recovered = [event["data"] for event in done.events("workers.recovered")]
    if not len(kills) == len(formed) == len(lost) == len(recovered):
        raise RuntimeError(f"{len(kills)} kills, {len(lost)} losses, {len(formed)} groups, {len(recovered)} recoveries")
    rows = []
    for struck, noticed, again, recovery in zip(kills, lost, formed, recovered, strict=True):
        killed_at = struck["killed_at"]
        first = float(stepped[stepped > again][0])
        by_controller = recovery["lost_at"] + recovery["seconds"] - killed_at
        if abs(first - killed_at - by_controller) > 0.5:
            raise RuntimeError(f"the next step came {first - killed_at:.2f} s or {by_controller:.2f} s after the kill")
        rows.append(
            struck
            | {
                "noticed": noticed - killed_at,
                "formed": again - killed_at,
                "seconds": first - killed_at,
                "by_controller": recovery["seconds"],
                "source": recovery["source"],
            }
        )
    return rows


def usual_step(running: Stack) -> float:
    """Median seconds of a step, from a short run which also makes everything warm."""
    short = Job(running, job(CALIBRATION_STEPS))
    short.finish()
    return float(np.median(np.diff(short.stepped_at()[CALIBRATION_STEPS // 3 :])))


def ours(
    running: Stack, kills: int, step_seconds: float, chance: random.Random, longest_pause: float
) -> dict[str, Any]:
    between = (SHORTEST_PAUSE + longest_pause) / 2 + 1.0  # seconds of training between two kills, and some more
    steps = int((kills * between + 10) / step_seconds)
    undisturbed = Job(running, job(steps))
    undisturbed.finish()
    time.sleep(STANDBY_SECONDS)
    disturbed = Job(running, job(steps))
    struck = [disturbed.kill_one(index, chance, longest_pause) for index in range(kills)]
    disturbed.finish()
    told = disturbed.steps_in_mlflow()
    return {
        "steps": steps,
        "kills": timed(disturbed, struck),
        "weights_bit_equal": disturbed.parameters_sha256() == undisturbed.parameters_sha256(),
        "each_step_once_in_mlflow": told == list(range(1, steps + 1)),
    }


def useful(running: Stack, minutes: float, step_seconds: float) -> dict[str, Any]:
    """A run of about so many minutes with a kill a minute, the first after half a one."""
    steps = int(minutes * 60 / step_seconds)
    chance = random.Random(1)
    run = Job(running, job(steps))
    wait_until("the first step", lambda: run.at_work(0))
    began = time.monotonic()
    kills: list[dict[str, Any]] = []
    with contextlib.suppress(RuntimeError):  # the job has ended
        for number in itertools.count():
            due = began + KILL_EVERY_SECONDS * (number + 0.5)
            while time.monotonic() < due:
                run.at_work(number)  # raises at the end
                time.sleep(min(1.0, max(0.0, due - time.monotonic())))
            kills.append(run.kill_one(number, chance, SHORTEST_PAUSE))
    run.finish()
    return share(run.stepped_at(), [each["killed_at"] for each in kills]) | {"kills": timed(run, kills)}


def share(stepped: np.ndarray, killed_at: list[float]) -> dict[str, Any]:
    """Time that the steps would have taken at the median of those that no kill disturbed, over the time from the first to the last."""
    between = np.diff(stepped)
    disturbed = np.zeros(len(between), dtype=bool)
    for at in killed_at:
        disturbed |= (stepped[1:] > at) & (stepped[:-1] < at + DISTURBED_SECONDS)
    step = float(np.median(between[~disturbed]))
    wall = float(stepped[-1] - stepped[0])
    return {
        "steps": len(stepped),
        "step_seconds": step,
        "wall_seconds": wall,
        "kills_a_minute": 60 * len(killed_at) / wall,
        "useful_share": step * len(between) / wall,
        "undisturbed_share": step * int((~disturbed).sum()) / float(between[~disturbed].sum()),
    }


# --- theirs -----------------------------------------------------------------------------------------------------------


def theirs(running: Stack, name: str, kills: int, chance: random.Random) -> list[float]:
    folder = running.folder / name
    folder.mkdir()
    with peer(running, folder):
        seconds = []
        for _ in range(kills):
            workers = wait_until("the peer's workers", lambda: peer_at_work(folder), 180)
            time.sleep(chance.uniform(SHORTEST_PAUSE, 3.0))
            before = {row["pid"] for row in read_lines(folder / "pids.jsonl")}
            at = kill(workers[chance.choice([0, 1])])
            seconds.append(wait_until("the peer's next step", lambda: first_step(folder, before)) - at)  # noqa: B023  # called in this round
    return seconds


@contextlib.contextmanager
def peer(running: Stack, folder: Path) -> Iterator[None]:
    job_file = folder / "job.json"
    job_file.write_text(json.dumps(job(1)))  # it trains until it is ended
    with (folder / "peer.log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "benchmarks.peers.ray_train_recovery"),
                *(running.environment["CHAINRULE_RAY_ADDRESS"], str(job_file), str(folder), str(CHECKPOINT_EVERY)),
            ],
            env=running.environment | {"RAY_TRAIN_V2_ENABLED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)
        pids = {row["pid"] for row in read_lines(folder / "pids.jsonl")}
        wait_until("the end of the peer", lambda: True if not any(map(psutil.pid_exists, pids)) else None)


def peer_at_work(folder: Path) -> dict[int, int] | None:
    """Pid by rank, once the newest group has done a checkpoint's number of steps."""
    newest = {row["rank"]: row["pid"] for row in read_lines(folder / "pids.jsonl")}
    done = [row for row in read_lines(folder / "steps.jsonl") if row["pid"] == newest.get(0)]
    return newest if len(newest) == 2 and len(done) > 2 * CHECKPOINT_EVERY else None


def first_step(folder: Path, before: set[int]) -> float | None:
    return next((row["done_at"] for row in read_lines(folder / "steps.jsonl") if row["pid"] not in before), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--peer-kills", type=int, default=4)
    parser.add_argument("--longest-pause", type=float, default=8.0, help="seconds between a recovery and the next kill")
    parser.add_argument("--minutes", type=float, default=5.0, help="of the part with a kill a minute; 0: none")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    with stack() as running:
        step_seconds = usual_step(running)
        half = arguments.peer_kills // 2
        before = theirs(running, "peer-before", half, chance) if half else []
        time.sleep(STANDBY_SECONDS)
        mine = ours(running, arguments.kills, step_seconds, chance, arguments.longest_pause)
        after = theirs(running, "peer-after", arguments.peer_kills - half, chance) if half else []
        minute = useful(running, arguments.minutes, step_seconds) if arguments.minutes else None
    seconds = [row["seconds"] for row in mine["kills"]]
    document = {
        "kill to next step": medians(seconds, before + after) if half else {"ours": seconds},
        "one job": mine,
        "peer": {"checkpoint_every_steps": CHECKPOINT_EVERY, "before": before, "after": after},
        "a kill a minute": minute,
    }
    print(f"-> {write('recovery', document)}")
    tell(mine, seconds, before + after, minute)
    if not (mine["weights_bit_equal"] and mine["each_step_once_in_mlflow"]):
        sys.exit("something was lost, or done twice")


def tell(mine: dict[str, Any], seconds: list[float], peers: list[float], minute: dict[str, Any] | None) -> None:
    middle = statistics.median(seconds)
    print(f"kill to next step: median {middle:.2f} s, longest {max(seconds):.2f} s of {len(seconds)}")
    quick = [row["seconds"] for row in mine["kills"] if row["formed"] - row["noticed"] < 1.0]
    if quick:
        print(f"  median {statistics.median(quick):.2f} s of the {len(quick)} that found a standby ready")
    for name in ("noticed", "formed"):
        print(f"  {name} after {statistics.median(row[name] for row in mine['kills']):.2f} s")
    print(f"weights bit-equal: {mine['weights_bit_equal']}; steps once each: {mine['each_step_once_in_mlflow']}")
    if peers:
        theirs_middle = statistics.median(peers)
        print(f"Ray Train: median {theirs_middle:.2f} s of {len(peers)}; ratio {middle / theirs_middle:.3f}")
    if minute:
        print(f"useful share at {minute['kills_a_minute']:.2f} kills a minute: {minute['useful_share']:.3f}")


if __name__ == "__main__":
    main()
