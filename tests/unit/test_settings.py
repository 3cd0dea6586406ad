"""What an operator can set, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import Settings

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("", None),
        ("/shared/checkpoints", "/shared/checkpoints"),
        ("checkpoints", str(Path("checkpoints").absolute())),
        ("~/checkpoints", str(Path("~/checkpoints").expanduser())),
        ("s3://bucket/prefix", "s3://bucket/prefix"),
        ("file:///shared/checkpoints", "file:///shared/checkpoints"),
    ],
)
def test_where_checkpoints_go(monkeypatch: pytest.MonkeyPatch, given: str, meant: str | None) -> None:
    monkeypatch.setenv("CHAINRULE_CHECKPOINTS", given)
    assert Settings().checkpoints == meant


@pytest.mark.parametrize("given", ["http://host/x", "s4://bucket", "memory://x"])
def test_checkpoints_cannot_go_anywhere(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("CHAINRULE_CHECKPOINTS", given)
    with pytest.raises(ValidationError, match="must be a folder or begin with s3 or file"):
        Settings()
