"""What the dashboard keeps of who has signed in."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from nicegui.storage import Storage

from api.dashboard import mount

pytestmark = pytest.mark.unit


class SlowDict(dict[str, str]):
    """As NiceGUI's, read from a file by a thread."""

    async def initialize(self) -> None:
        await asyncio.sleep(0.01)
        self["key"] = "k"


class Table:
    def __init__(self) -> None:
        self._users: dict[str, SlowDict] = {}

    @staticmethod
    def _create_persistent_dict(name: str) -> SlowDict:
        return SlowDict()


async def two_requests(create: Any) -> list[bool]:
    """Of one browser, after a restart: what each finds, made as NiceGUI's middleware makes it."""
    table = Table()

    async def request() -> bool:
        if "me" not in table._users:
            await create(table, "me")
        return "key" in table._users["me"]

    return list(await asyncio.gather(request(), request()))


def test_no_page_sees_a_storage_that_has_not_been_read() -> None:
    assert asyncio.run(two_requests(mount.seen_when_read)) == [True, True]


def test_the_library_still_has_what_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """When this fails, NiceGUI has changed: look whether the replacement is needed any more."""
    monkeypatch.setattr(Storage, "_create_persistent_dict", Table._create_persistent_dict)
    own = Storage._create_user_storage
    if own is not mount.seen_when_read:  # the dashboard has not been mounted in this process
        assert asyncio.run(two_requests(own)) == [True, False]
