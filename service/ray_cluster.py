"""The Ray driver: a child process of the scheduler, which asks it over pipes (``service/ray_driver.py``).

A process that called ``ray.init`` ends itself a minute after the head's GCS has died, and the scheduler must outlive that. All
that is launched is detached: it belongs to no driver and goes on when this process ends.

A driver needs a node of the cluster on its own machine. Where there is none (the scheduler in a container of its own), this process starts one
that takes no work, and that ends with it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import ray
from ray._private.worker import global_worker
from ray.exceptions import GetTimeoutError, RaySystemError, RpcError

from service.wire import decode, encode, launch_value, observation_document, shape_value
from workers import launcher
from workers.ray_names import CONTROL_LABELS, NAMESPACE
from workers.reports import StopMode

OBSERVE_SECONDS = 0.25
PATIENT_SECONDS = 3.0
PATIENT_EVERY_SECONDS = 10.0
UNAVAILABLE = (RpcError, RaySystemError, GetTimeoutError, ConnectionError, TimeoutError)
PR_SET_PDEATHSIG = 1
OBJECT_STORE_BYTES = 100 << 20  # of a node that takes no work; Ray's least is 75 MB
STANDBY_SECONDS = 1.0
LAUNCHED = threading.Event()


def main(address: str, parent: int, standby_workers: int, join: bool = False) -> int:
    die_with(parent)
    requests, answers = sys.stdin.buffer, private_stdout()
    try:
        if join:
            start_node(address)
        connect(address)
    except Exception as error:
        answers.write(encode({"fatal": first_line(error)}))
        return 1
    answers.write(encode({"ready": True}))
    threading.Thread(target=keep_standby, args=(standby_workers,), name="standby", daemon=True).start()
    serve(requests, answers)
    ray.shutdown()
    return 0


def connect(address: str) -> None:
    ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="WARNING")


def start_node(address: str) -> None:
    """Makes this machine a node without processors, on which nothing is ever placed. It is told to end when this process does, however that ends."""
    parent = os.getpid()
    subprocess.Popen(
        [
            *(sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--block", f"--address={address}"),
            *("--num-cpus=0", "--num-gpus=0", f"--object-store-memory={OBJECT_STORE_BYTES}"),
            *("--include-log-monitor=false", "--disable-usage-stats"),
            f"--labels={','.join(f'{key}={value}' for key, value in CONTROL_LABELS.items())}",
        ],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        stderr=sys.stderr,
        start_new_session=True,  # whoever kills this process with its group must leave it the time to end its own
        preexec_fn=lambda: die_with(
            parent, signal.SIGTERM
        ),  # called between fork and exec, of a process with one thread
    )


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Until the scheduler closes the pipe, or is gone."""
    for line in requests:
        request = decode(line)
        answers.write(encode({"id": request["id"], **answer(request["call"], request["arguments"])}))


def answer(call: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {"result": CALLS[call](**arguments)}
    except UNAVAILABLE as error:
        return {"unavailable": first_line(error)}
    except Exception as error:
        return {"failed": first_line(error)}


def capacity() -> dict[str, Any]:
    """With an id that no other cluster has, also when it is started at the same address."""
    return {"cluster_id": global_worker.gcs_client.cluster_id.hex(), "nodes": launcher.capacity()}


def launch(launch: Mapping[str, Any]) -> None:
    value = launch_value(launch)
    LAUNCHED.set()
    launcher.start(
        value.name,
        value.job_id,
        value.attempt,
        value.spec.model_dump_json(),
        value.shape,
        value.folder,
        value.mlflow_url,
        value.experiment,
        checkpoints=value.checkpoints,
        bundle=value.bundle,
        healthy_from=value.healthy_from,
    )


def keep_standby(count: int) -> None:
    """Refills behind the jobs that take standbys, not while they are starting: importing takes seconds of a processor."""
    while count:
        try:
            launcher.refill(count)
        except UNAVAILABLE as error:
            print(f"standby workers: {first_line(error)}", file=sys.stderr)
        time.sleep(STANDBY_SECONDS)
        while LAUNCHED.is_set():
            LAUNCHED.clear()
            time.sleep(STANDBY_SECONDS)


class Observer:
    """A controller that is being started does not answer, and the news of all others would wait for it: so nobody is waited
    for long. Now and then they are after all, so that a slow controller on a busy machine is not taken for a silent one."""

    def __init__(self) -> None:
        self._all_answered = True
        self._patient_at = time.monotonic()

    def __call__(self, seen: Mapping[str, int]) -> dict[str, Any]:
        patient = not self._all_answered and time.monotonic() - self._patient_at >= PATIENT_EVERY_SECONDS
        answers = launcher.observe(seen, timeout_seconds=PATIENT_SECONDS if patient else OBSERVE_SECONDS)
        self._all_answered = len(answers) == len(seen)
        if patient:
            self._patient_at = time.monotonic()
        return {name: observation_document(observation) for name, observation in answers.items()}


def stop(name: str, mode: str) -> None:
    launcher.stop(name, StopMode(mode))


def reshape(name: str, shape: Mapping[str, Any]) -> None:
    launcher.reshape(name, shape_value(shape))


CALLS: Mapping[str, Callable[..., Any]] = {
    "capacity": capacity,
    "launch": launch,
    "observe": Observer(),
    "stop": stop,
    "reshape": reshape,
    "remove": launcher.remove,
    "names": lambda: sorted(launcher.names()),
}


def private_stdout() -> BinaryIO:
    """The pipe to the scheduler. Whatever else is printed here, by Ray too, goes to standard error."""
    pipe = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    return pipe


def die_with(parent: int, number: int = signal.SIGKILL) -> None:
    """The kernel ends this process with its parent, also when that is killed while a call to Ray hangs."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it died before it could be watched
        sys.exit(1)


def first_line(error: BaseException) -> str:
    text = str(error).strip() or "no message"
    return f"{type(error).__name__}: {text.splitlines()[0][:500]}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), "join" in sys.argv[4:]))
