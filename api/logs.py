"""Reading the log files of a job's workers as one stream of lines, with a position from which to go on.

A position names an attempt and how many bytes of each rank's file were read: ``2:0=5120,1=4096``. Everything of earlier
attempts counts as read; a rank that is not named begins at its first line. Within an attempt the lines of all ranks are
merged by their times.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from typing import BinaryIO

from api.errors import ApiError
from workers.jobfolder import JobFolder, LogFile

MAX_LINE_BYTES = 1 << 20
POSITION = re.compile(r"([0-9]{1,6}):((?:[0-9]{1,6}=[0-9]{1,15})(?:,[0-9]{1,6}=[0-9]{1,15})*)?", re.ASCII)
TIMESTAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?Z) ", re.ASCII)


@dataclass(frozen=True)
class Position:
    attempt: int = 0
    offsets: Mapping[int, int] = field(default_factory=dict)  # rank -> bytes read

    @classmethod
    def parse(cls, text: str, param: str) -> Position:
        if not (match := POSITION.fullmatch(text)):
            raise ApiError(400, "invalid_parameter", f"{param} must be the id of a log line.", param=param)
        pairs = (pair.split("=") for pair in (match[2] or "").split(",") if pair)
        return cls(int(match[1]), {int(rank): int(offset) for rank, offset in pairs})

    def __str__(self) -> str:
        return f"{self.attempt}:" + ",".join(f"{rank}={offset}" for rank, offset in sorted(self.offsets.items()))


@dataclass(frozen=True)
class Line:
    position: str  # after this line
    attempt: int
    rank: int
    timestamp: str | None
    text: str


def read_lines(
    folder: JobFolder, position: Position, limit: int, *, attempt: int | None = None, rank: int | None = None
) -> list[Line]:
    """At most ``limit`` whole lines after ``position``, of one attempt or rank only when that is given."""
    files = [log for log in folder.log_files(attempt, rank) if log.attempt >= position.attempt]
    lines: list[Line] = []
    for number in sorted({log.attempt for log in files}):
        offsets = dict(position.offsets) if number == position.attempt else {}
        lines += _read_attempt([log for log in files if log.attempt == number], offsets, limit - len(lines))
        if len(lines) == limit:
            break
    return lines


def _read_attempt(files: Iterable[LogFile], offsets: dict[int, int], limit: int) -> list[Line]:
    with ExitStack() as stack:
        streams = [(log, stack.enter_context(log.path.open("rb"))) for log in files]
        merged = heapq.merge(
            *(_lines(log, stream, offsets.get(log.rank, 0)) for log, stream in streams), key=lambda item: item[0]
        )
        lines = []
        for _, log, end, text in islice(merged, limit):
            offsets[log.rank] = end
            position = str(Position(log.attempt, offsets))
            stamp = TIMESTAMP.match(text)
            rest = text[stamp.end() :] if stamp else text
            lines.append(Line(position, log.attempt, log.rank, stamp[1] if stamp else None, rest))
        return lines


def _lines(log: LogFile, stream: BinaryIO, offset: int) -> Iterator[tuple[str, LogFile, int, str]]:
    """(time to merge by, file, offset after the line, line). A line without a time stays behind the one before it; a last
    line that is still being written is left for later; a line beyond 1 MiB comes in pieces."""
    stream.seek(offset)
    time = ""
    while raw := stream.readline(MAX_LINE_BYTES):
        if not raw.endswith(b"\n") and len(raw) < MAX_LINE_BYTES:
            return
        offset += len(raw)
        text = raw.decode("utf-8", "replace").rstrip("\r\n")
        if stamp := TIMESTAMP.match(text):
            time = stamp[1]
        yield time, log, offset, text
