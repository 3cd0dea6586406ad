"""Where a script may say how far it is: the status route of Kubeflow's trainer, which Hugging Face's Trainer posts to by itself when it is told of
one. It listens on this machine only, and answers nobody without the token, so that a script needs no key of the service.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import math
import re
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

LARGEST_BODY = 64 << 10
MOST_METRICS = 50
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]{0,79}")


@dataclass(frozen=True)
class Status:
    """What a script has posted. ``share``: of the run that is done, from 0 to 1."""

    share: float | None
    left_seconds: float | None
    metrics: Mapping[str, float] = field(default_factory=dict)
    at: float = field(default_factory=time.time)


class ProgressServer:
    """``took`` is called with each status, by a thread of its own."""

    def __init__(self, took: Callable[[Status], None]) -> None:
        self._token = secrets.token_urlsafe(32)
        self._folder = tempfile.TemporaryDirectory(prefix="cr-")  # for this user only
        self._token_path = Path(self._folder.name) / "token"
        self._token_path.write_text(self._token)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler(took))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, name="script-progress", daemon=True).start()

    @property
    def variables(self) -> dict[str, str]:
        return {
            "KUBEFLOW_TRAINER_SERVER_URL": f"http://127.0.0.1:{self._server.server_port}/v1/status",
            "KUBEFLOW_TRAINER_SERVER_TOKEN": str(self._token_path),
        }

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._folder.cleanup()

    def _handler(self, took: Callable[[Status], None]) -> type[BaseHTTPRequestHandler]:
        expected = f"Bearer {self._token}".encode()

        class Handler(BaseHTTPRequestHandler):
            timeout = 10

            def do_POST(self) -> None:
                given = self.headers.get("Authorization", "").encode("utf-8", "replace")
                if not hmac.compare_digest(given, expected):
                    return self._answer(401, "a bearer token is needed")
                length = self.headers.get("Content-Length", "")
                if not length.isdigit() or int(length) > LARGEST_BODY:
                    return self._answer(413, f"a body of at most {LARGEST_BODY} bytes is needed")
                try:
                    status = parse(json.loads(self.rfile.read(int(length))))
                except ValueError as error:
                    return self._answer(422, str(error))
                took(status)
                return self._answer(200, "taken")

            def _answer(self, code: int, message: str) -> None:
                body = json.dumps({"message": message}).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: Any) -> None: ...

        return Handler


def parse(document: Any) -> Status:
    """Raises ValueError. Metrics that are no numbers, or have strange names, are left out."""
    status = document.get("trainerStatus") if isinstance(document, dict) else None
    if not isinstance(status, dict):
        raise ValueError("trainerStatus must be an object")
    metrics = {}
    given = status.get("metrics") or []
    if not isinstance(given, list):
        raise ValueError("trainerStatus.metrics must be a list of {name, value}")
    for entry in given[:MOST_METRICS]:
        with contextlib.suppress(TypeError, ValueError, KeyError):
            if NAME.fullmatch(entry["name"]):
                metrics[entry["name"]] = float(entry["value"])
    percent = _number(status, "progressPercentage")
    return Status(
        None if percent is None else min(1.0, percent / 100), _number(status, "estimatedRemainingSeconds"), metrics
    )


def _number(status: Mapping[str, Any], name: str) -> float | None:
    value = status.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"trainerStatus.{name} must be a number of at least 0")
    return float(value)
