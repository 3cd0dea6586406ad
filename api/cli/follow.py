"""Following a job until it has ended or is paused: a live bar on a terminal, plain lines elsewhere, and the summary."""

from __future__ import annotations

import time
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from api.cli.console import INTERRUPTED, clean, duration, err, exit_code, number, out, print_json, say
from api.cli.findings import say_change
from api.client import PATIENCE_SECONDS, Client, Document, NoServiceError
from api.evidence import first_sentence
from workers.watch.told import CHANGES

TICK_SECONDS, LINE_SECONDS = 0.25, 2.0
ENDED = frozenset({"succeeded", "failed", "cancelled"})
AT_WORK = frozenset({"starting", "running", "recovering"})
PAUSE_SECONDS = 3.0  # a job that was paused and resumed in one breath is paused for a moment
QUIET = frozenset(
    {
        "evaluation", "job.created", "job.status", "training.finished", "tracking.complete", "workers.started",
        "facts", "health.verdict",  # findings are told by themselves, the verdict by the summary
    }
)  # fmt: skip
STYLES = {"warning": "yellow", "error": "red"}


def follow(client: Client, job_id: str, console: Console = out) -> Document:
    """Shows the job until it has ended, or is paused and so waits for somebody who resumes it, and returns it. Ctrl-C ends the
    showing, not the job; nor does an API that is away for a while."""
    display = _Bar(console) if console.is_terminal else _Lines(console)
    seen: str | None = None
    away_since: float | None = None
    paused_since: float | None = None
    with display:
        while True:
            try:
                job = client.get_job(job_id)
                page = client.events(job_id, after=seen)
            except NoServiceError:
                if away_since is None:
                    away_since = time.monotonic()
                    say("the API does not answer; the job goes on meanwhile", "yellow", console)
                if time.monotonic() - away_since > PATIENCE_SECONDS:
                    raise
                continue
            away_since = None
            for event in page["data"]:
                seen = event["id"]
                if event["type"] in CHANGES:
                    say_change(event, console=console)
                elif event["type"] not in QUIET:
                    say(event["message"], STYLES.get(event["level"], "dim"), console)
            display.show(job)
            paused_since = (paused_since or time.monotonic()) if job["status"] == "paused" else None
            settled = paused_since is not None and time.monotonic() - paused_since >= PAUSE_SECONDS
            if (job["status"] in ENDED or settled) and not page["has_more"]:
                return job
            time.sleep(TICK_SECONDS)


def show_to_the_end(client: Client, job_id: str, as_json: bool) -> typer.Exit:
    """To be raised, with the exit code: follows the job and prints what became of it."""
    console = err if as_json else out  # what programs read is the job alone
    try:
        job = follow(client, job_id, console)
    except KeyboardInterrupt:
        say(f"\n{job_id} goes on; `chainrule cancel {job_id}` ends it", "yellow", console)
        return typer.Exit(INTERRUPTED)
    print_json(job) if as_json else summary(client, job)
    return typer.Exit(exit_code(job))


def figures(job: Document) -> str:
    """The numbers of the moment in a line."""
    latest, progress = job["latest"], job["progress"] or {}
    parts = [
        ("loss", latest.get("train/loss")),
        ("accuracy", latest.get("eval/accuracy")),
        ("gradient norm", latest.get("gradient/norm")),
        ("samples/s", progress.get("samples_per_second")),
    ]
    shown = [f"{name} {number(value)}" for name, value in parts if value is not None]
    if progress.get("eta_seconds") is not None and job["status"] in AT_WORK:
        shown.append(f"{duration(progress['eta_seconds'])} left")
    return "  ".join(shown)


class _Bar:
    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            console=console,
        )
        self._task: TaskID = self._progress.add_task("queued", total=None, figures="")

    def __enter__(self) -> None:
        self._progress.start()

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, job: Document) -> None:
        progress = job["progress"]
        if progress is None:
            self._progress.update(self._task, description=job["status"], figures=clean(job.get("waiting") or ""))
            return
        self._progress.update(
            self._task,
            description=f"{job['status']} {progress['step']}/{progress['steps'] or '?'}",
            completed=progress["step"],
            total=progress["steps"] or None,
            figures=figures(job),
        )


class _Lines:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._status, self._shown_at = "", 0.0

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def show(self, job: Document) -> None:
        progress = job["progress"]
        if job["status"] != self._status:
            self._status = job["status"]
            waiting = f": {job['waiting']}" if job.get("waiting") else ""
            say(f"{job['id']} is {job['status']}{waiting}", "", self._console)
        if progress and time.monotonic() - self._shown_at > LINE_SECONDS:
            self._shown_at = time.monotonic()
            say(f"step {progress['step']}/{progress['steps'] or '?'}  {figures(job)}", "", self._console)


def summary(client: Client, job: Document) -> None:
    """Where the job stands: why it ended, what came out, what the gradients looked like, where everything is."""
    reason = job["reason"]
    style = {"succeeded": "green", "failed": "red"}.get(job["status"], "yellow")
    say("")
    say(f"{job['name']} ({job['id']}): {job['status']}" + (f", {reason['message']}" if reason else ""), f"bold {style}")
    rows: list[tuple[str, Any]] = []
    for kind, name in (("eval/", "evaluation"), ("test/", "test")):
        metrics = sorted((key, value) for key, value in job["latest"].items() if key.startswith(kind))
        if metrics:
            rows.append((name, ", ".join(f"{key[5:]} {number(value)}" for key, value in metrics)))
    if job["progress"]:
        rows.append(
            ("training", f"step {job['progress']['step']} of {job['progress']['steps'] or '?'}, {figures(job)}")
        )
    if job["started_at"] and job["finished_at"]:
        rows.append(("took", f"{_seconds(job):.1f} s from start to end"))
    if job["recoveries"]:
        rows.append(("recoveries", f"{job['recoveries']}; `chainrule attempts {job['id']}` tells of each"))
    if job["health"].get("sentence"):
        rows.append(("health", f"{job['health']['verdict']}: {first_sentence(job['health']['sentence'])}"))
    findings = job["health"].get("findings", [])
    rows += [("finding", told(each, job["health"])) for each in findings]
    if findings:
        rows.append(("", f"`chainrule health {job['id']}` has the evidence"))
    checkpoints = client.checkpoints(job["id"])["data"]
    if checkpoints:
        kept = ", ".join(f"{each['step']} ({each['verdict']})" for each in checkpoints)
        rows.append(("checkpoints", f"of step {kept}"))
    if client.model_files(job["id"])["data"]:
        rows.append(("model", f"{client.url}/v1/jobs/{job['id']}/model"))
    if job["links"].get("mlflow"):
        rows.append(("MLflow run", job["links"]["mlflow"]))
    if job["status"] == "paused":
        rows.append(("goes on with", f"chainrule resume {job['id']}"))
    for name, value in rows:
        say(f"  {name:12} {value}")


def told(finding: Document, health: Document) -> str:
    """A finding in a line; what is seen where the verdict's sentence does not say it already."""
    explained = finding["explanation"] in health.get("sentence", "")
    seen = "" if explained else f"{first_sentence(finding['explanation'])} "
    return f"{finding['code']} ({finding['severity']}): {seen}{finding['suggestion']}"


def _seconds(job: Document) -> float:
    from datetime import datetime

    started, finished = (datetime.fromisoformat(job[key]) for key in ("started_at", "finished_at"))
    return (finished - started).total_seconds()
