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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import httpx

from api.home import Home, Service
from api.processes import become_subreaper, end_descendants

MARK = "CHAINRULE_UP"  # in the environment of everything that belongs to one `up`
API_PORT, MLFLOW_PORT = 8400, 8401
READY_SECONDS = 120.0
OBJECT_STORE_BYTES = 200 << 20  # training does not use Ray's object store for data


class StartError(RuntimeError):
    """The service could not be started. ``str()`` is for people."""


@dataclass(frozen=True)
class Options:
    home: Home
    host: str = "127.0.0.1"
    port: int = API_PORT  # 0: any free one
    mlflow_port: int = MLFLOW_PORT
    cpus: int | None = None


class Supervisor:
    """Used as ``with Supervisor(options) as service:``; on the way out everything is ended."""

    def __init__(self, options: Options, say: Callable[[str], None]) -> None:
        self._options, self._say = options, say
        self._guardian: subprocess.Popen[bytes] | None = None
        self._ray_folder: Path | None = None
        self.service: Service | None = None

    def __enter__(self) -> Service:
        """Raises HomeTakenError or StartError; nothing is left behind then."""
        options = self._options
        options.home.acquire()
        port = claim_port(options.host, options.port, "--port")
        mlflow_port = claim_port("127.0.0.1", options.mlflow_port, "--mlflow-port")
        self.service = Service(
            f"http://{url_host(options.host)}:{port}", f"http://127.0.0.1:{mlflow_port}", os.getpid()
        )
        become_subreaper()
        # Ray's unix sockets must stay under 108 characters, which a home may not allow.
        self._ray_folder = Path(tempfile.mkdtemp(prefix="chainrule-"))
        plan = {"parent": os.getpid(), "children": self._children(port, mlflow_port, free_port("127.0.0.1"))}
        with (options.home.logs / "guardian.log").open("ab") as log:
            self._guardian = subprocess.Popen(
                [sys.executable, "-m", "api.guardian"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us to hear, not for everything at once
                env={**os.environ, MARK: str(os.getpid())},
            )
        assert self._guardian.stdin is not None
        self._guardian.stdin.write(json.dumps(plan).encode())
        self._guardian.stdin.close()
        try:
            self._wait_until_ready()
        except BaseException:
            self._end()
            raise
        options.home.announce(self.service)
        return self.service

    def __exit__(self, *_: object) -> None:
        self._end()

    def wait(self) -> None:
        """Until the guardian ends, which it does only when somebody kills it."""
        assert self._guardian is not None
        while self._guardian.poll() is None:
            time.sleep(0.3)
        raise StartError("the guardian process was killed; everything it had started is ended now")

    def _end(self) -> None:
        self._options.home.withdraw()
        guardian = self._guardian
        if guardian is not None:
            guardian.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                guardian.wait(timeout=30)
            guardian.returncode = guardian.returncode or 0
        end_descendants(grace_seconds=1.0)
        if self._ray_folder is not None:
            shutil.rmtree(self._ray_folder, ignore_errors=True)

    # --- the plan -----------------------------------------------------------------------------------------------------

    def _children(self, port: int, mlflow_port: int, ray_port: int) -> list[dict[str, Any]]:
        home, options = self._options.home, self._options
        ray_environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(home.ray_token()),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_DISABLE_IMPORT_WARNING": "1",
        }
        own = {
            "CHAINRULE_HOME": str(home.path),
            "CHAINRULE_API_HOST": options.host,
            "CHAINRULE_API_PORT": str(port),
            "CHAINRULE_RAY_ADDRESS": f"127.0.0.1:{ray_port}",
            "CHAINRULE_MLFLOW_URL": f"http://127.0.0.1:{mlflow_port}",
        }
        python = [sys.executable, "-m"]
        ray = [
            *(*python, "ray.scripts.scripts", "start", "--head", "--block", "--include-dashboard=false"),
            *("--node-ip-address=127.0.0.1", f"--port={ray_port}", f"--temp-dir={self._ray_folder}"),
            *("--disable-usage-stats", "--include-log-monitor=false", f"--object-store-memory={OBJECT_STORE_BYTES}"),
            f"--num-cpus={options.cpus or os.cpu_count()}",
        ]
        mlflow = [
            *(*python, "mlflow", "server", "--host=127.0.0.1", f"--port={mlflow_port}", "--workers=1"),
            f"--backend-store-uri=sqlite:///{home.path / 'mlflow.db'}",
            f"--artifacts-destination={home.path / 'mlflow-artifacts'}",
            "--allowed-hosts=localhost,127.0.0.1,localhost:*,127.0.0.1:*",
        ]
        commands: Mapping[str, tuple[list[str], Mapping[str, str]]] = {
            "ray": (ray, ray_environment),
            "api": ([*python, "api.cli.main", "api"], own),
            "scheduler": ([*python, "api.cli.main", "scheduler"], {**own, **ray_environment}),
            "mlflow": (mlflow, {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}),
        }
        return [
            {"name": name, "command": command, "environment": environment, "log": str(home.logs / f"{name}.log")}
            for name, (command, environment) in commands.items()
        ]

    def _wait_until_ready(self) -> None:
        """Ready is when the API says that database, scheduler and cluster are there. MLflow takes longer; nobody waits for it."""
        assert self.service is not None
        assert self._guardian is not None
        deadline = time.monotonic() + READY_SECONDS
        said = ""
        while time.monotonic() < deadline:
            if self._guardian.poll() is not None:
                raise StartError(f"the guardian ended while starting; see {self._options.home.logs}")
            try:
                answer = httpx.get(f"{self.service.url}/readyz", timeout=2.0)
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


def claim_port(host: str, port: int, option: str) -> int:
    """``port`` if nobody listens there, a free one for 0. Raises StartError that names the option."""
    if port == 0:
        return free_port(host)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
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


def free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def url_host(host: str) -> str:
    if host in ("0.0.0.0", "::"):  # listening everywhere includes this machine
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


class StopRequestedError(Exception):
    """SIGTERM or Ctrl-C."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


@contextlib.contextmanager
def stopping_on_signals() -> Iterator[None]:
    """SIGINT and SIGTERM become StopRequestedError once; during the clean-up that follows they are ignored."""

    def stop(number: int, _: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        raise StopRequestedError(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
