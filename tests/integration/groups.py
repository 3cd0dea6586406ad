"""One attempt of a job on a real Ray, started as the control plane starts it; jobs for it."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from tests.helpers import wait_for
from workers import launcher
from workers.jobfolder import JobFolder
from workers.reports import GroupShape, Observation
from workers.spec import parse_spec

DIGITS: dict[str, Any] = {
    "name": "digits",
    "task": {
        "kind": "image_classification",
        "data": {"source": "digits"},
        "model": {"architecture": "mlp", "hidden": [32]},
    },
    "training": {"epochs": 2, "batch_size": 96},
    "optimizer": {"learning_rate": 3e-3},
    "workers": {"count": 2},
}


def long(**changes: Any) -> dict[str, Any]:
    """A job of some seconds, with checkpoints."""
    spec = DIGITS | {
        "training": {"epochs": 80, "batch_size": 96},
        "checkpoint": {"every_steps": 20},
        "evaluation": {"every_steps": 500},
    }
    return spec | changes


def slow(**changes: Any) -> dict[str, Any]:
    """Steps of some 20 ms, so that it is still there when new processes have been started."""
    model = {"architecture": "mlp", "hidden": [768, 768]}
    spec = long(task=DIGITS["task"] | {"model": model}, training={"steps": 900, "batch_size": 192}, checkpoint={})
    return spec | changes


class Group:
    """``number``: of the attempt; a later one of the same ``job_id`` goes on where the earlier one ended."""

    def __init__(
        self,
        folder: Path,
        spec: dict[str, Any],
        train: str = "workers.train:train",
        *,
        workers: int | None = None,
        avoid: frozenset[str] = frozenset(),
        mlflow_url: str | None = None,
        job_id: str | None = None,
        number: int = 1,
        bundle: Path | None = None,
        healthy_from: int = 0,
    ) -> None:
        self.job_id = job_id or f"job-{uuid.uuid4().hex[:12]}"
        self.name = f"{self.job_id}.{number}"
        self.folder = JobFolder(folder, self.job_id)
        parsed = parse_spec(spec)
        self._arguments = (
            self.name,
            self.job_id,
            number,
            parsed.model_dump_json(),
            GroupShape(workers or parsed.workers.fewest, avoid),
            str(self.folder.path),
            mlflow_url,
            "chainrule",
            train,
            None,
            str(bundle) if bundle is not None else None,
            healthy_from,
        )
        self.start()

    def start(self) -> None:
        launcher.start(*self._arguments)

    def reshape(self, workers: int, avoid: frozenset[str] = frozenset()) -> None:
        launcher.reshape(self.name, GroupShape(workers, avoid))

    def observe(self) -> Observation | None:
        return launcher.observe({self.name: 0}).get(self.name)

    def until(self, what: str, true: Any, seconds: float = 90.0) -> Observation:
        def look() -> Observation | None:
            seen = self.observe()
            return seen if seen is not None and true(seen) else None

        try:
            return wait_for(what, look, seconds)
        except AssertionError as error:
            seen = self.observe()
            told = [f"{event.type}: {event.message[:200]}" for event in seen.events[-12:]] if seen else []
            raise AssertionError("\n".join([str(error), *told])) from error

    def until_step(self, step: int) -> Observation:
        return self.until(f"step {step}", lambda seen: seen.progress is not None and seen.progress.step >= step)

    def finished(self, seconds: float = 150.0) -> Observation:
        told = "tracking.complete"  # the last event
        return self.until("the end", lambda seen: any(event.type == told for event in seen.events), seconds)

    def events(self, type: str) -> list[Any]:
        seen = self.observe()
        assert seen is not None
        return [event for event in seen.events if event.type == type]


def at_work(seen: Observation) -> list[Any]:
    """The workers of the present group, by rank."""
    return [worker for worker in seen.workers if worker.state == "running"]
