"""What is seen of a job that fails."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal[
    "not_a_number",
    "runaway",
    "spike",
    "stuck",
    "lost",
    "rings",
    "walks_away",
    "contradicts",
    "below_bound",
    "slow",
    "far_above",
]


@dataclass(frozen=True)
class Symptom:
    kind: Kind
    step: int
    evidence: dict[str, Any] = field(default_factory=dict)
