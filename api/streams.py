"""Server-sent events: whatever is read by position from the store or the job folder, pushed until the job has ended.

A stream keeps nothing of its own: every event carries the position after which to go on, so a client that was cut off,
or dropped because it did not read, resumes without loss on any copy of the API.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import anyio
from anyio import to_thread
from fastapi import Header
from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from api.errors import ApiError, as_envelope
from api.monitoring import Monitoring
from api.responses import encode
from service.errors import Unavailable

logger = logging.getLogger("api.streams")

SHORTEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 1.0
AWAY_PAUSE_SECONDS = 1.0  # while the database does not answer
READING_THREADS = 8  # streams share these, so that any number of them leaves the threads of other requests alone


LastEventId = Annotated[
    str | None,
    Header(
        alias="Last-Event-ID",
        description="where a stream goes on: the id of the last event that arrived",
        examples=["12"],
    ),
]


@dataclass(frozen=True)
class Chunk:
    """What came after a position: (position, content) of each event, and whether there will never be more."""

    events: Sequence[tuple[str, dict[str, Any]]]
    complete: bool
    final: dict[str, Any] | None = None  # content of the closing event, when complete


@dataclass(frozen=True)
class StreamLimits:
    heartbeat_seconds: float = 15.0
    send_timeout_seconds: float = 15.0  # a client that takes nothing for so long is dropped
    per_key: int = 20
    per_process: int = 500


class Streams:
    """The open streams of this process, counted by key."""

    def __init__(self, monitoring: Monitoring, limits: StreamLimits) -> None:
        self.monitoring, self.limits = monitoring, limits
        self._open: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.readers = anyio.CapacityLimiter(READING_THREADS)

    @contextmanager
    def slot(self, key_id: str) -> Iterator[None]:
        with self._lock:
            if self._open[key_id] >= self.limits.per_key or self._open.total() >= self.limits.per_process:
                message = f"Too many open streams; a key may have {self.limits.per_key} at a time."
                raise ApiError(429, "too_many_streams", message, headers={"retry-after": "5"})
            self._open[key_id] += 1
            self.monitoring.open_streams.inc()
        try:
            yield
        finally:
            with self._lock:
                self._open[key_id] -= 1
                self._open += Counter()  # drops keys that have none left
                self.monitoring.open_streams.dec()


def wants_stream(request: Request, stream: bool) -> bool:
    return stream or "text/event-stream" in request.headers.get("accept", "").lower()


def start_position(request: Request, after: str | None) -> str | None:
    """A browser that reconnects sends the header, and still the address that it began with: the header counts."""
    given = request.headers.getlist("last-event-id")
    if len(given) > 1:
        raise ApiError(400, "invalid_parameter", "More than one Last-Event-ID header.", param="Last-Event-ID")
    return (given[0].strip() or None) if given else after


class FollowResponse(EventSourceResponse):
    """Follows ``read(position)``, called in a thread, with events named ``name``; ends with an event ``done``.

    A problem after the stream has begun is an event ``error`` with the usual envelope.
    """

    def __init__(self, streams: Streams, key_id: str, name: str, position: str, read: Callable[[str], Chunk]) -> None:
        self._streams, self._key_id = streams, key_id
        super().__init__(
            _follow(streams, name, position, read),
            ping=streams.limits.heartbeat_seconds,
            ping_message_factory=lambda: ServerSentEvent(comment="heartbeat", sep="\n"),
            send_timeout=streams.limits.send_timeout_seconds,
            sep="\n",
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._streams.slot(self._key_id):
            try:
                await super().__call__(scope, receive, send)
            except SendTimeoutError:
                logger.warning("dropped a stream whose client took nothing (request %s)", scope["state"]["request_id"])


async def _follow(
    streams: Streams, name: str, position: str, read: Callable[[str], Chunk]
) -> AsyncIterator[ServerSentEvent]:
    pause = SHORTEST_PAUSE_SECONDS
    while True:
        try:
            chunk = await to_thread.run_sync(read, position, limiter=streams.readers)
        except Unavailable:
            await anyio.sleep(AWAY_PAUSE_SECONDS)
            continue
        except Exception as error:
            if not isinstance(error, ApiError):
                logger.exception("an event stream failed")
            yield _event("error", as_envelope(error))
            return
        for position, content in chunk.events:
            yield _event(name, content, position)
        if chunk.complete:
            yield _event("done", chunk.final or {})
            return
        pause = SHORTEST_PAUSE_SECONDS if chunk.events else min(pause * 1.5, LONGEST_PAUSE_SECONDS)
        await anyio.sleep(pause)


def _event(name: str, content: dict[str, Any], position: str | None = None) -> ServerSentEvent:
    return ServerSentEvent(encode(content).decode(), event=name, id=position)
