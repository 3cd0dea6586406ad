"""What the page of a job asks the API for, again and again while it is open."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from api.dashboard.frame import Frame
from api.dashboard.gateway import Gateway
from api.dashboard.job_page import JobPage

pytestmark = pytest.mark.unit

JOB = {"status": "running", "health": {"verdict": "healthy"}, "finished_at": None, "progress": {"step": 1}}
HEALTH = {"verdict": "healthy", "sentence": "", "findings": [], "history": [], "watching": {}}


class Api:
    """Counts who is asked for."""

    def __init__(self) -> None:
        self.job: dict[str, Any] = JOB
        self.asked: list[str] = []

    async def get(self, path: str, **query: Any) -> dict[str, Any]:
        self.asked.append(" ".join((path.removeprefix("/v1/jobs/job-1"), *(f"{k}={v}" for k, v in query.items()))))
        return self.job if path == "/v1/jobs/job-1" else HEALTH


class Asking:
    """A frame without a browser."""

    async def ask(self, call: Callable[[], Awaitable[Any]]) -> Any:
        return await call()


class Page(JobPage):
    """The elements of NiceGUI need a browser; what they show is tested in one."""

    def __init__(self, api: Api, tab: str) -> None:
        super().__init__(cast(Gateway, api), cast(Frame, Asking()), "job-1")
        self.tabs = cast(Any, SimpleNamespace(value=tab))
        self.findings = cast(Any, SimpleNamespace(build=None, show=lambda *_, running: None))
        self.curves = cast(Any, SimpleNamespace(build=None, fill=self._curves, mark=lambda *_: None))

    async def _curves(self, job: dict[str, Any]) -> None:
        await self.api.get(f"{self.path}/metrics")

    def show_job(self, job: dict[str, Any]) -> None: ...


def asked(api: Api, page: Page) -> list[str]:
    api.asked = []
    asyncio.run(page.refresh())
    return api.asked


@pytest.mark.parametrize(
    ("tab", "first", "then"),
    [
        ("Health", ["", "/health facts=false", "/repairs"], ["", "/health facts=false", "/repairs"]),
        ("Curves", ["", "/health facts=false", "/repairs", "/metrics"], ["", "/metrics"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_verdict_is_asked_for_once_when_it_is_new(tab: str, first: list[str], then: list[str]) -> None:
    """The tab that shows it keeps asking, for what came and passed and for what the watching costs."""
    api = Api()
    page = Page(api, tab)
    assert asked(api, page) == first
    assert asked(api, page) == then
    api.job = {**JOB, "health": {"verdict": "critical"}}
    assert asked(api, page) == first
    api.job = {**api.job, "finished_at": "2026-11-23T19:00:07.000Z"}
    assert asked(api, page) == then
    assert asked(api, page) == [""]  # nothing changes any more
    api.job = {**api.job, "health": {"verdict": "healthy"}}
    assert asked(api, page) == ["", "/health facts=false", "/repairs"]
