"""What a script's observer sends to its worker over a socket that only they know: frames of JSON and of numbers, never pickles."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

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


@dataclass(frozen=True)
class Probed:
    """What a step gave that was looked at closely. ``cost_share``: of all probes so far. ``row``: see ``probe_rows``."""

    step: int
    cost_share: float | None
    row: NDArray[np.float64]


class Hearer(Protocol):
    """What an observer tells. Called by a thread of its own."""

    def take_layers(self, layers: tuple[str, ...], sharded: bool) -> None: ...

    def take_rows(self, rows: Sequence[Measured]) -> None: ...

    def take_end(self, overhead: float) -> None: ...

    def take_facts(self, facts: Mapping[str, Any], uncleared: float | None) -> None:
        """``facts``: as ``facts_json`` has them, but for what the script cannot know."""

    def take_probe_names(self, layers: tuple[str, ...], activations: tuple[str, ...]) -> None:
        """Of the probes that follow."""

    def take_probes(self, probes: Sequence[Probed]) -> None:
        """Before the rows of the same steps."""

    def take_trouble(self, of: str, error: str) -> None:
        """``of``: facts, probes, repairs or the whole observer, which has given up."""

    def take_held(self, version: int, step: int) -> None:
        """What was asked of the script's steps under that number holds after that step."""
        return  # nothing to whoever only watches

    def take_skipped(self, count: int, step: int) -> None:
        """``count``: updates that were left out so far, the one of ``step`` included."""
        return  # nothing to whoever only watches

    def take_limits(self, limits: Mapping[str, str]) -> None:
        """What of ``rate``, ``clip`` and ``skip`` cannot be done to this script, and why."""
        return  # nothing to whoever only watches


class Observations:
    """Listens for one observer."""

    def __init__(self, hearer: Hearer) -> None:
        self._hearer = hearer
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
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            self._listener.close()  # others are refused at once, in place of waiting for somebody to listen
            with connection, connection.makefile("rb") as stream:
                while (frame := _read(stream)) is not None:
                    try:
                        self._take(*frame)
                    except Exception as error:
                        self._hearer.take_trouble("observer", f"{type(error).__name__}: {error}")
                        return

    def _take(self, header: dict[str, Any], payload: bytes) -> None:
        hearer = self._hearer
        match header["type"]:
            case "layers":
                self._width = 1 + len(header["layers"])
                hearer.take_layers(tuple(map(str, header["layers"])), bool(header["sharded"]))
            case "facts":
                hearer.take_facts(dict(header["facts"]), header["uncleared"])
            case "probed":
                hearer.take_probe_names(tuple(map(str, header["layers"])), tuple(map(str, header["activations"])))
            case "probes":
                rows = np.frombuffer(payload, dtype=np.float64).reshape(len(header["probes"]), -1)
                told = zip(header["probes"], rows, strict=True)
                hearer.take_probes([Probed(int(step), share, row) for (step, share), row in told])
            case "held":
                hearer.take_held(int(header["version"]), int(header["step"]))
            case "skipped":
                hearer.take_skipped(int(header["count"]), int(header["step"]))
            case "limits":
                hearer.take_limits({str(what): str(why) for what, why in header["limits"].items()})
            case "trouble":
                hearer.take_trouble(str(header["of"]), str(header["error"]))
            case kind:
                self._take_steps(kind, header, payload)

    def _take_steps(self, kind: str, header: dict[str, Any], payload: bytes) -> None:
        self.step = int(header["step"])
        self.beats += 1
        if kind == "rows":
            values = np.frombuffer(payload, dtype=np.float64).reshape(len(header["rows"]), self._width)
            measured = zip(header["rows"], values, strict=True)
            self._hearer.take_rows([_measured(row, numbers) for row, numbers in measured])
        elif kind == "end":
            self._hearer.take_end(float(header["overhead"]))


def _read(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """None: there is no other, or it was torn by a kill."""
    lengths = stream.read(8)
    size, extra = struct.unpack("<II", lengths) if len(lengths) == 8 else (0, 0)
    if not 0 < size <= LARGEST_HEADER or extra > LARGEST_PAYLOAD:
        return None
    text, payload = stream.read(size), stream.read(extra)
    if len(text) < size or len(payload) < extra:
        return None
    header: dict[str, Any] = json.loads(text)
    return header, payload


def _measured(row: Sequence[Any], numbers: NDArray[np.float64]) -> Measured:
    step, timestamp, seconds, rate, known = row
    return Measured(
        int(step), float(timestamp), float(seconds), rate, float(numbers[0]) if known else None, numbers[1:]
    )
