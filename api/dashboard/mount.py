"""The dashboard inside the process of the API, under ``/dashboard``."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from service.settings import Settings

PATH = "/dashboard"
SECRET = "dashboard.secret"  # signs the cookie that names a browser; the keys themselves stay here
SIGNED_IN_SECONDS = 30 * 86400


def mount(api: FastAPI, settings: Settings) -> None:
    """Once a process: NiceGUI is one application, whoever mounts it."""
    kept = settings.home / "dashboard"
    kept.mkdir(mode=0o700, parents=True, exist_ok=True)
    kept.chmod(0o700)  # the keys of those who have signed in
    os.environ["NICEGUI_STORAGE_PATH"] = str(kept)  # read when NiceGUI is imported

    from nicegui import ui
    from nicegui.storage import Storage

    from api.dashboard import pages

    Storage._create_user_storage = seen_when_read  # type: ignore[method-assign,assignment]
    pages.register(api)
    for path in ("/", PATH):  # before the API's own first page, which is its description
        api.router.routes.insert(0, Route(path, _redirect))
    ui.run_with(
        api,
        mount_path=PATH,
        title="Chainrule",
        favicon="∂",
        storage_secret=_secret(settings.home / SECRET),
        session_middleware_kwargs={"same_site": "lax", "max_age": SIGNED_IN_SECONDS},
        reconnect_timeout=20.0,
        show_welcome_message=False,
    )


async def seen_when_read(storage: Any, session_id: str) -> None:
    """In place of NiceGUI's own (3.18), which puts an empty storage in its table first and reads the file then: of two pages that come back at
    once after a restart, the second one would find no key in it and ask for it again."""
    from nicegui.storage import USER_PREFIX

    user = storage._create_persistent_dict(f"{USER_PREFIX}{session_id}")
    await user.initialize()
    storage._users.setdefault(session_id, user)


async def _redirect(_: Request) -> Response:
    return RedirectResponse(f"{PATH}/")


def _secret(path: Path) -> str:
    """Made at the first call; nobody else may read it."""
    if not path.exists():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
    return path.read_text()
