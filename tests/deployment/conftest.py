"""What a deployment is made of, built once."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.deployment import images


@pytest.fixture(scope="session")
def built() -> Iterator[Mapping[str, images.Image]]:
    """Both images, by the names that docker-compose.yml gives them. Takes some minutes: torch is installed too."""
    folder = Path(tempfile.mkdtemp(prefix="cr-images-"))
    folder.chmod(0o755)  # their users are not the one who builds
    try:
        yield {f"chainrule-{name}": images.build(name, folder / name) for name in ("control", "ray")}
    finally:
        shutil.rmtree(folder)
