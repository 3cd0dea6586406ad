"""What a diagnosis says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Severity = Literal["note", "warning", "critical"]
Verdict = Literal["unknown", "healthy", "warning", "critical"]

Key = tuple[str, int | None]  # code and rank: the same trouble at another time
ORDER: tuple[Severity, ...] = ("note", "warning", "critical")  # a note leaves the verdict as it is


def key_of(finding: Mapping[str, Any]) -> Key:
    """Of a finding as a document, as ``Finding.key``. Those on data have no rank."""
    return finding["code"], finding.get("rank")


@dataclass(frozen=True)
class Found:
    """What a rule saw. ``step`` 0: before the first one. It becomes a ``Finding`` when it is put in words."""

    code: str
    severity: Severity
    step: int
    evidence: Mapping[str, Any] = field(default_factory=dict)
    layer: str | None = None
    rank: int | None = None
    explains: bool = True  # a job's failing; advice (a batch that could be larger) does not


@dataclass(frozen=True)
class Finding:
    """``first_bad_step`` 0: known before the first step. ``consequences``: what else was seen and follows from it."""

    code: str
    severity: Severity
    first_bad_step: int
    layer: str | None
    evidence: Mapping[str, Any]
    explanation: str
    suggestion: str
    rank: int | None = None
    consequences: Sequence[str] = ()

    @property
    def key(self) -> Key:
        """The same trouble at another time; layers may take turns at being the worst."""
        return self.code, self.rank


@dataclass(frozen=True)
class Judgement:
    verdict: Verdict
    sentence: str
    findings: Sequence[Finding] = field(default_factory=tuple)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
