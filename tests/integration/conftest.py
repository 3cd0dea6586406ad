"""Groups of workers on the session's Ray; nothing of them is left when a test ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import wait_for
from tests.integration.groups import Group
from workers import launcher


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
