"""The API over a real database, with a scheduler whose passes a test makes one by one over a cluster in memory."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from api.app import create_app
from api.streams import StreamLimits
from service.database import Store
from service.fake_cluster import FakeCluster
from service.keys import create_key
from service.leases import Lease
from service.reconciler import Reconciler
from service.records import Records
from service.settings import Settings
from service.states import append_event, locked_job
from service.tables import JobRow
from service.values import Role
from workers.jobfolder import JobFolder
from workers.reports import Level

DIGITS: dict[str, Any] = {"name": "digits", "task": {"kind": "image_classification", "data": {"source": "digits"}}}


@dataclass
class Service:
    settings: Settings
    app: FastAPI
    client: TestClient
    key: str
    cluster: FakeCluster
    lease: Lease
    reconciler: Reconciler
    last_tick: float = field(default=0.0)

    @property
    def store(self) -> Store:
        store: Store = self.app.state.services.store
        return store

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def get(self, path: str, **arguments: Any) -> Any:
        return self.client.get(path, headers={**self.headers, **arguments.pop("headers", {})}, **arguments)

    def post(self, path: str, **arguments: Any) -> Any:
        return self.client.post(path, headers={**self.headers, **arguments.pop("headers", {})}, **arguments)

    def patch(self, path: str, **arguments: Any) -> Any:
        return self.client.patch(path, headers={**self.headers, **arguments.pop("headers", {})}, **arguments)

    def submit(self, **fields: Any) -> str:
        answer = self.post("/v1/jobs", json=DIGITS | fields)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def key_of(self, role: Role, project: str = "default") -> dict[str, str]:
        return {"Authorization": f"Bearer {create_key(self.store, name='test', role=role, project=project)[1]}"}

    def run_pass(self) -> None:
        assert self.lease.acquire()
        self.last_tick += 10.0  # every wait inside the reconciler is over
        self.reconciler.run_pass(datetime.now(UTC), self.last_tick)

    def run_until(self, job_id: str, status: str) -> None:
        for _ in range(30):
            if self.get(f"/v1/jobs/{job_id}").json()["status"] == status:
                return
            self.run_pass()
        raise AssertionError(f"{job_id} did not become {status}: {self.get(f'/v1/jobs/{job_id}').text}")

    def tell(self, job_id: str, type: str, data: Mapping[str, Any], level: Level = "warning") -> None:
        """An event, as the scheduler records one."""
        with self.store.write() as session:
            append_event(session, self._row(session, job_id), datetime.now(UTC), level, type, "told", data)

    def judge(self, job_id: str, **health: Any) -> None:
        with self.store.write() as session:
            self._row(session, job_id).health = health

    @staticmethod
    def _row(session: Session, job_id: str) -> JobRow:
        row = locked_job(session, job_id)
        assert row is not None
        return row

    def folder(self, job_id: str) -> JobFolder:
        return JobFolder(self.settings.storage, job_id)

    def job_count(self) -> int:
        return len(self.get("/v1/jobs?limit=100").json()["data"])


@contextmanager
def running_service(
    home: Path, limits: StreamLimits | None = None, steps: int | None = 3, settings: Settings | None = None
) -> Iterator[Service]:
    settings = settings or Settings(home=home)
    app = create_app(settings, limits)
    cluster = FakeCluster(steps=steps)
    with TestClient(app, base_url="http://127.0.0.1:8400") as client:
        store = app.state.services.store
        lease = Lease(store, 60)
        reconciler = Reconciler(Records(store, lease), cluster, settings)
        yield Service(settings, app, client, settings.admin_key_file.read_text().strip(), cluster, lease, reconciler)


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The application behind a real server; its address."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    wait_for(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        listener.close()
        assert not thread.is_alive()


def wait_for(condition: Any, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def error_of(answer: Any) -> dict[str, Any]:
    """The error of a response, after a look at its envelope. Works for httpx' and the test client's responses."""
    assert answer.headers["content-type"] == "application/json", answer.text
    assert answer.headers["x-request-id"]
    error: dict[str, Any] = answer.json()["error"]
    assert {"message", "type", "param", "code"} <= set(error), error
    assert error["message"]
    assert "Traceback" not in answer.text
    assert len(answer.content) < 40_000
    return error


@dataclass
class ServerEvent:
    name: str
    id: str | None
    data: str


def read_stream(response: httpx.Response) -> Iterator[ServerEvent]:
    """Server-sent events, as a client would read them; heartbeats appear as events of that name."""
    name, identity, data = "", None, ""
    for line in response.iter_lines():
        if line.startswith(":"):
            yield ServerEvent("heartbeat", None, line[1:].strip())
        elif line.startswith("event: "):
            name = line[7:]
        elif line.startswith("id: "):
            identity = line[4:]
        elif line.startswith("data: "):
            data += line[6:]
        elif not line and name:
            yield ServerEvent(name, identity, data)
            name, identity, data = "", None, ""
