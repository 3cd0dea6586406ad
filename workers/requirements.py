"""What a job's own code requires beyond what workers have: installed by pip into an environment on top of this one.

The environment has only what is missing, and sees the rest: torch and its like are neither copied nor replaced.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator, Sequence
from importlib.metadata import distributions
from pathlib import Path

from workers.sources.problems import BadCodeError

FIELD = "task.code.requirements"
PIP_SECONDS = 1800
DONE = "complete"


def install(wanted: Sequence[str], place: Path) -> Path:
    """The folder of modules with what pip installed for ``wanted``. Workers that ask at once wait for the first of them.

    Raises BadCodeError with pip's own words when something is not found, cannot be built, or would replace what the worker itself uses.
    """
    folder = place / f"packages-{_digest(wanted)}"
    place.mkdir(parents=True, exist_ok=True)
    with _lock(folder.with_suffix(".lock")):
        if not (folder / DONE).exists():
            shutil.rmtree(folder, ignore_errors=True)
            _install(wanted, folder)
            (folder / DONE).touch()
    return _modules(folder)


def _install(wanted: Sequence[str], folder: Path) -> None:
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    ours = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    (_modules(folder) / "worker.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in ours))
    constraints, listed = folder / "constraints.txt", folder / "requirements.txt"
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in _installed()))
    listed.write_text("".join(f"{each}\n" for each in wanted))
    command = [
        *(str(folder / "bin" / "python"), "-m", "pip", "install", "--no-input", "--disable-pip-version-check"),
        *("--constraint", str(constraints), "--requirement", str(listed)),
    ]
    try:
        run = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PIP_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as error:
        raise BadCodeError(FIELD, f"pip did not come to an end in {PIP_SECONDS} s") from error
    print(run.stdout, run.stderr, flush=True)  # into the worker's log
    if run.returncode != 0:
        raise BadCodeError(FIELD, f"pip could not install them: {_said(run.stderr)}")


def _said(errors: str) -> str:
    """pip's reasons, without its hints and tracebacks."""
    lines = [line.removeprefix("ERROR: ").strip() for line in errors.splitlines() if line.strip()]
    reasons = [line.removeprefix("ERROR: ").strip() for line in errors.splitlines() if line.startswith("ERROR:")]
    return "; ".join(reasons or lines[-3:])[:1000] or "it did not say why"


def _installed() -> list[tuple[str, str]]:
    found: dict[str, str] = {}
    for each in distributions():
        name = each.metadata["Name"] if each.metadata is not None else None
        if name and each.version:
            found.setdefault(name.lower(), each.version)
    return sorted(found.items())


def _digest(wanted: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps([*wanted, sys.version, sys.executable]).encode()).hexdigest()[:16]


def _modules(folder: Path) -> Path:
    return Path(sysconfig.get_path("purelib", "venv", vars={"base": str(folder), "platbase": str(folder)}))


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
