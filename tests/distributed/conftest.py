"""One set of worker processes for all tests of this folder: importing torch anew for each would take minutes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.distributed.processes import Processes


@pytest.fixture(scope="session")
def processes() -> Iterator[Processes]:
    found = Processes()
    yield found
    found.close()
