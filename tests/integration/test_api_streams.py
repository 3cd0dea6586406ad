"""Event streams, and raw HTTP, against a real server on a loopback port."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from api.streams import StreamLimits
from service.database import database_now
from service.states import append_event, locked_job
from tests.integration.api_service import ServerEvent, Service, error_of, read_stream, running_service, served, wait_for

pytestmark = pytest.mark.integration

LIMITS = StreamLimits(heartbeat_seconds=0.3, send_timeout_seconds=0.5, per_key=3)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with running_service(tmp_path, LIMITS, steps=None) as running:
        yield running


@pytest.fixture
def address(service: Service) -> Iterator[str]:
    with served(service.app) as url:
        yield url


@contextmanager
def follow(service: Service, url: str, **headers: str) -> Iterator[Iterator[ServerEvent]]:
    accept = {"Accept": "text/event-stream"}
    with httpx.stream("GET", url, headers=service.headers | accept | headers, timeout=10) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-request-id"]
        yield read_stream(response)


def without_heartbeats(events: Iterator[ServerEvent]) -> Iterator[ServerEvent]:
    return (event for event in events if event.name != "heartbeat")


def open_streams(service: Service) -> float:
    return float(service.app.state.services.monitoring.open_streams._value.get())


def test_a_stream_tells_everything_once_and_ends(service: Service, address: str) -> None:
    job = service.submit()
    url = f"{address}/v1/jobs/{job}/events"
    service.run_until(job, "running")
    with follow(service, url) as stream:
        events = without_heartbeats(stream)
        first = [next(events), next(events)]
        service.post(f"/v1/jobs/{job}/cancel")  # what happens now arrives live
        service.run_until(job, "cancelled")
        rest = list(events)
    assert rest[-1].name == "done"
    done = json.loads(rest[-1].data)
    assert (done["id"], done["status"], done["reason"]["code"]) == (job, "cancelled", "cancelled")
    told = [*first, *rest[:-1]]
    assert {event.name for event in told} == {"job.event"}
    listed = service.get(f"/v1/jobs/{job}/events?limit=1000").json()["data"]
    assert [json.loads(event.data) for event in told] == listed
    assert [event.id for event in told] == [str(event["sequence"]) for event in listed]


def test_a_stream_goes_on_where_it_was_cut_off(service: Service, address: str) -> None:
    job = service.submit()
    service.run_until(job, "running")
    url = f"{address}/v1/jobs/{job}/events?stream=true"
    with follow(service, url) as stream:
        seen = [next(without_heartbeats(stream)).id, next(without_heartbeats(stream)).id]
    wait_for(lambda: open_streams(service) == 0)
    service.post(f"/v1/jobs/{job}/kill")
    service.run_until(job, "cancelled")
    # The header of a client that reconnects counts more than the address that it began with.
    with follow(service, f"{url}&after=1", **{"Last-Event-ID": seen[-1] or ""}) as stream:
        rest = list(without_heartbeats(stream))
    ids = [*seen, *(event.id for event in rest[:-1])]
    assert ids == [str(number) for number in range(1, len(ids) + 1)]
    assert rest[-1].name == "done"
    with follow(service, url, **{"Last-Event-ID": ids[-1] or ""}) as stream:
        assert [event.name for event in without_heartbeats(stream)] == ["done"]


def test_a_silent_stream_has_a_heartbeat(service: Service, address: str) -> None:
    job = service.submit()
    with follow(service, f"{address}/v1/jobs/{job}/events?after=1") as stream:
        assert [next(stream).name, next(stream).name] == ["heartbeat", "heartbeat"]


def test_a_key_has_so_many_streams(service: Service, address: str) -> None:
    job = service.submit()
    url = f"{address}/v1/jobs/{job}/events?stream=true"
    with follow(service, url), follow(service, url), follow(service, url):
        wait_for(lambda: open_streams(service) == 3)
        refused = httpx.get(url, headers=service.headers, timeout=10)
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "5"
        assert error_of(refused)["code"] == "too_many_streams"
    wait_for(lambda: open_streams(service) == 0)
    with follow(service, url) as stream:
        assert next(stream).id == "1"


def test_a_client_that_does_not_read_is_dropped(service: Service, address: str) -> None:
    job = service.submit()
    with service.store.write() as session:  # more than the buffers between server and client hold
        row = locked_job(session, job)
        assert row is not None
        for _ in range(400):
            append_event(session, row, database_now(session), "info", "test.large", "x" * 50_000, {})
    host, port = urlsplit(address).hostname, urlsplit(address).port
    with socket.create_connection((host, port)) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        request = f"GET /v1/jobs/{job}/events?stream=true HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {service.key}\r\n\r\n"
        connection.sendall(request.encode())
        wait_for(lambda: open_streams(service) == 1)
        wait_for(lambda: open_streams(service) == 0)
    with follow(service, f"{address}/v1/jobs/{job}/events?after=390") as stream:  # and can resume
        assert [next(without_heartbeats(stream)).id for _ in range(3)] == ["391", "392", "393"]


def test_logs_are_followed_across_ranks_and_attempts(service: Service, address: str) -> None:
    job = service.submit()
    folder = service.folder(job)
    write_log(folder.log_path(1, 0), "2026-11-23T19:00:00.100Z first", "2026-11-23T19:00:00.300Z third")
    write_log(folder.log_path(1, 1), "2026-11-23T19:00:00.200Z second")
    url = f"{address}/v1/jobs/{job}/logs"
    with follow(service, url) as stream:
        lines = without_heartbeats(stream)
        began = [next(lines), next(lines), next(lines)]
        assert [json.loads(line.data)["text"] for line in began] == ["first", "second", "third"]
        write_log(folder.log_path(2, 0), "2026-11-23T19:00:01.000Z fourth")
        assert (json.loads(next(lines).data)["text"], began[0].name) == ("fourth", "log")
        service.post(f"/v1/jobs/{job}/kill")
        service.run_until(job, "cancelled")
        assert next(lines).name == "done"
    with follow(service, url, **{"Last-Event-ID": began[1].id or ""}) as stream:
        rest = list(without_heartbeats(stream))
    assert [json.loads(line.data)["text"] for line in rest[:-1]] == ["third", "fourth"]


def write_log(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(f"{line}\n" for line in lines)


def exchange(address: str, request: bytes, answers: int = 1) -> bytes:
    """What the server answers to these bytes: so many heads of responses, or less when it closes."""
    host, port = urlsplit(address).hostname, urlsplit(address).port
    received = b""
    with socket.create_connection((host, port), timeout=20) as connection:
        connection.sendall(request)
        while received.count(b"HTTP/1.1 ") < answers and (piece := connection.recv(65536)):
            received += piece
    return received


def test_a_chunked_body_without_end_is_ended(service: Service, address: str) -> None:
    host, port = urlsplit(address).hostname, urlsplit(address).port
    head = (
        "POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {service.key}\r\n\r\n"
    )
    chunk = b"10000\r\n" + b" " * 2**16 + b"\r\n"
    sent, answer = 0, b""
    with socket.create_connection((host, port), timeout=10) as connection:
        connection.sendall(head.encode())
        try:
            while sent < 1000:
                connection.sendall(chunk)
                sent += 1
        except OSError:  # the server has closed
            pass
        with suppress(OSError):
            answer = connection.recv(65536)
    assert sent < 900, "the server took a body of more than 56 MB"
    assert answer == b"" or answer.startswith(b"HTTP/1.1 413")
    assert service.job_count() == 0


@pytest.mark.parametrize(
    "request_head",
    [
        "TRACE /v1/jobs HTTP/1.1\r\n", "CONNECT /v1/jobs HTTP/1.1\r\n", "BREW /v1/jobs HTTP/1.1\r\n",
        "HEAD /v1/jobs/{job}/events HTTP/1.1\r\nAccept: text/event-stream\r\n",
        "POST /v1/jobs HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\nContent-Type: application/json\r\n",
        "GET /v1/jobs HTTP/1.1\r\nX-Large: " + "x" * 65536 + "\r\n",
        "GET /v1/jobs HTTP/1.1\r\nHost: evil.example\r\n",
        "GET /v1/jobs HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: eHh4eHh4eHh4eHh4eHh4eA==\r\n"
        "Sec-WebSocket-Version: 13\r\nOrigin: http://evil.example\r\n",
        "GET /v1/jobs/%2e%2e/%2e%2e/healthz HTTP/1.1\r\n", "GET /v1/jobs/../../healthz HTTP/1.1\r\n",
        "GET /v1/jobs/\xff HTTP/1.1\r\n", "GET http://evil.example/v1/jobs HTTP/1.1\r\nHost: evil.example\r\n",
    ],
    ids=lambda head: head[:40].strip(),
)  # fmt: skip
def test_odd_requests_get_an_answer_that_is_no_server_error(service: Service, address: str, request_head: str) -> None:
    job = service.submit()
    head = (
        request_head.replace("{job}", job) + f"Host: 127.0.0.1\r\nAuthorization: Bearer {service.key}\r\n\r\n0\r\n\r\n"
    )
    answer = exchange(address, head.encode("latin-1"))
    assert answer.startswith(b"HTTP/1.1 4"), answer[:200]
    assert httpx.get(f"{address}/healthz").status_code == 200


def test_pipelined_requests_are_all_answered(service: Service, address: str) -> None:
    request = f"GET /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {service.key}\r\n\r\n".encode()
    answer = exchange(address, request * 100, answers=100)
    assert answer.count(b"HTTP/1.1 200 OK") == 100


def test_other_requests_do_not_wait_for_streams(service: Service, address: str) -> None:
    job = service.submit()
    url = f"{address}/v1/jobs/{job}/events?stream=true"
    with follow(service, url), follow(service, url), follow(service, url):
        started_at = time.monotonic()
        for _ in range(20):
            assert httpx.get(f"{address}/v1/jobs/{job}", headers=service.headers).status_code == 200
        assert time.monotonic() - started_at < 10


def test_a_stream_outlives_an_outage_of_the_database(service: Service, address: str, tmp_path: Path) -> None:
    """And meanwhile everything else says 503, with the time after which to come back."""
    database, hidden = tmp_path / "chainrule.db", tmp_path / "hidden.db"
    job = service.submit()
    with follow(service, f"{address}/v1/jobs/{job}/events?after=1") as stream:
        next(stream)
        service.store.close()  # open connections would go on with the renamed file
        database.rename(hidden)
        database.mkdir()
        answer = service.get("/v1/jobs")
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert "sql" not in error_of(answer)["message"].lower()
        assert service.client.get("/readyz").json()["checks"]["database"]["ok"] is False
        assert service.client.get("/healthz").status_code == 200
        assert service.get("/metrics").status_code == 503
        database.rmdir()
        hidden.rename(database)
        service.post(f"/v1/jobs/{job}/kill")
        assert next(without_heartbeats(stream)).name == "job.event"
