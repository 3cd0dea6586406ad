"""The job store and its use-cases, on SQLite and on a real Postgres."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import select, text, update

from service import database, findings, jobs, keys, leases
from service.database import Store, database_now, open_store
from service.errors import Forbidden, IdempotencyMismatch, InvalidRequest, NotFound, StorageFull, Unavailable
from service.states import append_event, locked_job
from service.tables import ApiKeyRow, Base, IdempotencyRow, JobRow, LeaseRow
from service.values import Caller, Desired, Order, Role, Status
from tests.integration.databases import Postgres, database_url, postgres, sqlite_url, store  # noqa: F401 (fixtures)
from workers.spec import parse_spec

# ruff: noqa: F811 (fixtures are imported and then named as parameters)
pytestmark = pytest.mark.integration

CALLER = Caller("key-test", "default", Role.MEMBER)
DOCUMENT = {"name": "digits", "task": {"kind": "image_classification", "data": {"source": "digits"}}}


def create(store: Store, **changes: Any) -> str:
    return jobs.create_job(store, CALLER, {**DOCUMENT, **changes}).id


# --- schema -----------------------------------------------------------------------------------------------------------


def test_migrations_make_the_tables_that_the_code_expects(store: Store) -> None:
    with store.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_a_migrated_database_opens_again_with_its_jobs(database_url: str) -> None:
    first = open_store(database_url)
    job_id = create(first)
    first.close()
    second = open_store(database_url)
    assert jobs.get_job(second, CALLER, job_id).id == job_id
    second.close()


def test_processes_that_start_together_migrate_once(database_url: str) -> None:
    code = "import sys; from service.database import open_store; open_store(sys.argv[1])"
    starts = [subprocess.Popen([sys.executable, "-c", code, database_url]) for _ in range(3)]
    assert [start.wait(60) for start in starts] == [0, 0, 0]


def test_sqlite_is_durable_and_strict(sqlite_url: str) -> None:
    store = open_store(sqlite_url)
    with store.read() as session:
        pragmas = {
            name: session.execute(text(f"PRAGMA {name}")).scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    store.close()
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 10_000}


# --- jobs -------------------------------------------------------------------------------------------------------------


def test_a_job_is_queued_with_its_event_and_reads_back_as_sent(store: Store) -> None:
    job = jobs.create_job(store, CALLER, {**DOCUMENT, "metadata": {"team": "vision"}, "deadline_seconds": 60})
    assert job == jobs.get_job(store, CALLER, job.id)
    assert (job.status, job.desired, job.attempt, job.metadata) == ("queued", "run", 0, {"team": "vision"})
    assert job.deadline_at == job.created_at + timedelta(seconds=60)
    assert job.created_at.tzinfo is UTC
    assert parse_spec(job.spec) == parse_spec({**DOCUMENT, "metadata": {"team": "vision"}, "deadline_seconds": 60})
    events = jobs.list_events(store, CALLER, job.id)
    assert [(event.sequence, event.type) for event in events] == [(1, "job.created")]


def test_a_bad_job_leaves_nothing(store: Store) -> None:
    with pytest.raises(InvalidRequest) as caught:
        jobs.create_job(store, CALLER, {**DOCUMENT, "colour": 1, "priority": 10**6}, idempotency_key="k", digest="d")
    assert {problem.path for problem in caught.value.problems} == {"colour", "priority"}

    def refuse(_spec: object) -> None:
        raise InvalidRequest(caught.value.problems)

    with pytest.raises(InvalidRequest):
        jobs.create_job(store, CALLER, DOCUMENT, idempotency_key="k", digest="d", admit=refuse)
    assert jobs.list_jobs(store, CALLER).data == []
    with store.read() as session:
        assert session.execute(select(IdempotencyRow)).all() == []


def test_others_cannot_tell_that_a_job_exists(store: Store) -> None:
    job_id, stranger = create(store), Caller("key-other", "other", Role.ADMIN)
    asks: list[Callable[[], object]] = [
        lambda: jobs.get_job(store, stranger, job_id),
        lambda: jobs.cancel_job(store, stranger, job_id),
        lambda: jobs.list_events(store, stranger, job_id),
        lambda: jobs.list_attempts(store, stranger, job_id),
    ]
    for ask in asks:
        with pytest.raises(NotFound):
            ask()
    assert jobs.list_jobs(store, stranger).data == []
    with pytest.raises(InvalidRequest):
        jobs.list_jobs(store, stranger, after=job_id)


def test_a_viewer_reads_and_changes_nothing(store: Store) -> None:
    job_id, viewer = create(store), Caller("key-viewer", "default", Role.VIEWER)
    assert jobs.get_job(store, viewer, job_id).id == job_id
    asks: list[Callable[[], object]] = [
        lambda: jobs.create_job(store, viewer, DOCUMENT),
        lambda: jobs.kill_job(store, viewer, job_id),
    ]
    for ask in asks:
        with pytest.raises(Forbidden):
            ask()


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_pages_hold_every_job_once_in_order(store: Store, order: Order) -> None:
    made = [create(store, name=f"job {index}") for index in range(7)]
    seen: list[str] = []
    while True:
        page = jobs.list_jobs(store, CALLER, after=seen[-1] if seen else None, limit=3, order=order)
        seen += [job.id for job in page.data]
        if not page.has_more:
            break
    assert seen == (made if order == "asc" else made[::-1])
    assert [job.id for job in jobs.list_jobs(store, CALLER, name="job 2").data] == [made[2]]
    assert jobs.list_jobs(store, CALLER, status=Status.RUNNING).data == []


def test_wishes_grow_and_never_shrink(store: Store) -> None:
    job_id = create(store)
    assert jobs.cancel_job(store, CALLER, job_id).desired is Desired.CANCEL
    assert jobs.kill_job(store, CALLER, job_id).desired is Desired.KILL
    assert jobs.cancel_job(store, CALLER, job_id).desired is Desired.KILL
    types = [event.type for event in jobs.list_events(store, CALLER, job_id)]
    assert types == ["job.created", "job.cancel_requested", "job.kill_requested"]


def test_events_page_both_ways(store: Store) -> None:
    job_id = create(store)
    with store.write() as session:
        row = locked_job(session, job_id)
        assert row is not None
        for index in range(5):
            append_event(session, row, row.created_at, "info", "test", f"event {index}", {})

    def sequences(**ask: Any) -> list[int]:
        return [event.sequence for event in jobs.list_events(store, CALLER, job_id, **ask)]

    assert sequences() == [1, 2, 3, 4, 5, 6]
    assert sequences(after_sequence=4) == [5, 6]
    assert sequences(limit=2, order="desc") == [6, 5]
    assert sequences(after_sequence=5, limit=2, order="desc") == [4, 3]


def test_event_numbers_have_no_holes_when_many_write(store: Store) -> None:
    """Would catch numbers that are taken outside the job's lock, and numbers lost by a rolled back transaction."""
    job_id = create(store)

    def write(index: int) -> None:
        try:
            with store.write() as session:
                row = locked_job(session, job_id)
                assert row is not None
                append_event(session, row, row.created_at, "info", "test", "", {"index": index})
                if index % 5 == 0:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            pass

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, range(30)))
    events = jobs.list_events(store, CALLER, job_id)
    assert [event.sequence for event in events] == list(range(1, 26))


def test_text_and_numbers_of_any_origin_can_be_stored(store: Store) -> None:
    job_id = create(store)
    data = {"loss": float("nan"), "norm": [float("inf"), -float("inf")], "text\x00": "a\x00b\ud800", "path": Path("/x")}
    with store.write() as session:
        row = locked_job(session, job_id)
        assert row is not None
        append_event(session, row, row.created_at, "error", "test", "nul \x00 and surrogate \ud800", data)
    event = jobs.list_events(store, CALLER, job_id)[-1]
    assert event.message == "nul \ufffd and surrogate ?"
    assert event.data == {"loss": "NaN", "norm": ["Infinity", "-Infinity"], "text\ufffd": "a\ufffdb?", "path": "/x"}


# --- idempotency ------------------------------------------------------------------------------------------------------


def test_the_same_key_and_body_make_one_job(store: Store) -> None:
    first = jobs.create_job(store, CALLER, DOCUMENT, idempotency_key="key", digest="a")

    def never(_spec: object) -> None:
        raise AssertionError("a repeated request is not checked anew: its data may be gone by now")

    again = jobs.create_job(store, CALLER, DOCUMENT, idempotency_key="key", digest="a", admit=never)
    assert first.id == again.id
    with pytest.raises(IdempotencyMismatch):
        jobs.create_job(store, CALLER, DOCUMENT, idempotency_key="key", digest="b")
    other = Caller("key-other", "other", Role.MEMBER)
    assert jobs.create_job(store, other, DOCUMENT, idempotency_key="key", digest="b").id != first.id
    assert len(jobs.list_jobs(store, CALLER).data) == 1


def test_requests_with_one_key_at_the_same_moment_make_one_job(store: Store) -> None:
    together = threading.Barrier(6)

    def post(_index: int) -> str:
        together.wait()
        return jobs.create_job(store, CALLER, DOCUMENT, idempotency_key="key", digest="a").id

    with ThreadPoolExecutor(6) as pool:
        ids = set(pool.map(post, range(6)))
    assert len(ids) == 1
    assert [job.id for job in jobs.list_jobs(store, CALLER).data] == list(ids)
    assert [event.sequence for event in jobs.list_events(store, CALLER, ids.pop())] == [1]


def test_keys_expire(store: Store) -> None:
    first = jobs.create_job(store, CALLER, DOCUMENT, idempotency_key="key", digest="a")
    with store.write() as session:
        session.execute(update(IdempotencyRow).values(expires_at=datetime.now(UTC) - timedelta(seconds=1)))
    assert jobs.create_job(store, CALLER, DOCUMENT, idempotency_key="key", digest="b").id != first.id


@pytest.mark.parametrize("key", ["", "x" * 256, "a b", "a\n", "\u00e9"])
def test_malformed_keys_are_refused(store: Store, key: str) -> None:
    with pytest.raises(InvalidRequest):
        jobs.create_job(store, CALLER, DOCUMENT, idempotency_key=key, digest="a")


# --- API keys ---------------------------------------------------------------------------------------------------------


def test_the_admin_key_is_made_once_and_kept_private(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "fresh" / "admin.key"
    with ThreadPoolExecutor(4) as pool:
        secrets = set(pool.map(lambda _: keys.ensure_admin_key(store, path), range(4)))
    assert len(secrets) == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == ["admin.key"], "no drafts are left"
    secret = secrets.pop()
    caller = keys.authenticate(store, secret)
    assert caller is not None
    assert (caller.role, caller.project) == (Role.ADMIN, "default")
    with store.read() as session:
        rows = session.execute(select(ApiKeyRow)).scalars().all()
        stored = [str(vars(row)) for row in rows]
    assert len(stored) == 1
    assert secret not in stored[0]
    assert secret.removeprefix("crk_") not in stored[0]


def test_a_key_file_that_others_could_read_is_repaired(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "admin.key"
    secret = keys.ensure_admin_key(store, path)
    path.chmod(0o644)
    assert keys.ensure_admin_key(store, path) == secret
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_key_file_without_a_key_is_refused(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "admin.key"
    path.touch(0o600)
    with pytest.raises(keys.KeyFileError, match="holds no key"):
        keys.ensure_admin_key(store, path)


def test_a_deployment_may_bring_the_first_key(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "admin.key"
    given = f"crk_{'a1-_' * 10}xyz"
    assert keys.ensure_admin_key(store, path, f" {given}\n") == given
    assert keys.ensure_admin_key(store, path, given) == given, "every copy of the API does that when it starts"
    caller = keys.authenticate(store, given)
    assert caller is not None
    assert caller.role is Role.ADMIN
    assert len(keys.list_keys(store)) == 1
    assert not path.exists()


@pytest.mark.parametrize("wrong", ["", "secret", "crk_short"])
def test_what_is_no_key_cannot_be_the_first(store: Store, tmp_path: Path, wrong: str) -> None:
    with pytest.raises(keys.KeyFileError, match="CHAINRULE_ADMIN_KEY"):
        keys.ensure_admin_key(store, tmp_path / "admin.key", wrong)
    assert keys.list_keys(store) == []


def test_a_key_opens_until_it_is_revoked(store: Store) -> None:
    key, secret = keys.create_key(store, name="ci", role=Role.VIEWER)
    assert keys.authenticate(store, secret) == Caller(key.id, "default", Role.VIEWER)
    assert keys.list_keys(store) == [key]
    assert keys.revoke_key(store, key.id).revoked_at is not None
    assert keys.authenticate(store, secret) is None
    with pytest.raises(NotFound):
        keys.revoke_key(store, "key-unknown")


@pytest.mark.parametrize("token", ["", "crk_", "crk_" + "a" * 43, "crk_" + "\u0661" * 43, "x" * 100_000, "' OR 1=1 --"])
def test_other_tokens_open_nothing(store: Store, token: str) -> None:
    keys.create_key(store, name="ci", role=Role.ADMIN)
    assert keys.authenticate(store, token) is None


# --- the lease --------------------------------------------------------------------------------------------------------


def test_one_leads_until_it_is_silent_for_too_long_and_its_late_writes_are_refused(store: Store) -> None:
    old, new = leases.Lease(store, 10), leases.Lease(store, 10)
    assert old.acquire()
    assert not new.acquire()
    assert jobs.cluster_view(store).scheduler_alive
    with store.write() as session:
        session.execute(update(LeaseRow).values(expires_at=datetime.now(UTC) - timedelta(seconds=1)))
    assert not jobs.cluster_view(store).scheduler_alive
    assert old.acquire(), "late, but nobody else came"
    with store.write() as session:
        session.execute(update(LeaseRow).values(expires_at=datetime.now(UTC) - timedelta(seconds=1)))
    assert new.acquire()
    with pytest.raises(leases.LeaseLostError), store.write() as session:
        old.guard(session)
    with store.write() as session:
        new.guard(session)
    assert not old.acquire()
    new.release()
    assert old.acquire()


def test_the_lease_of_a_dead_process_of_this_machine_is_free_at_once(store: Store, database_url: str) -> None:
    code = (
        "import sys; from service.database import open_store; from service.leases import Lease\n"
        "assert Lease(open_store(sys.argv[1]), 1000).acquire(); print('leads', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, database_url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "leads\n"
        lease = leases.Lease(store, 10)
        assert not lease.acquire(), "the holder lives"
        holder.send_signal(signal.SIGKILL)
        holder.wait(10)
        assert lease.acquire()


def test_a_lease_is_kept_by_its_keeper(store: Store) -> None:
    lease = leases.Lease(store, 0.6)
    assert lease.acquire()
    keeper = leases.LeaseKeeper(lease)
    keeper.start()
    other, until = leases.Lease(store, 10), time.monotonic() + 1.5
    while time.monotonic() < until:
        assert not other.acquire()
        time.sleep(0.05)
    keeper.stop()


# --- trouble ----------------------------------------------------------------------------------------------------------


def test_a_locked_sqlite_database_is_unavailable_after_the_wait(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "LOCK_SECONDS", 0.2)
    store = open_store(sqlite_url)
    job_id = create(store)
    blocker = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    assert jobs.get_job(store, CALLER, job_id).id == job_id, "reading goes on"
    with pytest.raises(Unavailable, match="try again") as caught:
        create(store)
    assert caught.value.retry_after is not None
    assert "locked" not in caught.value.message
    blocker.execute("ROLLBACK")
    blocker.close()
    create(store)
    store.close()


def test_a_full_disk_is_said_so(sqlite_url: str) -> None:
    store = open_store(sqlite_url)
    with store.engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StorageFull):
        create(store, metadata={str(index): "x" * 500 for index in range(16)})
    assert jobs.list_jobs(store, CALLER).data == []
    store.close()


def test_a_restart_of_postgres_costs_no_job(postgres: Postgres) -> None:
    with postgres.database() as url:
        store = open_store(url)
        job_id = create(store)
        postgres.stop(signal.SIGQUIT)
        with pytest.raises(Unavailable):
            create(store)
        postgres.start()
        assert jobs.get_job(store, CALLER, job_id).id == job_id
        create(store)
        with store.read() as session:
            assert len(session.execute(select(JobRow.id)).all()) == 2
        store.close()


def test_an_address_of_another_kind_of_database_is_refused() -> None:
    for url in ("mysql://localhost/x", "sqlite://"):
        with pytest.raises(ValueError, match="database"):
            open_store(url)


def test_findings_are_counted_wherever_they_come_from(store: Store) -> None:
    """Those of workers lie within their events, those on data are their events; what has passed was raised all the same."""
    told: list[tuple[str, dict[str, Any]]] = [
        ("finding.raised", {"step": 5, "finding": {"code": "lr_too_high", "severity": "critical"}}),
        ("finding.cleared", {"step": 9, "finding": {"code": "lr_too_high", "severity": "critical"}}),
        ("finding.raised", {"step": 12, "finding": {"code": "lr_too_high", "severity": "critical"}}),
        ("data.finding", {"code": "bad_rows", "severity": "note"}),
        ("evaluation", {"step": 12, "code": "lr_too_high", "severity": "critical"}),
    ]
    first, second = create(store), create(store)
    for job_id in (first, second):
        with store.write() as session:
            row = locked_job(session, job_id)
            assert row is not None
            for type, data in told:
                append_event(session, row, database_now(session), "info", type, "", data)
            row.health = {"verdict": "critical"} if job_id == first else {}
    assert findings.raised(store) == {("lr_too_high", "critical"): 4, ("bad_rows", "note"): 2}
    assert findings.verdicts(store) == {"critical": 1, "unknown": 1}
    history = [(event.type, event.data) for event in findings.history(store, CALLER, first)]
    assert history == told[:4]
    with pytest.raises(NotFound):
        findings.history(store, Caller("key-other", "other", Role.ADMIN), first)
