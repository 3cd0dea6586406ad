"""The use-cases around repairs: what was done to a job while it ran, and what people ask to be done or undone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import select

from service.database import Store, database_now
from service.errors import Conflict, NotFound
from service.jobs import own_job
from service.keys import require
from service.rows import event_value
from service.states import append_event
from service.tables import EventRow
from service.values import Caller, JobEvent, Role, Status
from workers.repair import quarantine
from workers.repair.requests import Request, ask
from workers.repair.told import CHANGES, NONE, REFUSED, SKIPPED, entries

MOST_TOLD = 1000  # events of one job that are looked at, the newest
ALL = (*CHANGES, NONE, REFUSED, SKIPPED)


def history(store: Store, caller: Caller, job_id: str) -> list[JobEvent]:
    """The events of its repairs, oldest first."""
    query = select(EventRow).where(EventRow.job_id == job_id, EventRow.type.in_(ALL))
    with store.read() as session:
        own_job(session, caller, job_id)
        newest = session.execute(query.order_by(EventRow.sequence.desc()).limit(MOST_TOLD)).scalars()
        return [event_value(row) for row in newest][::-1]


def done(events: Sequence[JobEvent]) -> list[dict[str, Any]]:
    """Of ``history``: each repair as it is now."""
    return entries((event.type, event.data) for event in events)


def undo(store: Store, caller: Caller, job_id: str, number: int, requests: Path) -> Request:
    """Asks the job to undo a repair. Raises NotFound where there is none of that number, Conflict where it does not hold any more."""
    require(caller, Role.MEMBER)
    found = {each["act"]["number"]: each for each in done(history(store, caller, job_id))}
    entry = found.get(number)
    if entry is None:
        known = ", ".join(map(str, found)) or "none at all"
        raise NotFound(f"{job_id} has no repair {number}; it has {known}")
    if entry["state"] not in ("trial", "kept"):
        raise Conflict(
            f"repair {number} of {job_id} does not hold any more: it was {_was(entry['state'])}", param="number"
        )
    later = [each for each in found if each > number and found[each]["state"] in ("trial", "kept")]
    if later:
        raise Conflict(f"repair {later[0]} of {job_id} came after it and holds; undo that one first", param="number")
    return _asked(store, caller, job_id, requests, "undo", number=number)


def steer(
    store: Store,
    caller: Caller,
    job_id: str,
    requests: Path,
    *,
    learning_rate: float | None = None,
    clip_norm: float | None = None,
    leave_out: Sequence[int] | None = None,
    take_in: Sequence[int] | None = None,
) -> Request:
    """Asks the job to go on with these, and without or again with these samples. Raises Conflict unless it runs, and for a script whose steps nobody
    may change, or whose samples nobody knows."""
    require(caller, Role.MEMBER)
    wanted = {"learning_rate": learning_rate, "clip_norm": clip_norm, "leave_out": leave_out, "take_in": take_in}
    return _asked(store, caller, job_id, requests, "steer", **wanted)


def _asked(
    store: Store, caller: Caller, job_id: str, requests: Path, kind: Literal["undo", "steer"], **wanted: Any
) -> Request:
    with store.write() as session:
        row = own_job(session, caller, job_id)
        if Status(row.status) not in (Status.RUNNING, Status.RECOVERING):
            raise Conflict(f"{job_id} does not run ({row.status}): there is nothing to change it in", param="job_id")
        health = row.spec.get("health") or {}
        if row.spec["task"]["kind"] == "script" and health.get("mode") != "repair":
            said = "is a script, whose steps are changed with health.mode repair only"
            raise Conflict(f"{job_id} {said}, not with {health.get('mode', 'advise')}", param="job_id")
        by = f"key {caller.key_id}"
        request = ask(requests, kind, by, **wanted)
        what = f"undo repair {wanted['number']}" if kind == "undo" else _said(wanted)
        data = {
            "request": request.id,
            "kind": kind,
            **{name: value for name, value in wanted.items() if value is not None},
        }
        append_event(session, row, database_now(session), "info", "repair.asked", f"{by} asked: {what}", data)
        return request


def _said(wanted: dict[str, Any]) -> str:
    return " and ".join(
        f"{name.replace('_', ' ')} {_value(value)}" for name, value in wanted.items() if value is not None
    )


def _value(value: Any) -> str:
    return quarantine.listed(value) if isinstance(value, list) else f"{value:.6g}"


def _was(state: str) -> str:
    known = {
        "taken_back": "taken back, because it did not help, or another did better",
        "set_aside": "set aside, while another is compared with it",
    }
    return known.get(state, state)
