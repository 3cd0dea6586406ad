"""What a worker process prints, from Python or from C, goes line by line with its time into the job's log file."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

LIMIT_BYTES = 10 << 20


def capture(path: Path) -> None:
    """Redirects this process's stdout and stderr for good. A crash in C code leaves its stack in the file too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab", buffering=0)
    reading, writing = os.pipe()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(writing, 1)
    os.dup2(writing, 2)
    os.close(writing)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(line_buffering=True)
    faulthandler.enable(file, all_threads=True)
    threading.Thread(target=_copy, args=(os.fdopen(reading, "rb"), file), name="worker-log", daemon=True).start()


def _copy(lines: BinaryIO, file: BinaryIO) -> None:
    written = file.seek(0, os.SEEK_END)
    for line in iter(lambda: lines.readline(1 << 16), b""):
        if written > LIMIT_BYTES:
            continue  # keep reading: a full pipe would stop the worker
        stamped = b"%s %s\n" % (_now(), line.rstrip(b"\r\n"))
        written += file.write(stamped) or 0
        if written > LIMIT_BYTES:
            file.write(b"%s (the log is cut off here: it has reached %d MB)\n" % (_now(), LIMIT_BYTES >> 20))


def _now() -> bytes:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z").encode()
