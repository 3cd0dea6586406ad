"""``chainrule up``: Ray, MLflow, scheduler and API on one machine, as one thing that starts, is ready, and ends."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import httpx

from api.guardian import GAVE_UP
from api.home import Home, Service
from api.processes import become_subreaper, end_descendants

MARK = "CHAINRULE_UP"  # in the environment of everything that belongs to one `up`
API_PORT, MLFLOW_PORT = 8400, 8401
READY_SECONDS = 120.0
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Handler = Callable[[int, FrameType | None], Any] | signal.Handlers
RAY_PARTS = ("gcs_server", "raylet")
RAY_LIMIT = {"ends": 6, "seconds": 600.0}  # so it is started again five times in ten minutes
OBJECT_STORE_BYTES = 200 << 20  # training does not use Ray's object store for data
PYTHON = (sys.executable, "-P", "-m")  # -P: a folder named `api` or `workers` where the user stands is not ours
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class StartError(RuntimeError):
    """The service could not be started. ``str()`` is for people."""


@dataclass(frozen=True)
class Options:
    home: Home
    host: str = "127.0.0.1"
    port: int = API_PORT  # 0: any free one
    mlflow_port: int = MLFLOW_PORT
    cpus: int | None = None
    insecure: bool = False  # plain HTTP beyond loopback


class Supervisor:
    """Used as ``with Supervisor(options) as service:``; on the way out every process beneath this one is ended. So it is for a
    process that does nothing else."""

    def __init__(self, options: Options, say: Callable[[str], None]) -> None:
        self._options, self._say = options, say
        self._guardian: subprocess.Popen[bytes] | None = None
        self._ray_folder: Path | None = None
        self.service: Service | None = None

    def __enter__(self) -> Service:
        """Raises HomeError or StartError; nothing is left behind then."""
        self._options.home.acquire()
        try:
            service = self._start()
            self._wait_until_ready()
            self._options.home.announce(service)
        except BaseException:
            self._end()
            raise
        return service

    def __exit__(self, *_: object) -> None:
        self._end()

    def wait(self) -> None:
        """Until the guardian ends, which it does only when Ray cannot be kept alive, or somebody kills it: a StartError."""
        assert self._guardian is not None
        while self._guardian.poll() is None:
            time.sleep(0.3)
        raise StartError(self._why_it_ended())

    def _why_it_ended(self) -> str:
        assert self._guardian is not None
        logs = self._options.home.logs
        if self._guardian.poll() == GAVE_UP:
            ends, minutes = RAY_LIMIT["ends"], RAY_LIMIT["seconds"] / 60
            return (
                f"Ray ended {ends} times within {minutes:.0f} minutes, so everything was ended; see {logs / 'ray.log'}"
            )
        return f"the guardian process ended, and everything it had started with it; see {logs / 'guardian.log'}"

    def _end(self) -> None:
        with ignoring_signals():  # a second Ctrl-C must not leave half of it running
            self._options.home.withdraw()
            guardian = self._guardian
            if guardian is not None:
                guardian.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    guardian.wait(timeout=30)
                end_descendants(grace_seconds=1.0)
                guardian.returncode = guardian.returncode or 0  # collected by now, whoever ended it
            if self._ray_folder is not None:
                shutil.rmtree(self._ray_folder, ignore_errors=True)
            self._options.home.release()

    # --- the plan -----------------------------------------------------------------------------------------------------

    def _start(self) -> Service:
        options = self._options
        port = claim_port(options.host, options.port, "--port")
        mlflow_port = claim_port("127.0.0.1", options.mlflow_port, "--mlflow-port", {port})
        ray_port = free_port("127.0.0.1", {port, mlflow_port})
        ray_client_port = free_port("127.0.0.1", {port, mlflow_port, ray_port})
        self.service = Service(
            f"http://{url_host(options.host)}:{port}", f"http://127.0.0.1:{mlflow_port}", os.getpid()
        )
        become_subreaper()
        # Ray's unix sockets must stay under 108 characters, which a home may not allow.
        self._ray_folder = Path(tempfile.mkdtemp(prefix="chainrule-"))
        children = self._children(port, mlflow_port, ray_port, ray_client_port)
        plan = {"parent": os.getpid(), "folder": str(self._ray_folder), "children": children}
        with (options.home.logs / "guardian.log").open("ab") as log:
            self._guardian = subprocess.Popen(
                [*PYTHON, "api.guardian"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us to hear, not for everything at once
                pass_fds=[options.home.lock],  # the home is free when everything has ended, not when we are killed
                env={**os.environ, **without_proxy(os.environ), MARK: str(os.getpid())},
            )
        assert self._guardian.stdin is not None
        self._guardian.stdin.write(json.dumps(plan).encode())
        self._guardian.stdin.close()
        return self.service

    def _children(self, port: int, mlflow_port: int, ray_port: int, ray_client_port: int) -> list[dict[str, Any]]:
        home, options = self._options.home, self._options
        ray_environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(home.ray_token()),
            "RAY_USAGE_STATS_ENABLED": "0",
            # Ray runs workers with niceness 15, so that everything else on the machine, our own scheduler too, would come before training.
            "RAY_worker_niceness": "0",
            # Into the processes that Ray keeps idle: a job's controller starts in one of them.
            "RAY_preload_python_modules": "workers.controller",
            "RAY_DISABLE_IMPORT_WARNING": "1",
            # Ray's head keeps 100,000 calls and 100,000 actors that have ended, some gigabytes, for lists at which nobody looks.
            "RAY_task_events_report_interval_ms": "0",
            "RAY_maximum_gcs_destroyed_actor_cached_count": "1000",
            # Else Ray takes an address of the network in place of 127.0.0.1, and all its parts listen on every interface.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        }
        own = {
            "CHAINRULE_HOME": str(home.path),
            "CHAINRULE_API_HOST": options.host,
            "CHAINRULE_API_PORT": str(port),
            "CHAINRULE_RAY_ADDRESS": f"127.0.0.1:{ray_port}",
            "CHAINRULE_MLFLOW_URL": f"http://127.0.0.1:{mlflow_port}",
        }
        ray = [
            *(*PYTHON, "ray.scripts.scripts", "start", "--head", "--block", "--include-dashboard=false"),
            *("--node-ip-address=127.0.0.1", f"--port={ray_port}", f"--temp-dir={self._ray_folder}"),
            "--no-monitor",  # nobody scales this cluster, and the end of the process would end the whole head
            f"--ray-client-server-port={ray_client_port}",  # nobody uses it, but 10001 may be another Ray's
            *("--disable-usage-stats", "--include-log-monitor=false", f"--object-store-memory={OBJECT_STORE_BYTES}"),
            f"--num-cpus={options.cpus or os.cpu_count()}",
        ]
        mlflow = [
            *(*PYTHON, "mlflow", "server", "--host=127.0.0.1", f"--port={mlflow_port}", "--workers=1"),
            f"--backend-store-uri=sqlite:///{home.path / 'mlflow.db'}",
            f"--artifacts-destination={home.path / 'mlflow-artifacts'}",
            "--allowed-hosts=localhost,127.0.0.1,localhost:*,127.0.0.1:*",
        ]
        commands: Mapping[str, tuple[list[str], Mapping[str, str]]] = {
            "ray": (ray, ray_environment),
            "api": ([*PYTHON, "api.cli.main", "api", *(["--insecure"] if options.insecure else [])], own),
            "scheduler": ([*PYTHON, "api.cli.main", "scheduler"], {**own, **ray_environment}),
            "mlflow": (mlflow, {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}),
        }
        children: list[dict[str, Any]] = [
            {"name": name, "command": command, "environment": environment, "log": str(home.logs / f"{name}.log")}
            for name, (command, environment) in commands.items()
        ]
        children[0] |= {"vital": RAY_PARTS, "limit": RAY_LIMIT}
        return children

    def _wait_until_ready(self) -> None:
        """Ready is when the API says that database, scheduler and cluster are there. MLflow takes longer; nobody waits for it."""
        assert self.service is not None
        assert self._guardian is not None
        deadline = time.monotonic() + READY_SECONDS
        said = ""
        with httpx.Client(timeout=2.0, trust_env=False) as http:
            while time.monotonic() < deadline:
                if self._guardian.poll() is not None:
                    raise StartError(self._why_it_ended())
                try:
                    answer = http.get(f"{self.service.url}/readyz")
                    if answer.status_code == 200:
                        return
                    missing = answer.json()["error"]["message"]
                except (httpx.HTTPError, ValueError, KeyError):
                    missing = "The API does not answer yet."
                if missing != said:
                    said = missing
                    self._say(missing)
                time.sleep(0.1)
        raise StartError(f"not ready after {READY_SECONDS:.0f} s. {said} Logs are in {self._options.home.logs}")


# --- ports and signals ------------------------------------------------------------------------------------------------


def claim_port(host: str, port: int, option: str, taken: Collection[int] = ()) -> int:
    """``port`` if nobody listens there, a free one for 0. Raises StartError that names the option."""
    if port in taken:
        raise StartError(f"{option} {port} is asked for twice; choose another, or 0 for a free one")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        if port == 0:
            return free_port(host, taken)
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise StartError(
            f"{option} {port} on {host} cannot be used: {error.strerror}; choose another, or 0 for a free one"
        ) from error
    return port


def usual_or_free(port: int) -> int:
    """``port`` if nobody listens there, else 0, which means any free one."""
    try:
        return claim_port("127.0.0.1", port, "port")
    except StartError:
        return 0


def free_port(host: str, taken: Collection[int] = ()) -> int:
    while True:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind((host, 0))
            port: int = probe.getsockname()[1]
        if port not in taken:
            return port


def url_host(host: str) -> str:
    if host in ("0.0.0.0", "::"):  # listening everywhere includes this machine
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def without_proxy(environment: Mapping[str, str]) -> dict[str, str]:
    """NO_PROXY, in both spellings, with this machine added: what runs here talks to itself without the user's proxy."""
    given = environment.get("no_proxy") or environment.get("NO_PROXY")
    hosts = ",".join(filter(None, (given, *LOOPBACK)))
    return {"NO_PROXY": hosts, "no_proxy": hosts}


class StopRequestedError(Exception):
    """SIGTERM, Ctrl-C, or the terminal was closed."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


@contextlib.contextmanager
def stopping_on_signals() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP (unless nohup ignores it) become StopRequestedError once; during the clean-up that follows they
    are ignored."""
    numbers = [number for number in STOPPING if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]

    def stop(number: int, _: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise StopRequestedError(number)

    with _handled(numbers, stop):
        yield


def ignoring_signals() -> contextlib.AbstractContextManager[None]:
    return _handled(STOPPING, signal.SIG_IGN)


@contextlib.contextmanager
def _handled(numbers: Collection[int], handler: Handler) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
