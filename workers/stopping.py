"""How an attempt is brought to its end before its training is over: by people, or for what was found. Without torch."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

from workers.crew import Crew
from workers.reports import Outcome, ReasonCode, StopMode

GRACE_SECONDS = 60.0  # without a step, after a worker was asked to stop

_ORDER = [None, StopMode.PAUSE, StopMode.CANCEL, StopMode.KILL]


class Stopping:
    """``mode``: how it is to stop; None: it goes on."""

    def __init__(self) -> None:
        self.mode: StopMode | None = None
        self._because: Outcome | None = None
        self._sent: tuple[StopMode, float] | None = None

    def ask(self, mode: StopMode) -> bool:
        """Whether that is stronger than what was asked before."""
        stronger = _ORDER.index(mode) > _ORDER.index(self.mode)
        if stronger:
            self.mode, self._because = mode, None  # what people ask for is what it ends with
        return stronger

    def ask_because(self, outcome: Outcome | None) -> None:
        """``outcome``: what the attempt shall have ended with once its workers have stopped."""
        if outcome is not None and self.mode is None:
            self._because = outcome
            self.mode = StopMode.PAUSE if outcome.code is ReasonCode.CRITICAL_PAUSE else StopMode.CANCEL

    def due(self, crew: Crew, generation: int, still_seconds: float) -> Outcome | None:
        """Passes on what was asked; an Outcome when nobody need be waited for any longer. ``still_seconds``: for which no step was done."""
        if self.mode is None:
            return None
        if self.mode is StopMode.KILL:
            return Outcome(ReasonCode.KILLED, "killed on request; nothing was written")
        if generation == 0:
            return self.ended("before training ran")
        if self._sent is None or self._sent[0] is not self.mode:
            self._sent = (self.mode, time.monotonic())
        crew.ask_to_stop(self.mode)
        if min(time.monotonic() - self._sent[1], still_seconds) > GRACE_SECONDS:
            return self.ended(f"by force: no step in {GRACE_SECONDS:.0f} s after the request")
        return None

    def ended(self, how: str) -> Outcome:
        if self.mode is StopMode.PAUSE:
            return self.as_asked(Outcome(ReasonCode.PAUSED, f"paused {how}"))
        return self.as_asked(Outcome(ReasonCode.CANCELLED, f"cancelled {how}"))

    def as_asked(self, outcome: Outcome) -> Outcome:
        """What workers ended with that only know that they were to stop, with the reason for it."""
        if self._because is None or outcome.code not in (ReasonCode.PAUSED, ReasonCode.CANCELLED):
            return outcome
        return dataclasses.replace(self._because, detail={**outcome.detail, **self._because.detail})

    # --- memory -------------------------------------------------------------------------------------------------------

    def document(self) -> dict[str, Any]:
        return {"mode": self.mode, "because": dataclasses.asdict(self._because) if self._because else None}

    def restore(self, document: Mapping[str, Any] | None) -> None:
        """None: of an earlier version, whose attempt is asked again by who wants it to stop."""
        if document is None:
            return
        self.mode = StopMode(document["mode"]) if document["mode"] else None
        because = document["because"]
        self._because = Outcome(ReasonCode(because["code"]), because["message"], because["detail"]) if because else None
