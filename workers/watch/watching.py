"""Findings over time: what is new and what has passed, so that nobody reads the same every few seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from workers.watch.diagnosis import diagnose
from workers.watch.findings import ORDER, Finding, Judgement, Key
from workers.watch.record import Record

SURE_AFTER = 2  # looks in a row, for warnings; what is critical is told at once
CLEARED_AFTER = 3  # looks in a row without it
CLEARED_SHARE = 0.02  # of the run, at least


@dataclass(frozen=True)
class Changes:
    """Since the look before. ``judgement``: what is open now, the first cause first."""

    step: int
    raised: Sequence[Finding]
    cleared: Sequence[Finding]
    judgement: Judgement


@dataclass
class _Open:
    finding: Finding
    seen: int = 0  # looks in a row
    missed: int = 0
    last_step: int = 0
    told: bool = False


@dataclass
class Watch:
    """Holds what is open. One ``look`` every few seconds, with records that grow."""

    _open: dict[Key, _Open] = field(default_factory=dict)

    def look(self, record: Record, *, final: bool = False) -> Changes:
        """``final``: the last one; what it sees is told at once."""
        judgement = diagnose(record)
        step = int(record.series.steps[-1]) if len(record.series.steps) else 0
        found = {finding.key: self._since_first_seen(finding) for finding in judgement.findings}
        raised = [finding for finding in found.values() if self._is_news(finding, step, final)]
        cleared = []
        for key, each in list(self._open.items()):
            if key in found:
                continue
            each.seen, each.missed = 0, each.missed + 1
            passed = step - each.last_step >= CLEARED_SHARE * record.total_steps
            if not each.told:
                del self._open[key]
            elif final or (each.missed >= CLEARED_AFTER and passed):
                cleared.append(each.finding)
                del self._open[key]
        return Changes(step, raised, cleared, self._judged(replace(judgement, findings=tuple(found.values()))))

    def _since_first_seen(self, finding: Finding) -> Finding:
        """What is open began where it was first seen to begin; later looks know less of it."""
        each = self._open.get(finding.key)
        if each is None or not each.finding.first_bad_step < finding.first_bad_step:
            return finding
        return replace(finding, first_bad_step=each.finding.first_bad_step)

    def _is_news(self, finding: Finding, step: int, final: bool) -> bool:
        each = self._open.setdefault(finding.key, _Open(finding))
        worse = ORDER.index(finding.severity) > ORDER.index(each.finding.severity)
        each.finding, each.seen, each.missed, each.last_step = finding, each.seen + 1, 0, step
        if each.told and not worse:
            return False
        at_once = finding.severity == "critical" or finding.first_bad_step == 0 or final
        each.told = at_once or each.seen >= SURE_AFTER
        return each.told

    def forget(self) -> list[Finding]:
        """Nothing is open any more: the run is not what it was. Those that had been told."""
        told = [each.finding for each in self._open.values() if each.told]
        self._open.clear()
        return told

    def document(self) -> list[dict[str, Any]]:
        """JSON values, for ``restore``: another worker goes on looking where this one stopped."""
        return [asdict(each) for each in self._open.values()]

    def restore(self, document: Sequence[Mapping[str, Any]]) -> None:
        opened = [_Open(**{**each, "finding": Finding(**each["finding"])}) for each in document]
        self._open = {each.finding.key: each for each in opened}

    def _judged(self, now: Judgement) -> Judgement:
        """What is open and told, whether or not this look saw it."""
        known = {finding.key for finding in now.findings}
        told = [finding for finding in now.findings if self._open[finding.key].told]
        told += [each.finding for key, each in self._open.items() if key not in known and each.told]
        alarms = [finding for finding in told if finding.severity != "note"]
        if not alarms:
            return Judgement("healthy" if now.verdict != "unknown" else "unknown", now.sentence, told)
        critical = any(finding.severity == "critical" for finding in alarms)
        return Judgement("critical" if critical else "warning", alarms[0].explanation, told)


@dataclass(frozen=True)
class Entry:
    """Of a time line: what was raised or cleared after a step."""

    step: int
    event: Literal["raised", "cleared"]
    finding: Finding


def timeline(record: Record, looks: int = 40) -> list[Entry]:
    """As it would have been told while the run was going on: also what has passed since."""
    watch, told = Watch(), []
    last = int(record.series.steps[-1]) if len(record.series.steps) else 0
    for number in range(1, looks + 1):
        step = last * number // looks
        if step == last * (number - 1) // looks and number > 1:
            continue
        changes = watch.look(record.until(step))
        told += [Entry(changes.step, "raised", finding) for finding in changes.raised]
        told += [Entry(changes.step, "cleared", finding) for finding in changes.cleared]
    return told
