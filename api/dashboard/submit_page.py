"""A job file, pasted or written from an example, checked as it is typed and posted."""

from __future__ import annotations

from typing import Literal

from nicegui import events, ui

from api.dashboard import job_files, plan_card
from api.dashboard.frame import Frame
from api.dashboard.gateway import AwayError, Gateway, RefusedError

YAML = "application/yaml"
PLAN_SECONDS = 300.0


def show(api: Gateway) -> None:
    frame = Frame("Submit")
    with frame.content():
        ui.label("Submit a job").classes("text-h6")
        with ui.row().classes("items-center"):
            ui.label("Start from:")
            for name in job_files.EXAMPLES:
                ui.button(name, on_click=lambda _, name=name: editor.set_value(job_files.EXAMPLES[name])).props(
                    "outline dense"
                )

            async def uploaded(event: events.UploadEventArguments) -> None:
                editor.set_value((await event.file.read()).decode("utf-8", errors="replace"))

            upload = ui.upload(on_upload=uploaded, auto_upload=True, max_file_size=1 << 20).props(
                "accept=.yaml,.yml,.json"
            )
            upload.set_visibility(False)
            ui.button("a file", icon="upload", on_click=lambda: upload.run_method("pickFiles")).props("outline dense")
        first = next(iter(job_files.EXAMPLES.values()))
        theme: Literal["oneDark", "basicLight"] = "oneDark" if frame.is_dark else "basicLight"
        editor: ui.codemirror = ui.codemirror(first, language="YAML", theme=theme)
        editor.classes("w-full").style("height: 420px")
        verdict = ui.column().classes("w-full gap-1")
        with ui.row():
            button = ui.button("Submit", icon="send")
            planner = (
                ui.button("Plan", icon="calculate").props("outline").tooltip("What it will take; nothing is started")
            )
        planned = ui.column().classes("w-full gap-2")

    def check() -> None:
        tell(job_files.problems_of(editor.value or ""))

    def tell(problems: list[tuple[str, str]]) -> None:
        button.set_enabled(not problems)
        planner.set_enabled(not problems)
        verdict.clear()
        with verdict:
            if not problems:
                ui.label("This is a valid job. Its data is looked at when it is submitted.").classes("text-positive")
            for path, message in problems:
                with ui.row().classes("items-start no-wrap"):
                    ui.badge(path or "file", color="negative")
                    ui.label(message)

    async def submit() -> None:
        button.disable()
        try:
            job = await api.post("/v1/jobs", editor.value, YAML)
        except RefusedError as error:
            tell([(p["path"], p["message"]) for p in error.problems] or [("", str(error))])
            button.enable()
            return
        except AwayError as error:
            ui.notify(f"Nothing was submitted: {error}", type="negative")
            button.enable()
            return
        ui.navigate.to(f"/jobs/{job['id']}")

    async def plan() -> None:
        planner.props("loading")
        text = editor.value or ""
        try:
            found = await api.post("/v1/jobs?dry_run=true", text, YAML, timeout=PLAN_SECONDS)
        except RefusedError as error:
            tell([(p["path"], p["message"]) for p in error.problems] or [("", str(error))])
            return
        except AwayError as error:
            ui.notify(f"There is no plan: {error}", type="negative")
            return
        finally:
            planner.props(remove="loading")
        planned.clear()
        with planned:
            plan_card.show(found)

    planner.on_click(plan)
    editor.on_value_change(check)
    editor.on_value_change(planned.clear)
    button.on_click(submit)
    check()
