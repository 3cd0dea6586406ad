"""Where the bytes of uploaded files lie: in the storage folder, which the workers see too."""

from __future__ import annotations

import contextlib
import secrets
import time
from pathlib import Path

LEFT_BEHIND_SECONDS = 24 * 3600.0  # after which a partial file belongs to an upload that has died


class StoredFiles:
    def __init__(self, storage: str | Path) -> None:
        self.folder = Path(storage) / "files"

    def path(self, file_id: str) -> Path:
        return self.folder / file_id

    def new_partial(self) -> Path:
        """A name for a file that is still being received; those that died on the way are removed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in self.folder.glob("*.partial"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - old.stat().st_mtime > LEFT_BEHIND_SECONDS:
                    old.unlink()
        return self.folder / f"{secrets.token_hex(12)}.partial"

    def keep(self, partial: Path, file_id: str) -> None:
        partial.rename(self.path(file_id))

    def remove(self, file_id: str) -> None:
        self.path(file_id).unlink(missing_ok=True)
