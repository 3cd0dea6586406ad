"""The client against answers that a service, a proxy, or something else altogether may give."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

import api.client
from api.client import ApiError, Client, NoServiceError, server_sent_events
from api.home import Home

pytestmark = pytest.mark.unit

Handler = Callable[[httpx.Request], httpx.Response]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.client, "FIRST_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(api.client, "LONGEST_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(api.client, "RECONNECT_SECONDS", 0.0)


class Answers:
    """A service that gives these answers one after the other, and keeps what it was asked."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self._answers = iter(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return answer


def client(handler: Handler) -> Client:
    return Client("http://service", "key", httpx.MockTransport(handler))


def stream(text: str) -> httpx.Response:
    return httpx.Response(200, content=text.encode(), headers={"content-type": "text/event-stream"})


def event(number: int, **content: object) -> str:
    return f"event: job.event\nid: {number}\ndata: {json.dumps(content | {'sequence': number}, ensure_ascii=False)}\n\n"


DONE = "event: done\ndata: {}\n\n"


def test_a_create_that_got_no_answer_is_sent_again_under_the_same_key() -> None:
    """Another key for the second one would make two jobs."""
    answers = Answers(httpx.ReadTimeout("late"), httpx.Response(503), httpx.Response(201, json={"id": "job-1"}))
    assert client(answers).create_job({"name": "x"}) == {"id": "job-1"}
    keys = {request.headers["idempotency-key"] for request in answers.requests}
    assert len(answers.requests) == 3
    assert len(keys) == 1


def test_two_creates_have_two_keys() -> None:
    answers = Answers(httpx.Response(201, json={}), httpx.Response(201, json={}))
    service = client(answers)
    service.create_job({})
    service.create_job({})
    first, second = (request.headers["idempotency-key"] for request in answers.requests)
    assert first != second


@pytest.mark.parametrize("status", [400, 401, 404, 409, 422, 500, 507])
def test_a_refusal_is_final_and_says_everything(status: int) -> None:
    problems = [{"path": "training.epochs", "message": "must be whole", "value": "1.5"}]
    error = {"message": "no", "code": "invalid_request", "param": "training.epochs", "problems": problems}
    answers = Answers(httpx.Response(status, json={"error": error}, headers={"x-request-id": "req-1"}))
    with pytest.raises(ApiError, match=r"^no$") as caught:
        client(answers).get_job("job-1")
    seen = caught.value
    assert (seen.status, seen.code, seen.param, seen.request_id) == (
        status,
        "invalid_request",
        "training.epochs",
        "req-1",
    )
    assert seen.problems == problems


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(404, text="<html>"),
        httpx.Response(404, json=["x"]),
        httpx.Response(404, json={"error": "x"}),
        httpx.Response(302, headers={"location": "/login"}),
    ],
    ids=["page", "list", "text", "redirect"],
)
def test_an_error_in_another_form_is_still_an_error(answer: httpx.Response) -> None:
    with pytest.raises(ApiError, match="HTTP status"):
        client(Answers(answer)).get_job("job-1")


@pytest.mark.parametrize("body", ["<html>", "[]", ""])
def test_something_else_that_answers_is_no_service(body: str) -> None:
    with pytest.raises(NoServiceError, match="not a Chainrule service"):
        client(Answers(httpx.Response(200, text=body))).list_jobs()


@pytest.mark.parametrize("value", ["3", "Wed, 21 Oct 2026 07:28:00 GMT", "-1", ""])
def test_any_retry_after_is_understood(value: str) -> None:
    answers = Answers(httpx.Response(429, headers={"retry-after": value}), httpx.Response(200, json={"id": "job-1"}))
    assert client(answers).get_job("job-1")["id"] == "job-1"


def test_a_service_that_stays_away_is_said() -> None:
    answers = Answers(*[httpx.ConnectError("refused")] * 9)
    with pytest.raises(NoServiceError, match="http://service does not answer: refused"):
        client(answers).get_job("job-1")
    assert len(answers.requests) == 5


def test_changes_say_only_what_is_given() -> None:
    """A null would be a value."""
    answers = Answers(*[httpx.Response(200, json={})] * 4)
    service = client(answers)
    service.update_job("job-1", priority=0)
    service.update_job("job-1", workers={"min": 1, "max": 4}, metadata={})
    service.cordon_node("node/1", "new memory")
    service.workers("job-1", state="lost")
    sent = [(request.method, request.url.raw_path.decode(), request.content) for request in answers.requests]
    assert sent == [
        ("PATCH", "/v1/jobs/job-1", b'{"priority":0}'),
        ("PATCH", "/v1/jobs/job-1", b'{"metadata":{},"workers":{"min":1,"max":4}}'),
        ("POST", "/v1/cluster/nodes/node%2F1/cordon", b'{"reason":"new memory"}'),
        ("GET", "/v1/jobs/job-1/workers?state=lost", b""),
    ]


@pytest.mark.parametrize("url", ["", "service:8400", "http://[", "ftp://service", "nonsense", "http://a:b", "http://"])
def test_what_is_no_address_is_said_at_once(url: str) -> None:
    with pytest.raises(NoServiceError, match="no address"):
        Client(url, "key")


@pytest.mark.parametrize("key", ["", " ", "a b", "schlüssel", "a\nb"])
def test_what_can_be_no_key_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(NoServiceError, match="key") as caught:
        Client("http://service", key)
    assert not key.strip() or key not in str(caught.value)


def test_a_key_with_a_newline_behind_it_is_that_key() -> None:
    """As `$(cat admin.key)` or a secret mounted as a file gives it."""
    answers = Answers(httpx.Response(200, json={}))
    Client("http://service/", " key\n", httpx.MockTransport(answers)).get_job("job-1")
    assert answers.requests[0].headers["authorization"] == "Bearer key"


@pytest.mark.parametrize("job_id", ["../keys", "a/cancel", "a?x=1", "a#b", "ä"])
def test_a_job_id_cannot_lead_to_another_address(job_id: str) -> None:
    answers = Answers(httpx.Response(200, json={}))
    client(answers).cancel_job(job_id)
    path = answers.requests[0].url.raw_path.decode()
    assert path.startswith("/v1/jobs/")
    assert path.endswith("/cancel")
    assert path.count("/") == 4
    assert "?" not in path


@pytest.mark.parametrize(
    ("host", "proxied"),
    [("127.0.0.1", False), ("localhost", False), ("::1", False), ("far", True), ("192.0.2.1", True)],
)
def test_a_service_on_this_machine_is_not_asked_through_a_proxy(host: str, proxied: bool) -> None:
    assert api.client._is_here(host) is not proxied


# --- streams ----------------------------------------------------------------------------------------------------------


def messages(text: str, size: int) -> list[tuple[str, str | None, str]]:
    return list(server_sent_events(text[i : i + size] for i in range(0, len(text), size)))


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_event_streams_are_read_as_the_standard_says(size: int, end: str) -> None:
    text = (
        ": heartbeat\n\nevent: log\nid: 2:0=5\ndata: a\ndata:b\nretry: 5\n\nid: 3\n\ndata: last\n\ndata: unfinished\n"
    )
    seen = messages(text.replace("\n", end), size)
    assert seen == [("log", "2:0=5", "a\nb"), ("message", None, "last")]


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_characters_that_python_calls_line_ends_are_none(character: str) -> None:
    """httpx.Response.iter_lines would cut the line in two and drop the second half."""
    assert messages(f"data: a{character}b\n\n", 3) == [("message", None, f"a{character}b")]


def test_a_stream_that_breaks_goes_on_after_the_last_event() -> None:
    answers = Answers(
        stream(event(1) + event(2) + "event: job.event\nid: 3\ndata: {half"),
        httpx.ConnectError("restarting"),
        httpx.Response(503),
        stream(event(3) + DONE),
    )
    assert [seen["sequence"] for seen in client(answers).follow_events("job-1")] == [1, 2, 3]
    positions = [request.headers.get("last-event-id") for request in answers.requests]
    assert positions == [None, "2", "2", "2"]


def test_a_long_silence_does_not_count_against_the_next_break(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job may wait in the queue for hours; when the API is restarted then, the client reconnects."""
    now = iter(float(10_000 * i) for i in range(100))
    monkeypatch.setattr(time, "monotonic", lambda: next(now))

    def broken() -> Iterator[bytes]:
        yield b": heartbeat\n\n"
        raise httpx.ReadError("restarted")

    answers = Answers(httpx.Response(200, content=broken()), stream(event(1) + DONE))
    monkeypatch.setattr(api.client, "PATIENCE_SECONDS", 10_001.0)
    assert len(list(client(answers).follow_events("job-1"))) == 1


def test_patience_ends_and_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.client, "PATIENCE_SECONDS", -1.0)
    error = {"error": {"message": "Too many open streams.", "code": "too_many_streams"}}
    with pytest.raises(ApiError, match="Too many open streams"):
        list(client(Answers(httpx.Response(429, json=error))).follow_events("job-1"))
    with pytest.raises(NoServiceError, match="refused"):
        list(client(Answers(httpx.ConnectError("refused"))).follow_logs("job-1"))


def test_an_error_inside_a_stream_ends_it() -> None:
    error = json.dumps({"error": {"message": "Something went wrong.", "code": "internal_error"}})
    answers = Answers(stream(event(1) + f"event: error\ndata: {error}\n\n"))
    seen = client(answers).follow_events("job-1")
    assert next(seen)["sequence"] == 1
    with pytest.raises(ApiError, match="Something went wrong"):
        next(seen)


def test_a_refused_stream_is_not_asked_for_again() -> None:
    error = {"error": {"message": "no such job", "code": "not_found"}}
    with pytest.raises(ApiError, match="no such job"):
        list(client(Answers(httpx.Response(404, json=error))).follow_events("job-1"))


# --- where the service is ---------------------------------------------------------------------------------------------


def test_address_and_key_of_the_environment_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAINRULE_URL", "http://far:1/")
    monkeypatch.setenv("CHAINRULE_API_KEY", "given")
    assert Client.from_environment(Home(tmp_path)).url == "http://far:1"


def test_without_anything_the_message_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHAINRULE_URL", raising=False)
    monkeypatch.delenv("CHAINRULE_API_KEY", raising=False)
    with pytest.raises(NoServiceError, match="chainrule up"):
        Client.from_environment(Home(tmp_path))
    monkeypatch.setenv("CHAINRULE_URL", "http://far:1")
    with pytest.raises(NoServiceError, match="CHAINRULE_API_KEY"):
        Client.from_environment(Home(tmp_path))
