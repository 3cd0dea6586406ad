"""API keys: ``crk_`` and 256 random bits. The database holds their SHA-256 only."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from service.database import Store
from service.errors import Forbidden, NotFound
from service.tables import ApiKeyRow
from service.values import ApiKey, Caller, Role

log = logging.getLogger(__name__)
PREFIX = "crk_"  # for secret scanners
WELL_FORMED = re.compile(r"crk_[A-Za-z0-9_-]{43}", re.ASCII)
RANKS = {Role.VIEWER: 0, Role.MEMBER: 1, Role.ADMIN: 2}


class KeyFileError(RuntimeError):
    """The admin key file cannot be trusted; ``str()`` says why and what to do."""


def authenticate(store: Store, token: str) -> Caller | None:
    """Who ``token`` belongs to; None when it is malformed, unknown or revoked."""
    if WELL_FORMED.fullmatch(token) is None:
        return None
    digest = _digest(token)
    with store.read() as session:
        row = session.execute(select(ApiKeyRow).where(ApiKeyRow.digest == digest)).scalar_one_or_none()
    if row is None or row.revoked_at is not None or not hmac.compare_digest(row.digest, digest):
        return None
    return Caller(key_id=row.id, project=row.project, role=Role(row.role))


def require(caller: Caller, role: Role) -> None:
    """Raises Forbidden unless the caller's role is ``role`` or a higher one."""
    if RANKS[caller.role] < RANKS[role]:
        raise Forbidden(f"this needs the role {role}; the key has the role {caller.role}")


def create_key(store: Store, *, name: str, role: Role, project: str = "default") -> tuple[ApiKey, str]:
    """A new key and its secret, which is shown here only."""
    secret = _new_secret()
    row = _row(secret, name, role, project)
    with store.write() as session:
        session.add(row)
    return _value(row), secret


def list_keys(store: Store, project: str = "default") -> list[ApiKey]:
    with store.read() as session:
        query = select(ApiKeyRow).where(ApiKeyRow.project == project).order_by(ApiKeyRow.created_at, ApiKeyRow.id)
        return [_value(row) for row in session.execute(query).scalars()]


def revoke_key(store: Store, key_id: str) -> ApiKey:
    """From now on the key opens nothing. Revoking twice changes nothing."""
    with store.write() as session:
        row = session.get(ApiKeyRow, key_id, with_for_update=True)
        if row is None:
            raise NotFound(f"there is no key {key_id}")
        row.revoked_at = row.revoked_at or datetime.now(UTC)
        return _value(row)


def ensure_admin_key(store: Store, path: Path, given: str | None = None) -> str:
    """The admin key, known to the database afterwards: ``given``, else the one kept in ``path`` (mode 0600), made at the first start.

    A file that others could read is repaired, with a warning: whoever had access may have read it. Raises KeyFileError when
    the file belongs to another user or holds no key, or when what is given is none.
    """
    secret = _kept(path) if given is None else given.strip()
    if WELL_FORMED.fullmatch(secret) is None:
        raise KeyFileError(f"CHAINRULE_ADMIN_KEY is no key: it must be {PREFIX} and 43 letters, digits, - or _")
    try:
        with store.write() as session:
            known = session.execute(select(ApiKeyRow.id).where(ApiKeyRow.digest == _digest(secret))).first()
            if known is None:
                session.add(_row(secret, "admin", Role.ADMIN, "default"))
    except IntegrityError:  # another process, starting at the same moment, has registered the same key
        pass
    return secret


def _kept(path: Path) -> str:
    if not path.exists():
        _create_exclusively(path, _new_secret())
    return _read_private(path)


def _create_exclusively(path: Path, secret: str) -> None:
    """The file appears at once, complete and private; if another process was first, its file stays."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secret + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def _read_private(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as file:
        facts = os.fstat(file.fileno())
        if facts.st_uid != os.geteuid():
            raise KeyFileError(f"{path} belongs to another user; remove it, and a new key is made")
        if stat.S_IMODE(facts.st_mode) & 0o077:
            os.fchmod(file.fileno(), 0o600)
            log.warning("%s was readable by others; it is private again. Remove it to get a new key.", path)
        secret = file.read().strip()
    if WELL_FORMED.fullmatch(secret) is None:
        raise KeyFileError(f"{path} holds no key; remove it, and a new one is made")
    return secret


def _new_secret() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _row(secret: str, name: str, role: Role, project: str) -> ApiKeyRow:
    return ApiKeyRow(
        id=f"key-{secrets.token_hex(12)}",
        digest=_digest(secret),
        name=name,
        role=role,
        project=project,
        created_at=datetime.now(UTC),
        revoked_at=None,
    )


def _value(row: ApiKeyRow) -> ApiKey:
    return ApiKey(
        id=row.id,
        name=row.name,
        role=Role(row.role),
        project=row.project,
        created_at=row.created_at,
        revoked_at=row.revoked_at,
    )
