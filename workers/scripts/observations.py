"""What a script's observer sends to its worker over a socket that only they know: frames of JSON and of numbers, never pickles."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST_HEADER, LARGEST_PAYLOAD = 4 << 20, 256 << 20


@dataclass(frozen=True)
class Measured:
    """One step. ``loss`` None: the script's backward pass did not begin at a single number."""

    step: int
    timestamp: float
    seconds: float
    learning_rate: float | None
    loss: float | None
    norms: NDArray[np.float64]


class Observations:
    """Listens for one observer. ``layers``, ``rows`` and ``ended`` are called by a thread of its own."""

    def __init__(
        self,
        layers: Callable[[tuple[str, ...], bool], None],
        rows: Callable[[Sequence[Measured]], None],
        ended: Callable[[float], None],
    ) -> None:
        self._layers, self._rows, self._ended = layers, rows, ended
        self._width = 0
        self.step = 0  # optimizer steps done, as far as is known
        self.beats = 0  # signs of life
        self._folder = tempfile.TemporaryDirectory(prefix="cr-")  # for this user only
        self.address = str(Path(self._folder.name) / "observer")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.address)
        self._listener.listen(4)
        self._thread = threading.Thread(target=self._listen, name="observations", daemon=True)
        self._thread.start()

    def finish(self, seconds: float = 5.0) -> None:
        """After the script's end: what was sent is taken."""
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX) as nobody,
        ):  # wakes the thread when none has connected
            nobody.connect(self.address)
        self._thread.join(seconds)
        if self._thread.is_alive():  # something else that the script has left holds the connection open
            return
        self._listener.close()
        self._folder.cleanup()

    def _listen(self) -> None:
        """The first process that connects is the script; what else of it trains is not followed."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # torn by a kill
            connection, _ = self._listener.accept()
            with connection, connection.makefile("rb") as stream:
                while header := stream.read(8):
                    size, extra = struct.unpack("<II", header)
                    if size > LARGEST_HEADER or extra > LARGEST_PAYLOAD:
                        return
                    self._take(json.loads(stream.read(size)), stream.read(extra))

    def _take(self, header: dict[str, Any], payload: bytes) -> None:
        if header["type"] == "layers":
            self._width = 1 + len(header["layers"])
            self._layers(tuple(map(str, header["layers"])), bool(header["sharded"]))
            return
        self.step = int(header["step"])
        self.beats += 1
        if header["type"] == "rows":
            values = np.frombuffer(payload, dtype=np.float64).reshape(len(header["rows"]), self._width)
            self._rows([_measured(row, numbers) for row, numbers in zip(header["rows"], values, strict=True)])
        elif header["type"] == "end":
            self._ended(float(header["overhead"]))


def _measured(row: Sequence[Any], numbers: NDArray[np.float64]) -> Measured:
    step, timestamp, seconds, rate, known = row
    return Measured(
        int(step), float(timestamp), float(seconds), rate, float(numbers[0]) if known else None, numbers[1:]
    )
