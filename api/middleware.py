"""What holds for every request: an id, a line in the access log, a bound on the body, and where it may come from."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import ApiError, render
from api.monitoring import Monitoring
from workers.problems import shorten

access_log = logging.getLogger("api.access")
logger = logging.getLogger("api.middleware")

MAX_BODY_BYTES = 10 * 1024 * 1024
BODY_TIMEOUT_SECONDS = 60.0
REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
HEALTH_PATHS = frozenset({"/healthz", "/readyz"})
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


class RequestContextMiddleware:
    """Outermost: gives the request its id, logs and counts it, and turns an unexpected exception into the envelope."""

    def __init__(self, app: ASGIApp, monitoring: Monitoring) -> None:
        self.app, self.monitoring = app, monitoring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else f"req-{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = request_id
        started_at, status = time.perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers.setdefault("x-content-type-options", "nosniff")
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except ClientDisconnect:
            logger.info("request %s: the client went away", request_id)
        except Exception as error:
            logger.exception("request %s failed", request_id)
            if (
                status
            ):  # too late for another answer: the server closes the connection, so that nobody takes it for whole
                raise
            await render(error, request_id)(scope, receive, send_with_id)
        finally:
            self._record(scope, status, time.perf_counter() - started_at)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "none")
        method = (
            scope["method"]
            if scope["method"] in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
            else "OTHER"
        )
        self.monitoring.count_request(method, route, status)
        caller = scope["state"].get("caller")
        access_log.info(
            "%s %s %d %.0f ms %s %s", method, shorten(scope["path"], 200)[1:-1], status, seconds * 1000,
            caller.key_id if caller else "-", scope["state"]["request_id"],
        )  # fmt: skip


class OriginMiddleware:
    """For a service that listens on loopback: web pages must not reach it through the user's browser.

    The Host header stops a foreign name that was pointed at this machine (DNS rebinding), the Origin header a page of
    another site, for every method. Health routes are exempt from the Host check: probes use addresses of their own.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str]) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket") and (error := self._objection(scope)):
            if scope["type"] == "websocket":  # closed before it is accepted: the browser sees status 403
                return await send({"type": "websocket.close", "code": 1008, "reason": error.message})
            return await render(error)(scope, receive, send)
        return await self.app(scope, receive, send)

    def _objection(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if scope["path"] not in HEALTH_PATHS and (len(hosts) != 1 or _host_of(f"//{hosts[0]}") not in self.hosts):
            return ApiError(
                403, "host_not_allowed", "This service listens on loopback and answers to localhost only; see CHAINRULE_API_HOST.",
                param="Host",
            )  # fmt: skip
        if any(_host_of(origin) not in self.hosts for origin in headers.getlist("origin")):
            return ApiError(
                403, "origin_not_allowed", "Requests of other sites' pages are not accepted.", param="Origin"
            )
        return None


class SameOriginSocketMiddleware:
    """Sockets of the dashboard carry the cookie of whoever has signed in: another site's page must not open one through the user's browser.

    The standard leaves that to the server; fetches are held back by the browser and by the cookie's SameSite.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            headers = Headers(scope=scope)
            host = headers.get("x-forwarded-host", headers.get("host", ""))
            if any(urlsplit(origin).netloc != host for origin in headers.getlist("origin")):
                return await send({"type": "websocket.close", "code": 1008, "reason": "of another origin"})
        return await self.app(scope, receive, send)


def _host_of(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


class BodyLimitMiddleware:
    """Ends a body that is too large, announced or not, and one that does not end.

    ``larger``: addresses to which more may be sent, and how much; there the time is that between two pieces of the body.
    """

    def __init__(
        self, app: ASGIApp, timeout_seconds: float = BODY_TIMEOUT_SECONDS, larger: Mapping[str, int] | None = None
    ) -> None:
        self.app, self.timeout_seconds, self.larger = app, timeout_seconds, larger or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        most = self.larger.get(scope["path"], MAX_BODY_BYTES)
        announced = Headers(scope=scope).get("content-length", "0")
        if not announced.isascii() or not announced.isdigit() or int(announced[:20]) > most:
            return await render(_too_large(most))(scope, receive, send)
        received = 0
        deadline = anyio.current_time() + self.timeout_seconds
        complete = False

        async def bounded_receive() -> Message:
            nonlocal received, complete, deadline
            if complete:  # from here on receive() means waiting for the client to go away
                return await receive()
            try:
                with anyio.fail_after(deadline - anyio.current_time()):
                    message = await receive()
            except TimeoutError:
                text = f"The body did not arrive within {self.timeout_seconds:g} seconds."
                raise ApiError(408, "body_timeout", text, headers={"connection": "close"}) from None
            received += len(message.get("body", b""))
            if received > most:
                raise _too_large(most)
            if scope["path"] in self.larger:
                deadline = anyio.current_time() + self.timeout_seconds
            complete = not message.get("more_body", False)
            return message

        return await self.app(scope, bounded_receive, send)


def _too_large(most: int) -> ApiError:
    message = f"The body is larger than {most // 2**20} MiB."
    return ApiError(413, "body_too_large", message, headers={"connection": "close"})
