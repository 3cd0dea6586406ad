"""`chainrule doctor`: what a person would look at first when something does not work."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import stat
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version

import typer

from api.cli.console import HomeOption, JsonOption, print_json, say
from api.home import Home, Service

PACKAGES = ("torch", "ray", "mlflow", "fastapi", "pydantic", "sqlalchemy", "transformers")
LITTLE_SPACE = 2 << 30


@dataclass(frozen=True)
class Check:
    name: str
    ok: bool
    message: str


def doctor(as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Check this machine and the service on it. Exit 0 when everything is fine, 1 when not."""
    checks = list(_checks(Home(home)))
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        for check in checks:
            say(f"{'ok  ' if check.ok else 'FAIL'}  {check.name:18} {check.message}", "" if check.ok else "red")
    raise typer.Exit(0 if all(check.ok for check in checks) else 1)


def _checks(home: Home) -> Iterator[Check]:
    yield Check("python", sys.version_info >= (3, 11), f"{platform.python_version()}, 3.11 or newer is needed")
    for name in PACKAGES:
        try:
            yield Check(name, True, version(name))
        except PackageNotFoundError:
            yield Check(name, False, "is not installed; `make .venv` installs everything")
    yield Check("processors", True, f"{os.cpu_count()}")
    yield _gpus()
    yield from _folder(home)
    service = home.service()
    if service is None:
        yield Check("service", True, f"none runs on {home.path}; `chainrule up` starts one")
        for name, port in (("API port", 8400), ("MLflow port", 8401)):
            yield _free(name, port)
    else:
        yield from _running(home, service)


def _gpus() -> Check:
    import pynvml

    try:
        pynvml.nvmlInit()
        names = [
            pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(i)) for i in range(pynvml.nvmlDeviceGetCount())
        ]
    except pynvml.NVMLError:
        return Check("accelerators", True, "none; jobs train on processors")
    return Check("accelerators", True, ", ".join(map(str, names)) or "none; jobs train on processors")


def _folder(home: Home) -> Iterator[Check]:
    path = home.path
    while not path.exists():
        path = path.parent
    yield Check(
        "home", os.access(path, os.W_OK), f"{home.path}" + ("" if os.access(path, os.W_OK) else " cannot be written")
    )
    free = shutil.disk_usage(path).free
    yield Check("disk space", free > LITTLE_SPACE, f"{free / (1 << 30):.1f} GiB free")
    for name in ("admin.key", "ray.token"):
        secret = home.path / name
        if secret.exists():
            mode = stat.S_IMODE(secret.stat().st_mode)
            yield Check(
                name,
                mode & 0o077 == 0,
                f"mode {mode:04o}" + ("" if mode & 0o077 == 0 else ": others can read it; chmod 600"),
            )


def _free(name: str, port: int) -> Check:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return Check(name, False, f"{port}: {error.strerror}; start with another one")
    return Check(name, True, f"{port} is free")


def _running(home: Home, service: Service) -> Iterator[Check]:
    import httpx

    with httpx.Client(timeout=5.0, trust_env=False) as http:
        for name, url in (("API", f"{service.url}/healthz"), ("MLflow", f"{service.mlflow_url}/health")):
            try:
                answer = http.get(url)
                yield Check(name, answer.status_code == 200, f"{url} answers {answer.status_code}")
            except httpx.HTTPError as error:
                yield Check(name, False, f"{url}: {error}; see {home.logs}")
        try:
            answer = http.get(f"{service.url}/readyz")
            for part, check in answer.json()["checks"].items():
                yield Check(part, check["ok"], check["message"] or "fine")
        except (httpx.HTTPError, ValueError, KeyError) as error:
            yield Check("readiness", False, f"{service.url}/readyz: {error}")
