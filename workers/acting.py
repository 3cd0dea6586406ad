"""What becomes of a job in which something critical is found: it goes on, it is paused, or it ends (``health.on_critical``). No torch.

A job that was paused for a finding is not stopped for it again: whoever resumed it has read of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workers.jobfolder import JobFolder
from workers.reports import Outcome, ReasonCode
from workers.spec import OnCritical
from workers.watch.findings import Key, key_of

ACCEPTED = "accepted.json"  # in the job's folder: the findings for which the job was paused


class Acting:
    """``found``: the critical findings, as documents, for which the job is to be stopped, the first cause first."""

    def __init__(self, on_critical: OnCritical, accepted: frozenset[Key] = frozenset()) -> None:
        self._on_critical, self._accepted = on_critical, accepted
        self.found: tuple[Mapping[str, Any], ...] = ()

    @property
    def pauses(self) -> bool:
        """Whether there is something for which the job is to be paused."""
        return self._on_critical == "pause" and bool(self.found)

    def hear(self, findings: Sequence[Mapping[str, Any]]) -> None:
        """What is open now. Once there is something to stop for, it stays: the others may have been told already."""
        if self._on_critical == "continue" or self.found:
            return
        critical = [finding for finding in findings if finding["severity"] == "critical"]
        self.found = tuple(finding for finding in critical if key_of(finding) not in self._accepted)

    def stops(self, findings: Sequence[Mapping[str, Any]], when: str) -> Outcome | None:
        """``hear``, and the end that follows from it, if one does."""
        self.hear(findings)
        return self.outcome(when) if self.found else None

    def outcome(self, when: str) -> Outcome:
        """``when``: such as "after step 7 of 100". On a worker that has found nothing by itself it names no finding; nobody reads that one."""
        code = ReasonCode.CRITICAL_PAUSE if self._on_critical == "pause" else ReasonCode.CRITICAL_FINDING
        done = "paused" if self._on_critical == "pause" else "stopped"
        named = " and ".join(finding["code"] for finding in self.found) or "what another worker found"
        why = f": {self.found[0]['explanation']}" if self.found else ""
        return Outcome(code, f"{done} {when} because of {named}{why}", {"critical": list(self.found)})


def sick_from(findings: Sequence[Mapping[str, Any]]) -> int | None:
    """The step in which the first of what is critical began; 0: it was there before the first one. None: nothing is critical."""
    return min((each["first_bad_step"] for each in findings if each["severity"] == "critical"), default=None)


def accepted(folder: JobFolder) -> frozenset[Key]:
    """The findings for which the job was paused before."""
    known = folder.read_document(ACCEPTED)
    return frozenset(map(key_of, known["findings"])) if known is not None else frozenset()


def accept(folder: JobFolder, outcome: Outcome) -> None:
    """To be called at the end of an attempt: what it was paused for will not pause the next."""
    if outcome.code is not ReasonCode.CRITICAL_PAUSE:
        return
    known = (folder.read_document(ACCEPTED) or {"findings": []})["findings"]
    here = set(map(key_of, known))
    fresh = [finding for finding in outcome.detail.get("critical", ()) if key_of(finding) not in here]
    folder.write_document(ACCEPTED, {"findings": [*known, *fresh]})
