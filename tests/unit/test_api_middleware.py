"""What surrounds every request, driven message by message."""

from __future__ import annotations

import json
import logging
from typing import Any

import anyio
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import ApiError, handle
from api.middleware import (
    BodyLimitMiddleware,
    OriginMiddleware,
    RequestContextMiddleware,
    SameOriginSocketMiddleware,
)
from api.monitoring import Monitoring

pytestmark = pytest.mark.unit


async def read_body(request: Request) -> Response:
    return Response(str(len(await request.body())))


async def break_down(request: Request) -> Response:
    raise RuntimeError("secret detail")


def application() -> Starlette:
    routes = [Route("/read", read_body, methods=["POST"]), Route("/break", break_down, methods=["POST"])]
    middleware = [
        Middleware(RequestContextMiddleware, monitoring=Monitoring()),
        Middleware(BodyLimitMiddleware, timeout_seconds=0.2),
    ]
    return Starlette(routes=routes, middleware=middleware, exception_handlers={ApiError: handle})


def request(path: str, *messages: Message) -> tuple[int, dict[str, str], bytes]:
    """The answer to a POST whose body comes as ``messages``; after the last of them the client says nothing more."""
    left, sent = list(messages), list[Message]()

    async def receive() -> Message:
        if not left:
            await anyio.sleep_forever()
        return left.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    scope: dict[str, Any] = {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"", "headers": [],
        "http_version": "1.1", "scheme": "http", "server": ("127.0.0.1", 1), "client": None, "root_path": "",
    }  # fmt: skip
    anyio.run(application(), scope, receive, send)
    assert [message["type"] for message in sent[:1]] in ([], ["http.response.start"])
    if not sent:
        return 0, {}, b""
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, b"".join(message.get("body", b"") for message in sent[1:])


def part(content: bytes, *, more: bool) -> Message:
    return {"type": "http.request", "body": content, "more_body": more}


def test_a_body_in_parts_is_read() -> None:
    assert request("/read", part(b"abc", more=True), part(b"d", more=False))[2] == b"4"


def test_a_body_that_stops_arriving_is_given_up() -> None:
    status, headers, body = request("/read", part(b"abc", more=True))
    assert (status, headers["connection"]) == (408, "close")
    assert json.loads(body)["error"]["code"] == "body_timeout"


def test_an_unexpected_exception_is_logged_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    status, headers, body = request("/break", part(b"", more=False))
    assert status == 500
    assert headers["x-request-id"] in json.loads(body)["error"]["message"]
    assert b"secret" not in body
    record = next(record for record in caplog.records if record.levelno == logging.ERROR)
    assert headers["x-request-id"] in record.getMessage()
    assert record.exc_info is not None


def test_a_client_that_goes_away_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    assert request("/read", part(b"abc", more=True), {"type": "http.disconnect"})[0] == 0
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_access_log_cannot_be_forged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="api.access"):
        request("/x\r\nGET /admin 200\x1b[31m" + "y" * 500, part(b"", more=False))
    (line,) = [record.getMessage() for record in caplog.records if record.name == "api.access"]
    assert line.startswith(r"POST /x\r\nGET /admin 200\x1b[31m")
    assert line.isprintable()
    assert len(line) < 300


def opened(application: ASGIApp, **headers: str) -> str:
    """What becomes of a socket that a page asks for."""
    sent: list[Message] = []

    async def ask() -> None:
        async def receive() -> Message:
            return {"type": "websocket.connect"}

        async def send(message: Message) -> None:
            sent.append(message)

        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await application({"type": "websocket", "path": "/dashboard/", "headers": raw}, receive, send)

    anyio.run(ask)
    return str(sent[0]["type"])


async def accept(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "websocket.accept"})


@pytest.mark.parametrize(
    ("origin", "outcome"),
    [
        ("http://service.example:8400", "websocket.accept"),
        ("http://service.example", "websocket.close"),
        ("http://evil.example", "websocket.close"),
        ("null", "websocket.close"),
    ],
)
def test_no_other_site_opens_a_socket(origin: str, outcome: str) -> None:
    """Would catch a page anywhere that uses the dashboard as whoever has signed in."""
    assert opened(SameOriginSocketMiddleware(accept), host="service.example:8400", origin=origin) == outcome


def test_no_foreign_name_opens_a_socket_on_loopback() -> None:
    """The name may lead here (DNS rebinding): origin and host are then the same."""
    guarded = OriginMiddleware(accept, frozenset({"localhost"}))
    assert opened(guarded, host="localhost:8400", origin="http://localhost:8400") == "websocket.accept"
    assert opened(guarded, host="evil.example:8400", origin="http://evil.example:8400") == "websocket.close"
