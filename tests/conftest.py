"""What whole test folders share: one local Ray and one MLflow server for the session, each a real process of its own."""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.helpers import end_tree, free_port, listens, must_live, wait_for

# Ray reads how to authenticate when it is imported, which some test module does before any fixture runs.
RAY_FOLDER = Path(tempfile.mkdtemp(prefix="cr-"))  # short: Ray's sockets must stay under 108 characters
RAY_TOKEN = RAY_FOLDER / "token"
RAY_TOKEN.touch(mode=0o600)
RAY_TOKEN.write_text(secrets.token_hex(32))
os.environ.update(
    RAY_AUTH_MODE="token",
    RAY_AUTH_TOKEN_PATH=str(RAY_TOKEN),
    RAY_USAGE_STATS_ENABLED="0",
    RAY_task_events_report_interval_ms="0",  # as `chainrule up` has it
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",  # else Ray warns at every actor
)
atexit.register(shutil.rmtree, RAY_FOLDER, ignore_errors=True)

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets that may lie beside the project."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"there is no {SHARED_DATA.name} folder of data sets beside the project")
    return SHARED_DATA


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """Address (host:port) of a Ray with 4 logical processors, with token authentication, set up as ``chainrule up`` does it.

    One for the session: starting it takes about 5 s. Tests give back what they take.
    """
    folder, port = RAY_FOLDER, free_port()
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--include-dashboard=false"),
        *("--node-ip-address=127.0.0.1", f"--port={port}", f"--temp-dir={folder}", "--num-cpus=4"),
        *("--disable-usage-stats", "--include-log-monitor=false", f"--object-store-memory={100 << 20}"),
    ]
    with (folder / "head.log").open("wb") as log:
        head = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for("Ray's head", lambda: listens(port) or must_live(head, folder / "head.log"), 60)
        yield f"127.0.0.1:{port}"
    finally:
        end_tree(head)


@pytest.fixture(scope="session")
def ray_driver(ray_cluster: str) -> Iterator[None]:
    """Makes this process a driver of the cluster; for tests that speak to actors themselves."""
    import ray

    ray.init(address=ray_cluster, namespace="chainrule", log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


class MlflowServer:
    """A real MLflow server on a fixed port that can be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={self.port}", "--workers=1"),
            f"--backend-store-uri=sqlite:///{self.folder / 'mlflow.db'}",
            f"--artifacts-destination={self.folder / 'artifacts'}",
        ]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        process = self._process
        wait_for("MLflow", lambda: self._healthy() or must_live(process, self.folder / "server.log"), 90)

    def _healthy(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/health", timeout=2).status_code == 200
        return False

    def stop(self) -> None:
        if self._process is not None:
            end_tree(self._process)
            self._process = None


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """One for the session: starting it takes about 8 s."""
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.stop()
