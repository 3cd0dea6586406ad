"""The whole product in its own processes, as a person starts it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.helpers import wait_for

CHAINRULE = (str(Path(sys.executable).with_name("chainrule")),)  # as the user calls it, not as a module of the checkout
PROXY = "http://127.0.0.1:9"  # where nobody answers


def environment(home: Path) -> dict[str, str]:
    """As a fresh shell in a company's network has it: nothing of the tests' own Ray, the home, and a proxy for everything."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "CHAINRULE_", "MLFLOW_"))}
    kept = {key: value for key, value in kept.items() if key.lower() != "no_proxy"}
    own = {"CHAINRULE_HOME": str(home), "CHAINRULE_TEST_MARK": str(home)}
    return {**kept, **own, "http_proxy": PROXY, "HTTP_PROXY": PROXY}


def where_the_user_stands(folder: Path) -> Path:
    """A project whose packages are called like ours. Importing one of them is a mistake that cannot be missed."""
    place = folder / "project"
    for package in ("api", "service", "workers"):
        (place / package).mkdir(parents=True, exist_ok=True)
        (place / package / "__init__.py").write_text(f"raise SystemExit('this {package} is the user's')\n")
    return place


def marked(home: Path) -> list[psutil.Process]:
    """Every process that belongs to what was started on ``home``, found by the environment that it inherited."""
    mark = f"CHAINRULE_TEST_MARK={home}".encode()
    found = []
    for process in psutil.process_iter():
        try:
            content = Path(f"/proc/{process.pid}/environ").read_bytes()
        except OSError:
            continue
        if mark in content.split(b"\0") and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


class Product:
    """``chainrule up`` on a home of its own."""

    def __init__(self, home: Path, *options: str) -> None:
        self.home = home
        self.http: httpx.Client = httpx.Client()
        home.parent.mkdir(parents=True, exist_ok=True)
        self.output = home.parent / f"{home.name}.out"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [*CHAINRULE, "up", "--port", "0", "--mlflow-port", "0", "--cpus", "2", *options],
                env=environment(home),
                cwd=where_the_user_stands(home.parent),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def wait_until_ready(self) -> None:
        def ready() -> str | None:
            """The address, which is said in a line of its own after that the service is ready."""
            assert self.process.poll() is None, self.output.read_text()
            found = re.search(r"ready after[\s\S]*API\s+(http://\S+)\s[\s\S]*Ctrl-C", self.output.read_text())
            return found[1] if found else None

        self.url = wait_for("the service", ready, 120)
        self.key = (self.home / "admin.key").read_text().strip()
        self.http.close()
        self.http = httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {self.key}"}, timeout=30)

    def end(self, number: int = signal.SIGINT) -> None:
        self.http.close()
        if self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(timeout=60)

    def job(self, job_id: str) -> dict[str, Any]:
        job: dict[str, Any] = self.http.get(f"/v1/jobs/{job_id}").json()
        return job

    def until(self, job_id: str, what: str, true: Any, seconds: float = 90.0) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            try:
                job = self.job(job_id)
            except httpx.TransportError:
                return None  # the API was killed by the test
            return job if "status" in job and true(job) else None

        return wait_for(what, look, seconds)

    def role(self, name: str) -> psutil.Process:
        """The process of ``chainrule api``, ``chainrule scheduler``, MLflow's server or Ray's head."""
        command = {"ray": "ray.scripts.scripts", "mlflow": "mlflow"}.get(name)
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                line = process.cmdline()
                if line[-2:] == ["api.cli.main", name] or (command is not None and command in line):
                    return process
            except psutil.Error:
                continue
        raise AssertionError(f"there is no {name}")

    def curl(self, *arguments: str) -> Any:
        """What a person with nothing but curl gets."""
        command = ["curl", "-sS", "-H", f"Authorization: Bearer {self.key}", *arguments]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        return json.loads(answer)

    def chainrule(self, *arguments: str) -> str:
        """What the command prints for people."""
        run = subprocess.run(
            [*CHAINRULE, *arguments],
            env=environment(self.home),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout


def wait_until_nothing_is_left(home: Path, seconds: float = 40.0) -> None:
    deadline = time.monotonic() + seconds
    while (left := marked(home)) and time.monotonic() < deadline:
        time.sleep(0.2)
    try:
        assert not left, [(process.pid, process.name()) for process in left]
    finally:
        for process in left:
            process.kill()
