"""What a script writes into its output folder, kept as artifacts of the job: new files now and then, all of them at the end."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from workers import artifacts

SETTLED_SECONDS = 2.0  # since a file was written last; before that it may be half of one
MOST_BYTES = 256 << 20  # of one step: they pass through memory
MOST_LOOKED_AT = 10_000


@dataclass(frozen=True)
class Kept:
    """Names of artifacts, and of files that are not among them because they are too large or too many; those stay in the folder."""

    names: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass
class Outputs:
    """``folder``: the script's; ``target``: the job's artifacts."""

    folder: Path
    target: Path
    _seen: dict[str, float] = field(default_factory=dict)  # path -> when it was written last
    _step: int = -1

    def keep_new(self, step: int) -> Kept:
        """What has been written since the last time, as artifacts of ``step``. Raises OSError, ArtifactError."""
        fresh = [
            path for path, at in self._files() if self._seen.get(str(path), -1.0) < at < time.time() - SETTLED_SECONDS
        ]
        return self._keep(fresh, step) if fresh and step > self._step else Kept()

    def keep_all(self, step: int) -> Kept:
        """At the end: everything. Raises OSError, ArtifactError."""
        paths = [path for path, _ in self._files()]
        return self._keep(paths, step) if paths else Kept()

    def _keep(self, paths: list[Path], step: int) -> Kept:
        """Newest first, when there are too many."""
        paths.sort(key=lambda path: -path.stat().st_mtime)
        found: dict[str, bytes] = {}
        left_out, total = [], 0
        for path in paths:
            name, size = name_of(path.relative_to(self.folder)), path.stat().st_size
            self._seen[str(path)] = path.stat().st_mtime
            small = size <= artifacts.MOST_BYTES and total + size <= MOST_BYTES
            if small and name not in found and len(found) < artifacts.MOST_FILES:
                found[name] = path.read_bytes()[: artifacts.MOST_BYTES]
                total += size
            else:
                left_out.append(str(path.relative_to(self.folder)))
        artifacts.write(self.target, step, found)
        self._step = step
        return Kept(tuple(sorted(found)), tuple(sorted(left_out)))

    def _files(self) -> Iterator[tuple[Path, float]]:
        looked = 0
        for parent, _, names in os.walk(self.folder):
            for name in names:
                path = Path(parent) / name
                if not path.is_symlink() and path.is_file():
                    yield path, path.stat().st_mtime
                looked += 1
                if looked == MOST_LOOKED_AT:
                    return


def name_of(path: Path) -> str:
    """An artifact has no folders in its name."""
    name = re.sub(r"[^A-Za-z0-9._+-]", "_", "__".join(path.parts))
    return re.sub(r"^[^A-Za-z0-9]", "x", name)[-128:].lstrip("._+-") or "file"
