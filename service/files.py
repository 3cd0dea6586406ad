"""The use-cases around uploaded files. Their rows say what there is; a file without a row does not count."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session

from service import idempotency
from service.database import Store, database_now
from service.errors import Conflict, InvalidRequest, NotFound
from service.keys import require
from service.rows import file_value
from service.stored_files import StoredFiles
from service.tables import FileRow, JobRow
from service.values import Caller, Order, Page, Role, StoredFile
from workers import bundles
from workers.problems import Problem, shorten
from workers.spec import JobSpec, code_of

PURPOSES = ("bundle",)


@dataclass(frozen=True)
class Upload:
    """Bytes that have arrived, in a file that nobody else knows of."""

    partial: Path
    filename: str
    purpose: str
    bytes: int
    sha256: str

    @property
    def digest(self) -> str:
        """Of all that makes two uploads the same."""
        return hashlib.sha256(repr((self.filename, self.purpose, self.bytes, self.sha256)).encode()).hexdigest()


def add_file(
    store: Store, caller: Caller, stored: StoredFiles, upload: Upload, *, idempotency_key: str | None = None
) -> StoredFile:
    """A new file, or the one that this idempotency key made before. The upload's partial file is taken, or removed."""
    try:
        require(caller, Role.MEMBER)
        if idempotency_key is not None:
            idempotency.check(idempotency_key)
            with store.read() as session:
                if (
                    earlier := idempotency.file_made_before(session, caller, idempotency_key, upload.digest)
                ) is not None:
                    return file_value(earlier)
        _check(upload)
        return _add(store, caller, stored, upload, idempotency_key)
    finally:
        upload.partial.unlink(missing_ok=True)


def list_files(
    store: Store,
    caller: Caller,
    *,
    after: str | None = None,
    limit: int = 20,
    order: Order = "desc",
    purpose: str | None = None,
) -> Page[StoredFile]:
    """By age, those after (in ``order``) the file ``after``."""
    position = tuple_(FileRow.created_at, FileRow.id)
    query = select(FileRow).where(FileRow.project == caller.project)
    if purpose is not None:
        query = query.where(FileRow.purpose == purpose)
    with store.read() as session:
        if after is not None:
            last = session.get(FileRow, after)
            if last is None or last.project != caller.project:
                raise InvalidRequest([Problem("after", "is no file of this project", shorten(after))])
            mark = tuple_(last.created_at, last.id)
            query = query.where(position < mark if order == "desc" else position > mark)
        query = query.order_by(*(column.desc() if order == "desc" else column for column in position.clauses))
        rows = session.execute(query.limit(limit + 1)).scalars().all()
        return Page(data=[file_value(row) for row in rows[:limit]], has_more=len(rows) > limit)


def get_file(store: Store, caller: Caller, file_id: str) -> StoredFile:
    with store.read() as session:
        return file_value(_own(session.get(FileRow, file_id), caller))


def delete_file(store: Store, caller: Caller, stored: StoredFiles, file_id: str) -> StoredFile:
    """Raises Conflict while a job that has not ended needs it."""
    require(caller, Role.MEMBER)
    with store.write() as session:
        row = _own(session.get(FileRow, file_id, with_for_update=True), caller)
        user = session.execute(
            select(JobRow.id).where(JobRow.bundle == file_id, JobRow.finished_at.is_(None)).limit(1)
        ).scalar()
        if user is not None:
            raise Conflict(f"{user} has its code in this file and has not ended; cancel it first", param="file_id")
        found = file_value(row)
        session.delete(row)
    stored.remove(file_id)  # after the commit: a job's file is never missing
    return found


def bundle_of(store: Store, caller: Caller, stored: StoredFiles, spec: JobSpec) -> Path | None:
    """Where the bundle with the job's code is; None: it has none. Raises InvalidRequest that names the field."""
    code = code_of(spec)
    if code is None or code.file is None:
        return None
    with store.read() as session:
        check_bundle(session, caller, code.file)
    return stored.path(code.file)


def check_bundle(session: Session, caller: Caller, file_id: str) -> None:
    """Whether a job of the caller may have its code in this file; until the transaction ends, nobody can delete it."""
    row = session.get(FileRow, file_id, with_for_update={"read": True})
    if row is None or row.project != caller.project:
        raise InvalidRequest([Problem("task.code.file", "there is no such file; upload it first", shorten(file_id))])
    if row.purpose != "bundle":
        message = f"was uploaded for {row.purpose}; code must be uploaded with purpose bundle"
        raise InvalidRequest([Problem("task.code.file", message, shorten(file_id))])


def _check(upload: Upload) -> None:
    if upload.purpose not in PURPOSES:
        raise InvalidRequest([Problem("purpose", f"must be one of: {', '.join(PURPOSES)}", shorten(upload.purpose))])
    try:
        bundles.check(upload.partial)
    except bundles.BundleError as error:
        raise InvalidRequest([Problem("file", str(error), shorten(upload.filename))]) from None


def _add(store: Store, caller: Caller, stored: StoredFiles, upload: Upload, key: str | None) -> StoredFile:
    file_id = f"file-{secrets.token_hex(12)}"
    stored.keep(upload.partial, file_id)
    kept = False
    try:
        with store.write() as session:
            now = database_now(session)
            if key is not None and not idempotency.claim_for_file(session, caller, key, upload.digest, file_id, now):
                earlier = idempotency.file_made_before(session, caller, key, upload.digest)
                assert earlier is not None, "a key that cannot be claimed is there, with its file"
                return file_value(earlier)
            row = FileRow(
                id=file_id,
                project=caller.project,
                filename=upload.filename,
                purpose=upload.purpose,
                bytes=upload.bytes,
                sha256=upload.sha256,
                created_at=now,
            )
            session.add(row)
            found = file_value(row)
        kept = True
        return found
    finally:
        if not kept:
            stored.remove(file_id)


def _own(row: FileRow | None, caller: Caller) -> FileRow:
    if row is None or row.project != caller.project:
        raise NotFound("There is no such file.", param="file_id")
    return row
