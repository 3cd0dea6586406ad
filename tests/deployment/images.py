"""What deploy/Dockerfile does, done here: its COPY and `python -m pip` steps, in a folder and a clean virtual environment."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.deployment.hosts import CHECKOUT

DOCKERFILE = CHECKOUT / "deploy" / "Dockerfile"
SECONDS = 900.0


@dataclass
class Stage:
    """One FROM of the file, with all that it inherits."""

    name: str
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)  # (instruction, its arguments)


def stages(text: str) -> dict[str, Stage]:
    found: dict[str, Stage] = {}
    current: Stage | None = None
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        instruction, _, arguments = line.strip().partition(" ")
        if not instruction or instruction.startswith("#"):
            continue
        if instruction == "FROM":
            base, _, name = arguments.partition(" AS ")
            inherited = found[base].steps if base in found else []
            current = found[name] = Stage(name, found[base].base if base in found else base, list(inherited))
        else:
            assert current is not None, f"{line!r} before the first FROM"
            current.steps.append((instruction, arguments.strip()))
    return found


@dataclass(frozen=True)
class Image:
    """``venv`` is in place of the image's Python, ``workdir`` is what lies in its WORKDIR."""

    venv: Path
    workdir: Path
    target: str  # the WORKDIR
    environment: dict[str, str]


def build(name: str, folder: Path) -> Image:
    """Raises CalledProcessError when a step fails."""
    stage = stages(DOCKERFILE.read_text(encoding="utf-8"))[name]
    workdir, venv, target = folder / "workdir", folder / "venv", "/"
    environment: dict[str, str] = {}
    workdir.mkdir(parents=True)
    subprocess.run([sys.executable, "-m", "venv", venv], check=True, timeout=SECONDS)
    for instruction, arguments in stage.steps:
        if instruction == "WORKDIR":
            target = arguments
        elif instruction == "ENV":
            environment |= dict(pair.split("=", 1) for pair in shlex.split(arguments))
        elif instruction == "COPY":
            *sources, to = shlex.split(arguments)
            for source in sources:
                _copy(CHECKOUT / source, workdir / (Path(source).name if to == "./" else to))
        elif instruction == "RUN" and arguments.startswith("python -m pip "):
            _install(arguments.removeprefix("python "), venv, workdir)
    return Image(venv, workdir, target, environment)


def _copy(source: Path, to: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, to, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copyfile(source, to)


def _install(arguments: str, venv: Path, workdir: Path) -> None:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    run = subprocess.run(
        [venv / "bin" / "python", *shlex.split(arguments), "--quiet"],
        cwd=workdir, env=kept, capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert run.returncode == 0, f"pip in {workdir}: {run.stderr[-3000:]}"


def installed(image: Image) -> set[str]:
    """Names of the packages in the image."""
    run = subprocess.run(
        [image.venv / "bin" / "python", "-m", "pip", "list", "--format=json"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return {package["name"].lower() for package in json.loads(run.stdout)}
