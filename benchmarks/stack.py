"""The service for a benchmark: ``chainrule up`` in a throw-away home, or its parts against a Ray cluster that the peer uses too."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from api.client import Client
from api.processes import become_subreaper, end_descendants
from api.supervisor import free_port

CHAINRULE = (sys.executable, "-m", "api.cli.main")


class Stack:
    """Ray with its dashboard (Ray Jobs needs it), MLflow, scheduler and API; everything ends with ``close``."""

    cpus = 3  # logical processors that Ray has to give away

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="cr-bench-"))
        self.home = self.folder / "home"
        self.home.mkdir(mode=0o700)
        become_subreaper()
        ray, dashboard, mlflow, api = (free_port("127.0.0.1") for _ in range(4))
        self.dashboard_url = f"http://127.0.0.1:{dashboard}"
        token = self.folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        # For this process too, which asks Ray Jobs; Ray reads it when it is imported.
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token))
        self.environment = {
            **os.environ,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",  # as `chainrule up` has it, and as the peer's loop runs
            "RAY_preload_python_modules": "workers.controller",  # as `chainrule up` has it, and the next two
            "RAY_task_events_report_interval_ms": "0",
            "RAY_maximum_gcs_destroyed_actor_cached_count": "1000",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "CHAINRULE_HOME": str(self.home),
            "CHAINRULE_RAY_ADDRESS": f"127.0.0.1:{ray}",
            "CHAINRULE_MLFLOW_URL": f"http://127.0.0.1:{mlflow}",
            "CHAINRULE_API_PORT": str(api),
        }
        self._start(
            "ray",
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--num-cpus={self.cpus}"),
            *("--node-ip-address=127.0.0.1", f"--port={ray}", f"--temp-dir={self.folder / 'ray'}"),
            *("--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
            *("--disable-usage-stats", f"--object-store-memory={200 << 20}"),
        )
        self._start("api", *CHAINRULE, "api")
        self._start("scheduler", *CHAINRULE, "scheduler")
        self._start(
            "mlflow",
            *(sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={mlflow}", "--workers=1"),
            f"--backend-store-uri=sqlite:///{self.home / 'mlflow.db'}",
            f"--artifacts-destination={self.home / 'mlflow-artifacts'}",
        )
        try:
            wait_for_answer(f"http://127.0.0.1:{api}/readyz")
            wait_for_answer(f"http://127.0.0.1:{mlflow}/health")
            wait_for_answer(f"{self.dashboard_url}/api/version", self.headers())
        except TimeoutError:
            end_descendants(grace_seconds=3.0)
            raise
        self.client = Client(f"http://127.0.0.1:{api}", (self.home / "admin.key").read_text().strip())

    def headers(self) -> dict[str, str]:
        """What Ray's dashboard asks for."""
        return {"authorization": f"Bearer {Path(os.environ['RAY_AUTH_TOKEN_PATH']).read_text()}"}

    def _start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )

    def finish(self, job_id: str, seconds: float = 600.0) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            job = self.client.get_job(job_id)
            if job["finished_at"]:
                if job["status"] != "succeeded":
                    raise RuntimeError(f"{job_id} {job['status']}: {job['reason']}")
                return job
            time.sleep(0.5)
        raise TimeoutError(job_id)

    def close(self) -> None:
        self.client.close()
        end_descendants(grace_seconds=3.0)


@contextlib.contextmanager
def stack() -> Iterator[Stack]:
    made = Stack()
    try:
        yield made
    finally:
        made.close()


def wait_for_answer(url: str, headers: dict[str, str] | None = None, seconds: float = 120.0) -> None:
    import httpx

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url, headers=headers, timeout=5).status_code == 200:
                return
        time.sleep(0.3)
    raise TimeoutError(url)


def run_json(*command: str, environment: dict[str, str] | None = None) -> Any:
    """Last line of a command's output, as JSON."""
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    if run.returncode:
        raise RuntimeError(f"{command[:4]} ended with {run.returncode}: {run.stderr[-2000:]}")
    return json.loads(run.stdout.strip().splitlines()[-1])
