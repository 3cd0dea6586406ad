"""The home folder of an installation: who runs it, under which addresses, and the keys to it."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

SERVICE, ADMIN_KEY, RAY_TOKEN, LOCK = "service.json", "admin.key", "ray.token", "lock"
LOOK_SECONDS = 0.3  # ``service`` of another process takes the lock for a moment
ENDING_SECONDS = 30.0  # after the owner was killed, its guardian holds the lock until everything is ended


class HomeError(RuntimeError):
    """The home cannot be used: another live ``chainrule up`` has it, or it cannot be written. ``str()`` is for people."""


@dataclass(frozen=True)
class Service:
    """Addresses of the service that runs on a home."""

    url: str
    mlflow_url: str
    pid: int


class Home:
    def __init__(self, path: str | Path | None = None) -> None:
        chosen = path or os.environ.get("CHAINRULE_HOME") or "~/.chainrule"
        self.path = Path(chosen).expanduser().absolute()
        self._lock: IO[str] | None = None

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def acquire(self) -> None:
        """Makes the folder and takes it for this process, until ``release`` or its end. Raises HomeError."""
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.logs.mkdir(exist_ok=True)
            lock = (self.path / LOCK).open("a+")
        except OSError as error:
            raise HomeError(f"{self.path} cannot be used: {error.strerror}; choose another --home") from error
        started = time.monotonic()
        while not _locked(lock):
            lock.seek(0)
            owner = lock.read().strip()
            patience = LOOK_SECONDS if _lives(owner) else ENDING_SECONDS
            if time.monotonic() - started > patience:
                lock.close()
                raise HomeError(
                    f"{self.path} is used by another chainrule (pid {owner}); stop it, or choose another --home"
                )
            time.sleep(0.05)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock

    @property
    def lock(self) -> int:
        """Descriptor of the lock. The home stays taken as long as any process has it open."""
        assert self._lock is not None, "acquire() comes first"
        return self._lock.fileno()

    def release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def ray_token(self) -> Path:
        """The file with the token of this home's Ray cluster, made at the first call; nobody else may read it."""
        path = self.path / RAY_TOKEN
        if not path.exists():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(32))
        path.chmod(0o600)
        return path

    def announce(self, service: Service) -> None:
        partial = self.path / f"{SERVICE}.partial"
        partial.write_text(json.dumps(asdict(service)))
        partial.replace(self.path / SERVICE)

    def withdraw(self) -> None:
        (self.path / SERVICE).unlink(missing_ok=True)

    def service(self) -> Service | None:
        """The service that runs on this home now; None when there is none, or only the file of one that died."""
        try:
            document: Mapping[str, Any] = json.loads((self.path / SERVICE).read_text())
            service = Service(**document)
        except (OSError, ValueError, TypeError):
            return None
        return service if self._is_taken() else None

    def _is_taken(self) -> bool:
        try:
            with (self.path / LOCK).open("a+") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        return False

    def admin_key(self) -> str | None:
        try:
            return (self.path / ADMIN_KEY).read_text().strip()
        except OSError:
            return None


def _locked(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _lives(owner: str) -> bool:
    """Whether the process whose pid is written in the lock is there; an empty lock is one that was never owned."""
    if not owner.isdigit():
        return True
    try:
        os.kill(int(owner), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True
