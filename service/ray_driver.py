"""The scheduler's end of the Ray driver: starts the child process, asks it, replaces it when it fails.

Whatever goes wrong between here and Ray is a ClusterUnavailableError. Training goes on through all of it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from service.cluster import Capacity, ClusterUnavailableError, Launch
from service.wire import capacity_value, decode, encode, launch_document, observation_value, shape_document
from workers.reports import GroupShape, Observation, StopMode

log = logging.getLogger(__name__)

BACKOFF_FIRST = 0.5  # seconds; doubles up to
BACKOFF_LONGEST = 10.0
CLOSE_SECONDS = 5.0
PROBE_SECONDS = 1.0  # without an answer, until it is asked whether the head is there at all


NOBODY = "nobody listens there"


class ClusterCallError(RuntimeError):
    """The cluster is there, and refused this one call."""


class RayDriver:
    """A Cluster (``service/cluster.py``). To be used by one thread.

    ``patience`` is how long a call waits for a connection that is being made before it says that the cluster is unavailable;
    the connection goes on being made. ``join``: this machine is no node of the cluster and becomes one for as long as the connection lasts.
    """

    def __init__(
        self,
        address: str,
        standby_workers: int = 0,
        *,
        call_seconds: float = 15.0,
        connect_seconds: float = 60.0,
        patience: float = 1.0,
        join: bool = False,
    ) -> None:
        self._address, self._standby_workers, self._join = address, standby_workers, join
        self._call_seconds = call_seconds
        self._connect_seconds = connect_seconds
        self._patience = patience
        self._child: _Child | None = None
        self._failures = 0
        self._not_before = 0.0
        self._problem = ""
        self._next_id = 0

    def capacity(self) -> Capacity:
        return capacity_value(self._call("capacity"))

    def launch(self, launch: Launch) -> None:
        self._call("launch", launch=launch_document(launch))

    def observe(self, seen: Mapping[str, int]) -> Mapping[str, Observation | None]:
        answers = self._call("observe", seen=dict(seen))
        return {name: observation_value(document) for name, document in answers.items()}

    def stop(self, name: str, mode: StopMode) -> None:
        self._call("stop", name=name, mode=mode.value)

    def reshape(self, name: str, shape: GroupShape) -> None:
        self._call("reshape", name=name, shape=shape_document(shape))

    def remove(self, name: str) -> None:
        self._call("remove", name=name)

    def names(self) -> frozenset[str]:
        return frozenset(self._call("names"))

    def close(self) -> None:
        """Ends the child process, never what runs on the cluster."""
        if self._child is not None:
            self._child.close()
            self._child = None

    def _call(self, call: str, **arguments: Any) -> Any:
        child = self._connected()
        self._next_id += 1
        try:
            child.send({"id": self._next_id, "call": call, "arguments": arguments})
            answer = child.receive(self._call_seconds, self._head_is_gone)
        except _ChildError as error:
            raise self._failed(f"{call}: {error}") from error
        assert answer["id"] == self._next_id, "answers come in the order of the questions"
        if "unavailable" in answer:
            raise self._failed(answer["unavailable"])
        self._failures = 0
        if "failed" in answer:
            raise ClusterCallError(f"{call}: {answer['failed']}")
        return answer["result"]

    def _connected(self) -> _Child:
        if self._child is None:
            if time.monotonic() < self._not_before:
                raise ClusterUnavailableError(self._problem)
            if self._head_is_gone():
                raise ClusterUnavailableError(f"no connection to the Ray cluster at {self._address}: {NOBODY}")
            self._child = _Child(self._address, self._standby_workers, self._join)
        if self._child.ready:
            return self._child
        try:
            greeting = self._child.receive(self._patience)
        except _NoAnswerError as error:
            if self._child.age() < self._connect_seconds:
                raise ClusterUnavailableError(f"connecting to the Ray cluster at {self._address}") from error
            raise self._failed(f"no connection within {self._connect_seconds:.0f} s") from error
        except _ChildError as error:
            raise self._failed(str(error)) from error
        if "fatal" in greeting:
            raise self._failed(greeting["fatal"])
        log.info("connected to the Ray cluster at %s", self._address)
        self._child.ready = True
        return self._child

    def _head_is_gone(self) -> bool:
        """Whether the machine is there and nobody listens at the address: to wait would be in vain."""
        host, _, port = self._address.rpartition(":")
        if not host:  # auto
            return False
        try:
            socket.create_connection((host, int(port)), PROBE_SECONDS).close()
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
        return False

    def _failed(self, problem: str) -> ClusterUnavailableError:
        """Gives the child up: a driver that has lost its cluster does not find the next one."""
        assert self._child is not None
        self._child.kill()
        self._child = None
        pause = min(BACKOFF_FIRST * (1 << min(self._failures, 10)), BACKOFF_LONGEST)
        self._failures += 1
        self._not_before = time.monotonic() + pause
        self._problem = f"no connection to the Ray cluster at {self._address}: {problem}"
        return ClusterUnavailableError(self._problem)


class _ChildError(RuntimeError):
    """The child process is of no use any more."""


class _NoAnswerError(_ChildError):
    """The child process did not answer in time."""


class _Child:
    """The process, with a thread that reads its answers so that waiting for one can end."""

    def __init__(self, address: str, standby_workers: int, join: bool) -> None:
        self.ready = False
        self._started = time.monotonic()
        arguments = (address, str(os.getpid()), str(standby_workers), *(["join"] if join else []))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "service.ray_cluster", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",  # Ray puts the driver's folder before all others where workers look for modules; so does Python without -P
            process_group=0,  # a Ctrl-C in the terminal is for the scheduler
        )
        self._answers: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name="ray-driver", daemon=True)
        self._reader.start()

    def age(self) -> float:
        return time.monotonic() - self._started

    def send(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(encode(message))
            self._process.stdin.flush()
        except OSError as error:
            raise _ChildError("the driver process ended") from error

    def receive(self, seconds: float, in_vain: Callable[[], bool] = lambda: False) -> dict[str, Any]:
        """``in_vain`` is asked now and then whether there can be an answer at all: Ray itself goes on waiting for a head that died."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            try:
                answer = self._answers.get(timeout=min(left, PROBE_SECONDS))
            except queue.Empty:
                if in_vain():
                    raise _ChildError(NOBODY) from None
                continue
            if answer is None:
                raise _ChildError("the driver process ended")
            return answer
        raise _NoAnswerError(f"no answer within {seconds:.0f} s")

    def close(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self._process.stdin.close()
            self._process.wait(CLOSE_SECONDS)
        self.kill()

    def kill(self) -> None:
        """Also what the process has started, which is in its group."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join()
        with contextlib.suppress(BrokenPipeError):  # what was still to be sent
            self._process.stdin.close()
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(decode(line))
        self._answers.put(None)
