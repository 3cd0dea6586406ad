"""One job: what it does now, its curves, its gradients by layer and step, and everything that it tells."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

import yaml
from nicegui import ui

from api.dashboard import figures
from api.dashboard.curves import Curves
from api.dashboard.frame import HEALTH_COLOURS, STATUS_COLOURS, Frame, confirmed, keep_fresh
from api.dashboard.gateway import Gateway
from api.dashboard.health import Health, Verdict
from api.dashboard.layers import Flow, Statistics
from api.dashboard.samples import Samples

EVERY_SECONDS = 1.5
ACTIONS = (
    (
        "pause",
        "pause",
        "It finishes its step, writes a checkpoint and frees its workers.",
        ("queued", "starting", "running", "recovering"),
    ),
    ("resume", "play_arrow", "It goes on where it stopped.", ("paused", "pausing")),
    ("cancel", "cancel", "It finishes its step and writes a checkpoint.", ()),
    ("kill", "bolt", "It ends now, and writes nothing.", ()),
)
LOG_LINES = 1000
Fill = Callable[[dict[str, Any]], Awaitable[None]]  # with what the API says of the job


def show(api: Gateway, job_id: str, step: int | None = None) -> None:
    """``step``: that is to be looked at."""
    frame = Frame("")
    page = JobPage(api, frame, job_id)
    page.step = step
    with frame.content():
        page.build()
    keep_fresh(page.refresh, EVERY_SECONDS)


class JobPage:
    def __init__(self, api: Gateway, frame: Frame, job_id: str) -> None:
        self.api, self.frame, self.path = api, frame, f"/v1/jobs/{quote(job_id, safe='')}"
        self.job_id = job_id
        self.curves = Curves(api, frame, self.path)
        self.findings = Health(api, frame, self.path, job_id, self.look_at)
        self.flow, self.statistics = Flow(api, frame, self.path), Statistics(api, frame, self.path)
        self.samples = Samples(api, frame, self.path, job_id)
        self.step: int | None = None  # to be looked at as soon as it is known how long the run is
        self.steps = 0  # of the run
        self.judged: dict[str, Any] | None = None  # the verdict of the job that the marks show
        self.ended: str | None = None  # tab that was filled after the job had ended: nothing changes in it any more
        self.refreshing = asyncio.Lock()
        self.event_position: str | None = None
        self.log_position: str | None = None
        self.rank: int | None = None

    def build(self) -> None:
        with ui.row().classes("w-full items-center"):
            self.name = ui.label(self.job_id).classes("text-h5")
            self.status = ui.badge("…")
            self.health = ui.badge("")
            ui.space()
            self.buttons = {
                verb: ui.button(verb, icon=icon, on_click=lambda _, verb=verb: self.act(verb))
                .props("outline dense")
                .tooltip(tip)
                for verb, icon, tip, _ in ACTIONS
            }
            self.mlflow = ui.link("MLflow", "", new_tab=True)
        self.line = ui.label().classes("quiet")
        self.reason = ui.label().classes("text-body1")
        self.bar = ui.linear_progress(0, show_value=False).props("rounded instant-feedback")
        self.verdict = Verdict(lambda: self.tabs.set_value("Health"))
        contents = self.contents()
        with ui.tabs().classes("w-full").props("align=left dense outside-arrows mobile-arrows") as tabs:
            for name in contents:
                ui.tab(name)
        self.tabs = tabs
        with ui.tab_panels(tabs, value="Curves", animated=False).classes("w-full bg-transparent"):
            for name, (build, _) in contents.items():
                with ui.tab_panel(name):
                    build()
        tabs.on_value_change(self.refresh)

    def contents(self) -> dict[str, tuple[Callable[[], None], Fill]]:
        """What makes each tab, and what fills it."""
        return {
            "Curves": (self.curves.build, self.curves.fill),
            "Health": (self.findings.build, self.fill_health),
            "Gradient flow": (self.flow.build, self.flow.fill),
            "Statistics": (self.statistics.build, self.statistics.fill),
            "Events": (self.build_events, self.fill_events),
            "Logs": (self.build_logs, self.fill_logs),
            "Samples": (self.samples.build, self.samples.fill),
            "Checkpoints": (self.build_checkpoints, self.fill_checkpoints),
            "Workers": (self.build_workers, self.fill_workers),
            "Job file": (self.build_spec, self.fill_spec),
        }

    # --- what is seen first -------------------------------------------------------------------------------------------

    async def refresh(self) -> None:
        """By the clock and by a click, one after the other: both would append the same news."""
        async with self.refreshing:
            await self.look()

    async def look(self) -> None:
        job = await self.frame.ask(lambda: self.api.get(self.path))
        if job is None:
            return
        self.show_job(job)
        tab = self.tabs.value
        fill = self.contents()[tab][1]
        judged_anew = job["health"] != self.judged
        if judged_anew:
            await self.fill_health(job)
        if self.ended == tab:
            return
        if not (judged_anew and fill == self.fill_health):  # which has just been filled
            await fill(job)
        # The last lines and points may come just after the end.
        told = job["health"].get("verdict") is not None or not job["progress"]
        self.ended = tab if job["finished_at"] and told and tab not in ("Events", "Logs") else None

    def show_job(self, job: dict[str, Any]) -> None:
        self.name.text = job["name"]
        self.status.text = job["status"]
        self.status.props(f"color={STATUS_COLOURS.get(job['status'], 'grey')}")
        verdict = job["health"].get("verdict")
        self.health.text, self.health.visible = f"health: {verdict}", verdict is not None
        self.health.props(f"color={HEALTH_COLOURS.get(verdict, 'grey')}")
        self.verdict.show(job)
        done = job["progress"] or {}
        self.steps = done.get("steps") or done.get("step") or 0
        if self.step is not None and done:
            self.curves.look_at(self.step, self.steps)
            self.step = None
        self.bar.value = done["step"] / done["steps"] if done.get("steps") else 0
        loss, accuracy = job["latest"].get("train/loss"), job["latest"].get("eval/accuracy")
        parts = [
            f"step {figures.progress(job)}",
            f"loss {figures.number(loss)}",
            f"accuracy {figures.number(accuracy)}" if accuracy is not None else None,
            f"{figures.duration(done.get('eta_seconds'))} left" if job["status"] == "running" else None,
            f"{figures.number(done.get('samples_per_second'), 3)} samples/s" if job["status"] == "running" else None,
            f"{len(job['workers'])} worker{'s' if len(job['workers']) != 1 else ''}",
            f"{job['recoveries']} recover{'ies' if job['recoveries'] != 1 else 'y'}" if job["recoveries"] else None,
            f"attempt {job['attempt']}" if job["attempt"] > 1 else None,
            self.job_id,
        ]
        self.line.text = " · ".join(part for part in parts if part)
        reason = job["reason"]
        self.reason.text = reason["message"] if reason else (f"waiting: {job['waiting']}" if job["waiting"] else "")
        self.reason.visible = bool(self.reason.text)
        for verb, _, _, statuses in ACTIONS:
            able = job["status"] in statuses if statuses else job["finished_at"] is None
            self.buttons[verb].set_visibility(able)
        link = job["links"].get("mlflow")
        self.mlflow.props(f'href="{link or ""}"')
        self.mlflow.visible = bool(link)

    async def act(self, verb: str) -> None:
        tip = next(tip for name, _, tip, _ in ACTIONS if name == verb)
        if verb in ("cancel", "kill") and not await confirmed(f"{verb.capitalize()} this job? {tip}", f"{verb} it"):
            return
        await self.frame.ask(lambda: self.api.post(f"{self.path}/{verb}"))
        await self.refresh()

    # --- what is found ------------------------------------------------------------------------------------------------

    async def fill_health(self, job: dict[str, Any]) -> None:
        found = await self.frame.ask(lambda: self.api.get(f"{self.path}/health", facts="false"))
        repairs = await self.frame.ask(lambda: self.api.get(f"{self.path}/repairs"))
        if found is None or repairs is None:
            return
        self.judged = job["health"]
        self.findings.show(found, repairs, running=job["status"] == "running")
        self.curves.mark(found, repairs)

    def look_at(self, step: int) -> None:
        """Shows the curves around a step."""
        self.tabs.set_value("Curves")
        self.curves.look_at(step, self.steps)

    # --- what it tells ------------------------------------------------------------------------------------------------

    def build_events(self) -> None:
        columns = [("at", "Time (UTC)"), ("level", "Level"), ("type", "Event"), ("message", "")]
        self.events = _table(columns)

    async def fill_events(self, job: dict[str, Any]) -> None:
        query = {"after": self.event_position, "limit": 100, "order": "asc"}
        found = await self.frame.ask(lambda: self.api.get(f"{self.path}/events", **query))
        if not found or not found["data"]:
            return
        self.event_position = found["last_id"]
        rows = [
            {
                "id": e["id"],
                "at": figures.moment(e["created_at"]),
                "level": e["level"],
                "type": e["type"],
                "message": e["message"],
            }
            for e in found["data"]
        ]
        self.events.rows = [*reversed(rows), *self.events.rows]
        self.events.update()
        if found["has_more"]:
            await self.fill_events(job)

    def build_logs(self) -> None:
        def choose() -> None:
            self.rank = None if chosen.value == "all" else int(chosen.value)
            self.log_position = None
            self.log.clear()

        with ui.row().classes("items-center"):
            ui.label("Lines of rank")
            chosen = ui.select(["all"], value="all", on_change=choose).props("dense outlined")
        self.ranks = chosen
        self.log = ui.log(max_lines=LOG_LINES).classes("w-full font-mono text-xs").style("height: 520px")

    async def fill_logs(self, job: dict[str, Any]) -> None:
        ranks = ["all", *sorted({str(worker["rank"]) for worker in job["workers"]}, key=int)]
        if ranks != self.ranks.options:
            self.ranks.set_options(ranks, value=self.ranks.value if self.ranks.value in ranks else "all")
        rank = self.rank
        query = {"after": self.log_position, "limit": LOG_LINES, "rank": rank}
        found = await self.frame.ask(lambda: self.api.get(f"{self.path}/logs", **query))
        if not found or not found["data"] or rank != self.rank:
            return
        self.log_position = found["last_id"]
        for line in found["data"]:
            at = (line["timestamp"] or "")[11:19]
            self.log.push(f"{at} [{line['rank']}] {line['text']}")

    # --- what it has --------------------------------------------------------------------------------------------------

    def build_checkpoints(self) -> None:
        self.checkpoints = ui.column().classes("w-full gap-2")

    async def fill_checkpoints(self, job: dict[str, Any]) -> None:
        found = await self.frame.ask(lambda: self.api.get(f"{self.path}/checkpoints"))
        model = await self.frame.ask(lambda: self.api.get(f"{self.path}/model"))
        if found is None or model is None:
            return
        self.checkpoints.clear()
        with self.checkpoints:
            if not found["data"] and not model["data"]:
                ui.label("There is no checkpoint yet.").classes("quiet")
            if model["data"]:
                self.files("The finished model", f"{self.job_id}/model/files", model["data"])
            for each in reversed(found["data"]):
                facts = (
                    figures.size(each["bytes"]),
                    f"gradients {each['verdict']}",
                    figures.moment(each["created_at"]),
                )
                title = " · ".join((f"After step {each['step']:,}", *facts))
                self.files(title, f"{self.job_id}/checkpoints/{each['id']}/files", each["files"])

    def files(self, title: str, under: str, files: list[dict[str, Any]]) -> None:
        with ui.expansion(title).classes("w-full").props("bordered dense"):
            for file in files:
                with ui.row().classes("items-center"):
                    ui.link(file["path"], f"/files/{under}/{quote(file['path'])}").props("download")
                    ui.label(figures.size(file["bytes"])).classes("quiet")

    def build_workers(self) -> None:
        ui.label("Workers of all attempts").classes("text-subtitle1")
        self.workers = _table(
            [("attempt", "Attempt"), ("rank", "Rank"), ("state", "State"), ("node", "Node"), ("pid", "Process"), ("device", "Device"),
             ("started", "Since (UTC)"), ("ended", "Until"), ("why", "Why it ended")]
        )  # fmt: skip
        ui.label("Recoveries").classes("text-subtitle1")
        self.recoveries = _table(
            [("attempt", "Attempt"), ("at", "Lost at (UTC)"), ("cause", "Cause"), ("step", "Step"), ("source", "State from"),
             ("seconds", "To the next step")]
        )  # fmt: skip

    async def fill_workers(self, job: dict[str, Any]) -> None:
        workers = await self.frame.ask(lambda: self.api.get(f"{self.path}/workers"))
        attempts = await self.frame.ask(lambda: self.api.get(f"{self.path}/attempts"))
        if workers is None or attempts is None:
            return
        self.workers.rows = [
            {
                **each,
                "started": figures.moment(each["started_at"]),
                "ended": figures.moment(each["ended_at"]),
                "why": each["why"] or "",
            }
            for each in workers["data"]
        ]
        self.workers.update()
        self.recoveries.rows = [
            {
                "id": f"{attempt['number']}-{number}",
                "attempt": attempt["number"],
                "at": figures.moment(each["lost_at"]),
                "cause": each["cause"],
                "step": each["step"],
                "source": each["source"],
                "seconds": f"{each['seconds']:.1f} s",
            }
            for attempt in attempts["data"]
            for number, each in enumerate(attempt["recoveries"])
        ]
        self.recoveries.update()

    def build_spec(self) -> None:
        self.spec = ui.code("", language="yaml").classes("w-full")

    async def fill_spec(self, job: dict[str, Any]) -> None:
        self.spec.set_content(yaml.safe_dump(job["spec"], sort_keys=False, allow_unicode=True))


def _table(columns: list[tuple[str, str]]) -> ui.table:
    described = [{"name": name, "label": label, "field": name, "align": "left"} for name, label in columns]
    return (
        ui.table(columns=described, rows=[], row_key="id", pagination=50)
        .classes("w-full")
        .props("flat bordered dense wrap-cells")
    )
