"""Who leads: one row, in database time, with a fencing token that grows with every new holder.

Every record of the reconciler is made in a transaction that ``guard`` has checked, so the late writes of a leader that was
frozen or cut off are refused, however long it slept.
"""

from __future__ import annotations

import logging
import secrets
import threading
from datetime import timedelta
from pathlib import Path

import psutil
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from service.database import Store, database_now
from service.errors import ServiceError
from service.tables import LeaseRow

log = logging.getLogger(__name__)
NAME = "scheduler"


class LeaseLostError(RuntimeError):
    """Somebody else leads now."""


class Lease:
    """Taken and renewed by one scheduler. ``token`` is None while somebody else leads."""

    def __init__(self, store: Store, seconds: float) -> None:
        self.store = store
        self.seconds = seconds
        self.holder = f"{_process_mark(psutil.Process())}/{secrets.token_hex(4)}"
        self.token: int | None = None

    def acquire(self) -> bool:
        """Takes the lease if nobody holds it, or its holder has been silent for too long or is dead. Renews our own."""
        with self.store.write() as session:
            now = database_now(session)
            expires_at = now + timedelta(seconds=self.seconds)
            row = session.execute(select(LeaseRow).where(LeaseRow.name == NAME).with_for_update()).scalar_one_or_none()
            if row is None:
                row = LeaseRow(name=NAME, holder=self.holder, token=1, renewed_at=now, expires_at=expires_at)
                session.add(row)
            elif row.holder == self.holder:
                row.renewed_at, row.expires_at = now, expires_at
            elif row.expires_at <= now or _is_dead(row.holder):
                row.holder, row.token = self.holder, row.token + 1
                row.renewed_at, row.expires_at = now, expires_at
            else:
                self.token = None
                return False
            token = row.token
        self.token = token
        return True

    def guard(self, session: Session) -> None:
        """Refuses the transaction unless the lease is ours. Nobody can take it before the transaction ends."""
        query = select(LeaseRow.token).where(LeaseRow.name == NAME).with_for_update()
        if self.token is None or session.execute(query).scalar_one_or_none() != self.token:
            raise LeaseLostError("another scheduler leads now")

    def release(self) -> None:
        """Lets another scheduler start at once."""
        if self.token is None:
            return
        with self.store.write() as session:
            now = database_now(session)
            ours = (LeaseRow.name == NAME) & (LeaseRow.token == self.token)
            session.execute(update(LeaseRow).where(ours).values(expires_at=now))
        self.token = None


class LeaseKeeper:
    """Renews a lease from a thread of its own, because a pass may wait for the cluster longer than a lease lasts.

    A frozen process renews nothing, and so does one whose database is away: both lose the lead.
    """

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """After this the lease is not renewed, and the keeper cannot be started again."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._lease.seconds / 3):
            try:
                if not self._lease.acquire():
                    return
            except ServiceError as error:
                log.warning("the lease could not be renewed: %s", error)


def _process_mark(process: psutil.Process) -> str:
    """Names a process for ever: machine since its boot, namespace of process ids, id, start."""
    return f"{_machine()}/{process.pid}/{process.create_time():.2f}"


def _machine() -> str:
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if not boot.exists():  # not Linux: a dead holder's lease runs out by itself
        return secrets.token_hex(8)
    return f"{boot.read_text().strip()}:{namespace.stat().st_ino}"


def _is_dead(holder: str) -> bool:
    """Whether the holder was a process of this machine that is no more; what we cannot see counts as alive."""
    machine, pid, started, _ = holder.split("/")
    if machine != _machine():
        return False
    try:
        process = psutil.Process(int(pid))
        return process.status() == psutil.STATUS_ZOMBIE or f"{process.create_time():.2f}" != started
    except psutil.NoSuchProcess:
        return True
