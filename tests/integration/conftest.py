"""A service that commands ask, and groups of workers on the session's Ray, of which nothing is left when a test ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import wait_for
from tests.integration.api_service import Service, running_service, served
from tests.integration.groups import Group
from workers import launcher


@pytest.fixture(scope="module")
def commanded_at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, str]]:
    with running_service(tmp_path_factory.mktemp("cli")) as service, served(service.app) as url:
        yield service, url


@pytest.fixture
def commanded(commanded_at: tuple[Service, str], monkeypatch: pytest.MonkeyPatch) -> Service:
    """The service that commands ask, with the key of its administrator."""
    service, url = commanded_at
    monkeypatch.setenv("CHAINRULE_URL", url)
    monkeypatch.setenv("CHAINRULE_API_KEY", service.key)
    return service


@pytest.fixture
def groups(tmp_path: Path) -> Iterator[Any]:
    made: list[Group] = []

    def make(spec: dict[str, Any], **more: Any) -> Group:
        made.append(Group(tmp_path, spec, **more))
        return made[-1]

    yield make
    for group in made:
        launcher.remove(group.name)
    wait_for("nothing left of the groups", lambda: not {g.name for g in made} & launcher.names())
