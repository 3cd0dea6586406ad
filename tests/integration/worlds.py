"""A store, a cluster in memory and a scheduler whose passes a test makes one by one, at given times."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import update

from service import jobs
from service.database import Store
from service.fake_cluster import FakeCluster, FakeController
from service.leases import Lease
from service.reconciler import Pass, Reconciler
from service.records import Records
from service.settings import Settings
from service.tables import LeaseRow
from service.values import Attempt, Caller, Job, Role, Status

CALLER = Caller("key-test", "default", Role.MEMBER)
ADMIN = Caller("key-admin", "default", Role.ADMIN)
DIGITS = {"kind": "image_classification", "data": {"source": "digits"}}


class World:
    """The scheduler can be killed and started again at any time."""

    def __init__(self, store: Store, home: Path, cluster: FakeCluster, **settings: Any) -> None:
        self.store, self.cluster = store, cluster
        self.settings = Settings(home=home, **settings)
        self.start = datetime.now(UTC)
        self.elapsed = 0.0
        self.restart()

    def restart(self) -> None:
        """Another scheduler takes over, knowing nothing but the database."""
        with self.store.write() as session:
            session.execute(update(LeaseRow).values(expires_at=datetime(2000, 1, 1, tzinfo=UTC)))
        self.lease = Lease(self.store, 1000)
        assert self.lease.acquire()
        self.reconciler = Reconciler(Records(self.store, self.lease), self.cluster, self.settings)

    def run_pass(self, after: float = 0.2) -> Pass:
        self.elapsed += after
        return self.reconciler.run_pass(self.start + timedelta(seconds=self.elapsed), self.elapsed)

    def run_passes(self, count: int, after: float = 0.2) -> None:
        for _ in range(count):
            self.run_pass(after)

    def run_until(self, job: str, status: Status, *, passes: int = 40, after: float = 0.2) -> Job:
        for _ in range(passes):
            if self.job(job).status is status:
                return self.job(job)
            self.run_pass(after)
        raise AssertionError(f"{self.job(job)} did not become {status}")

    def create(self, count: int = 1, **changes: Any) -> str:
        document = {"name": "digits", "task": DIGITS, "workers": {"count": count}, **changes}
        return jobs.create_job(self.store, CALLER, document).id

    def job(self, job_id: str) -> Job:
        return jobs.get_job(self.store, CALLER, job_id)

    def attempts(self, job_id: str) -> list[Attempt]:
        return jobs.list_attempts(self.store, CALLER, job_id)

    def controller(self, job_id: str, attempt: int = 1) -> FakeController:
        return self.cluster.controllers[f"{job_id}.{attempt}"]

    def size(self, job_id: str) -> int:
        """Workers that are really there."""
        return sum(len(c.workers) for name, c in self.cluster.controllers.items() if name.startswith(job_id))

    def types(self, job_id: str) -> list[str]:
        return [event.type for event in jobs.list_events(self.store, CALLER, job_id, limit=1000)]

    def event(self, job_id: str, type: str) -> dict[str, Any]:
        """The last one of that type: message, level and data."""
        events = jobs.list_events(self.store, CALLER, job_id, limit=1000)
        last = [event for event in events if event.type == type][-1]
        return {"message": last.message, "level": last.level, **last.data}

    def statuses(self, job_id: str) -> list[str]:
        events = jobs.list_events(self.store, CALLER, job_id, limit=1000)
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        return [event.data["to"] for event in events if event.type == "job.status"]
