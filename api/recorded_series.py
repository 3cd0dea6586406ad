"""The metric series of the jobs that are looked at, as far as they were read: a page that is open asks every second."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection
from pathlib import Path

from workers.jobfolder import JobFolder
from workers.metric_series import Series, SeriesReader

LIMIT_BYTES = 256 << 20  # a run of a million steps takes about 130 MB


class RecordedSeries:
    """Readers of job folders; those that nobody has asked for the longest time are forgotten beyond ``limit_bytes``."""

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._readers: OrderedDict[Path, SeriesReader] = OrderedDict()  # asked for last at the end

    def read(self, folder: JobFolder, keys: Collection[str] | None = None) -> dict[str, Series]:
        """As ``JobFolder.series``."""
        with self._lock:
            reader = self._readers.setdefault(folder.path, SeriesReader(folder.metrics_folder))
            self._readers.move_to_end(folder.path)
        found = reader.read(keys)
        with self._lock:
            while len(self._readers) > 1 and self.bytes_held > self._limit_bytes:
                self._readers.popitem(last=False)
        return found

    @property
    def bytes_held(self) -> int:
        return sum(reader.bytes_held for reader in self._readers.values())
