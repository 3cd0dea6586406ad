"""docker-compose.yml as Docker's own tool reads it."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from deploy import compose_env
from tests.deployment.hosts import CHECKOUT

FILE = CHECKOUT / "docker-compose.yml"
Service = Mapping[str, Any]


@functools.cache
def tool() -> tuple[str, ...]:
    """The plugin of Docker's command line, else the older program."""
    if shutil.which("docker"):
        plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, timeout=30, check=False)
        if plugin.returncode == 0:
            return ("docker", "compose")
    assert shutil.which("docker-compose"), "Debian's package docker-compose is needed"
    return ("docker-compose",)


def config(folder: Path, **settings: str) -> dict[str, Any]:
    """The whole file with secrets as `make compose-env` makes them, and ``settings`` of the same file. Raises AssertionError for an invalid one."""
    run = read(folder, compose_env.complete("".join(f"{key}={value}\n" for key, value in settings.items()))[0])
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = yaml.safe_load(run.stdout)
    return found


def read(folder: Path, env_file: str) -> subprocess.CompletedProcess[str]:
    """What the tool says of the file with such an env file."""
    (folder / ".env").write_text(env_file)
    kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    return subprocess.run(
        [*tool(), "--env-file", str(folder / ".env"), "--file", str(FILE), "config"],
        cwd=folder, env=kept, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def in_order(services: Mapping[str, Service]) -> Iterator[str]:
    """Each after those that it depends on."""
    done: set[str] = set()
    while len(done) < len(services):
        ready = [name for name in services if name not in done and set(services[name].get("depends_on", {})) <= done]
        assert ready, f"services that wait for each other: {sorted(set(services) - done)}"
        for name in ready:
            done.add(name)
            yield name
