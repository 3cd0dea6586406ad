"""The addresses of the dashboard, and who may see them."""

from __future__ import annotations

from urllib.parse import quote

from nicegui import app, ui
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp

from api.dashboard import job_page, jobs_page, submit_page
from api.dashboard.frame import DARK, KEY, gateway, prepare_all_pages
from api.dashboard.gateway import AwayError, Forwarded, Gateway, RefusedError

SIGN_IN = "/dashboard/sign-in"  # redirections are not told where the pages are mounted; links are


def register(api: ASGIApp) -> None:
    """Declares all pages. ``api``: the application that answers under /v1."""
    prepare_all_pages()

    @ui.page("/")
    def jobs() -> Response | None:
        found = gateway(api)
        if found is None:
            return _to_sign_in("/")
        jobs_page.show(found)
        return None

    @ui.page("/jobs/{job_id}")
    def job(job_id: str, step: str = "") -> Response | None:
        """``step``: to be looked at; what is no number is passed over."""
        chosen = int(step) if step.isascii() and step.isdigit() and len(step) < 16 else None
        found = gateway(api)
        if found is None:
            return _to_sign_in(f"/jobs/{quote(job_id)}" + (f"?step={chosen}" if chosen is not None else ""))
        job_page.show(found, job_id, chosen)
        return None

    @ui.page("/submit")
    def submit() -> Response | None:
        found = gateway(api)
        if found is None:
            return _to_sign_in("/submit")
        submit_page.show(found)
        return None

    @ui.page("/sign-in")
    def sign_in(to: str = "/") -> None:
        _sign_in(api, to if to.startswith("/") and "//" not in to else "/")

    @app.get("/files/{path:path}")
    def download(path: str, request: Request) -> Response:
        """A file that the API gives to who has a key: ``path`` is what follows /v1/jobs/."""
        key = app.storage.user.get(KEY)
        return Forwarded(api, f"/v1/jobs/{path}", key) if key else _to_sign_in("/")


def _to_sign_in(from_: str) -> Response:
    return RedirectResponse(f"{SIGN_IN}?to={quote(from_)}")


def _sign_in(api: ASGIApp, to: str) -> None:
    ui.dark_mode(value=app.storage.user.get(DARK))
    ui.colors(primary="#3f6ad8")

    async def enter() -> None:
        key = (given.value or "").strip()
        if not key.isascii() or not key.isprintable() or " " in key or not key:
            problem.text = "A key is one word, such as the one in admin.key of the service's home."
            return
        try:
            await Gateway(api, key).get("/v1/jobs", limit=1)
        except (RefusedError, AwayError) as error:
            problem.text = str(error)
            return
        app.storage.user[KEY] = key
        ui.navigate.to(to)

    with ui.card().classes("absolute-center q-pa-lg").style("width: 420px"):
        ui.label("∂ Chainrule").classes("text-h5")
        ui.label("Sign in with an API key.").classes("quiet")
        given = ui.input("API key", password=True, password_toggle_button=True).classes("w-full").props("autofocus")
        given.on("keydown.enter", enter)
        problem = ui.label().classes("text-negative")
        ui.button("Sign in", on_click=enter).classes("w-full")
