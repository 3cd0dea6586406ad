"""Many short jobs one after another: nothing of them may be left.

Jobs of one and of two workers through the running service, at most four at a time; some are cancelled, of some a worker is killed by pid. What
there is after a few jobs of warm-up is compared with what there is after all of them, both times when the service has come to rest: processes, Ray
actors, placement groups, segments in /dev/shm, and the open files, threads and listening ports of the processes that live long. Ends with 1 when
anything has grown, or a job has failed.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from api.processes import reap
from benchmarks.measure import write
from benchmarks.stack import Stack, stack

AT_A_TIME = 4
WARM_UP = 5
STANDBYS = 2  # the service's default
REST_SECONDS = 120.0  # for which coming to rest may take
TOLERANCE = 8  # files, threads or ports more in one process: pools that have filled, far from one a job
LONG_LIVED = {
    "api": "api.cli.main api",
    "scheduler": "api.cli.main scheduler",
    "driver": "service.ray_cluster",
    "raylet": "raylet/raylet",
    "gcs": "gcs/gcs_server",
}
KINDS = (*["plain"] * 8, "cancelled", "killed")


@dataclass
class Run:
    """One job: what is to happen to it, and when."""

    id: str
    kind: str
    due: float
    done: bool = False


def job(kind: str, workers: int) -> dict[str, Any]:
    steps = 10 if kind == "plain" else 1500  # the others must live long enough to be disturbed
    return {
        "name": f"soak-{kind}",
        "task": {
            "kind": "image_classification",
            "data": {"source": "digits"},
            "model": {"architecture": "mlp", "hidden": [32]},
        },
        "training": {"steps": steps, "batch_size": 64},
        "workers": {"count": workers, "threads": 1},
        "evaluation": {"every_steps": 10**6},
    }


# --- the jobs ---------------------------------------------------------------------------------------------------------


def run_jobs(running: Stack, count: int, chance: random.Random) -> collections.Counter[str]:
    """How many jobs of each kind ended in each way."""
    ended: collections.Counter[str] = collections.Counter()
    under_way: list[Run] = []
    started = 0
    while started < count or under_way:
        while started < count and len(under_way) < AT_A_TIME:
            kind, workers = chance.choice(KINDS), chance.choice((1, 1, 2))
            posted = running.client.create_job(job(kind, workers))
            under_way.append(Run(posted["id"], kind, time.monotonic() + chance.uniform(0, 4)))
            started += 1
        for run in list(under_way):
            seen = running.client.get_job(run.id)
            if seen["finished_at"]:
                hurt = " after a loss" if seen["recoveries"] else ""
                ended[f"{run.kind}: {seen['status']}{hurt}"] += 1
                under_way.remove(run)
                print(f"{ended.total()}/{count} {run.kind}: {seen['status']}{hurt}", flush=True)
            elif not run.done and time.monotonic() > run.due:
                run.done = disturb(running, run, seen, chance)
        time.sleep(0.2)
    return ended


def disturb(running: Stack, run: Run, seen: dict[str, Any], chance: random.Random) -> bool:
    """Whether what was to happen to the job has happened."""
    if run.kind == "cancelled":
        running.client.cancel_job(run.id)
    if run.kind == "killed":
        workers = [worker for worker in seen["workers"] if worker["state"] == "running"]
        if not workers:
            return False
        pid = chance.choice(workers)["pid"]
        if pid in {process.pid for process in psutil.Process().children(recursive=True)}:
            os.kill(pid, signal.SIGKILL)
    return True


# --- what there is ----------------------------------------------------------------------------------------------------


def ray_state(running: Stack, what: str) -> list[dict[str, Any]]:
    url = f"{running.dashboard_url}/api/v0/{what}"
    answer = httpx.get(url, params={"limit": 10000}, headers=running.headers(), timeout=30)
    answer.raise_for_status()
    rows: list[dict[str, Any]] = answer.json()["data"]["result"]["result"]
    return rows


def living_actors(running: Stack) -> list[str]:
    rows = ray_state(running, "actors")
    return sorted(row["name"] or row["class_name"] for row in rows if row["state"] != "DEAD")


def placement_groups(running: Stack) -> list[str]:
    return sorted(row["name"] for row in ray_state(running, "placement_groups") if row["state"] != "REMOVED")


def come_to_rest(running: Stack) -> None:
    """Until only standbys are left, or as long as that may take; then some seconds more, for processes that are ending."""
    deadline = time.monotonic() + REST_SECONDS
    while time.monotonic() < deadline:
        actors = living_actors(running)
        if len(actors) == STANDBYS and all(map(is_standby, actors)) and not placement_groups(running):
            break
        time.sleep(1)
    time.sleep(15)


def is_standby(actor: str) -> bool:
    return actor.startswith("standby/")


def snapshot(running: Stack) -> dict[str, Any]:
    reap()
    tree = list(descendants())
    return {
        "processes": dict(collections.Counter(label for label, _ in tree)),
        "actors": living_actors(running),
        "placement_groups": placement_groups(running),
        "shared_memory": shared_memory({process.pid for _, process in tree}),
        "long_lived": {name: usage(tree, mark) for name, mark in (LONG_LIVED | {"mlflow": "mlflow"}).items()},
    }


def shared_memory(ours: set[int]) -> list[str]:
    """Segments, but for those that only processes of others on this machine have mapped."""
    mapped: dict[str, set[int]] = {path.name: set() for path in Path("/dev/shm").iterdir()}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for line in (folder / "maps").read_text().splitlines():
                _, separator, name = line.partition("/dev/shm/")
                if separator and name in mapped:
                    mapped[name].add(int(folder.name))
    return sorted(name for name, pids in mapped.items() if not pids or pids & ours)


def descendants() -> Iterator[tuple[str, psutil.Process]]:
    """Every process beneath this one, with a name that tells what it is."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            words = process.cmdline()
            zombie = process.status() == psutil.STATUS_ZOMBIE
            yield f"zombie {process.name()}" if zombie else label(words) or process.name(), process


def label(words: list[str]) -> str:
    if words and words[0].startswith("ray::"):
        return words[0].split()[0]
    for mark in LONG_LIVED.values():
        if mark in " ".join(words[:5]):
            return mark
    return " ".join(Path(word).name for word in words[:4] if not word.startswith("-"))


def usage(tree: list[tuple[str, psutil.Process]], mark: str) -> dict[str, int]:
    """Of all processes with ``mark`` in their names together."""
    found: collections.Counter[str] = collections.Counter()
    for _, process in (each for each in tree if mark in each[0]):
        with contextlib.suppress(psutil.NoSuchProcess):
            ports = [c for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
            found.update(files=process.num_fds(), threads=process.num_threads(), ports=len(ports))
            found.update(memory_mb=process.memory_info().rss >> 20)
    return dict(found)


def grown(before: dict[str, Any], after: dict[str, Any], cpus: int) -> list[str]:
    """What there is more of than there was, in sentences."""
    problems = []
    for name, count in after["processes"].items():
        # Ray keeps as many idle workers as it has processors.
        allowed = cpus if name == "ray::IDLE" else before["processes"].get(name, 0)
        if count > allowed:
            problems.append(f"{count} processes {name!r}, {allowed} before")
    strangers = [name for name in after["actors"] if not is_standby(name)]
    if strangers or len(after["actors"]) > STANDBYS:
        problems.append(f"actors: {after['actors']}")
    if after["placement_groups"]:
        problems.append(f"placement groups: {after['placement_groups']}")
    if segments := sorted(set(after["shared_memory"]) - set(before["shared_memory"])):
        problems.append(f"segments in /dev/shm: {segments}")
    for name in LONG_LIVED:
        for what in ("files", "threads", "ports"):
            was, now = before["long_lived"][name].get(what, 0), after["long_lived"][name].get(what, 0)
            if now > was + TOLERANCE:
                problems.append(f"{name} has {now} {what}, {was} before")
    return problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    with stack() as running:
        run_jobs(running, WARM_UP, chance)
        come_to_rest(running)
        before, began = snapshot(running), time.monotonic()
        missing = [name for name in LONG_LIVED if not before["long_lived"][name]]
        if missing:
            raise RuntimeError(f"not found among the processes: {missing}; there are {sorted(before['processes'])}")
        ended = run_jobs(running, arguments.jobs, chance)
        seconds = time.monotonic() - began
        come_to_rest(running)
        after = snapshot(running)
    problems = grown(before, after, running.cpus)
    unwell = [how for how in ended if "failed" in how]
    document = {"jobs": arguments.jobs, "seconds": seconds, "ended": dict(ended), "problems": problems}
    print(f"-> {write('soak', document | {'before': before, 'after': after})}")
    print(f"{arguments.jobs} jobs in {seconds:.0f} s: {dict(ended)}")
    for problem in problems + unwell:
        print(problem)
    sys.exit(1 if problems or unwell else 0)


if __name__ == "__main__":
    main()
