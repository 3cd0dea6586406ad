"""A cluster in memory, under the same contract test as the real one: for tests, and to try the control plane without Ray.

Jobs train nothing. Unless told otherwise each ``observe`` lets every attempt do one step; with ``steps=None`` they go on for ever
and a test ends them by ``finish``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from service.cluster import Capacity, ClusterUnavailableError, Launch, Node, Resources
from workers.reports import (
    Event,
    GroupShape,
    Level,
    Observation,
    Outcome,
    Progress,
    ReasonCode,
    Recovery,
    StopMode,
    WorkerStatus,
)

Phase = Literal["starting", "running", "recovering", "stopping", "finished"]


@dataclass
class FakeController:
    launch: Launch
    phase: Phase = "starting"
    step: int = 0
    outcome: Outcome | None = None
    events: list[Event] = field(default_factory=list)
    stops: list[StopMode] = field(default_factory=list)
    recoveries: list[Recovery] = field(default_factory=list)
    silent: bool = False  # it is there, and does not answer

    def event(self, type: str, message: str, data: Mapping[str, Any] | None = None, level: Level = "info") -> None:
        self.events.append(Event(len(self.events) + 1, time.time(), level, type, message, data or {}))


class FakeCluster:
    def __init__(self, *nodes: Resources, steps: int | None = 3) -> None:
        totals = nodes or (Resources(cpus=2, gpus=0, memory=2**33),)
        self.nodes = [Node(f"node-{index}", f"10.0.0.{index + 1}", total) for index, total in enumerate(totals)]
        self.steps = steps
        self.controllers: dict[str, FakeController] = {}
        self.launched: list[str] = []  # every launch that started something
        self.problem: str | None = None  # set: the cluster cannot be reached

    def capacity(self) -> Capacity:
        self._reach()
        return Capacity(tuple(self.nodes))

    def launch(self, launch: Launch) -> None:
        self._reach()
        if launch.name not in self.controllers:
            self.controllers[launch.name] = FakeController(launch)
            self.launched.append(launch.name)

    def observe(self, seen: Mapping[str, int]) -> Mapping[str, Observation | None]:
        self._reach()
        answers: dict[str, Observation | None] = {}
        for name, sequence in seen.items():
            controller = self.controllers.get(name)
            if controller is None:
                answers[name] = None
            elif not controller.silent:
                self._advance(controller)
                answers[name] = self._observation(controller, sequence)
        return answers

    def stop(self, name: str, mode: StopMode) -> None:
        self._reach()
        controller = self.controllers.get(name)
        if controller is None or controller.phase == "finished":
            return
        controller.stops.append(mode)
        if mode is StopMode.KILL:
            self.finish(name, Outcome(ReasonCode.KILLED, "killed"))
        else:
            controller.phase = "stopping"

    def reshape(self, name: str, shape: GroupShape) -> None:
        self._reach()
        controller = self.controllers.get(name)
        if controller is not None and controller.launch.shape != shape:
            controller.launch = replace(controller.launch, shape=shape)
            controller.event("workers.reshaped", f"{shape.workers} workers", {"workers": shape.workers})

    def remove(self, name: str) -> None:
        self._reach()
        self.controllers.pop(name, None)

    def names(self) -> frozenset[str]:
        self._reach()
        return frozenset(self.controllers)

    def close(self) -> None:
        """Leaves everything as it is."""

    def finish(self, name: str, outcome: Outcome) -> None:
        controller = self.controllers[name]
        controller.phase, controller.outcome = "finished", outcome
        controller.event("tracking.complete", "MLflow has everything")

    def recover(self, name: str) -> None:
        """Workers are lost; the next ``observe`` after this one's sees them replaced."""
        controller = self.controllers[name]
        controller.phase = "recovering"
        controller.recoveries.append(Recovery(time.time(), (1,), "killed", controller.step, "memory", 1.0))
        controller.event("worker.lost", "worker 1 was lost", {"rank": 1}, level="warning")

    def _reach(self) -> None:
        if self.problem is not None:
            raise ClusterUnavailableError(self.problem)

    def _advance(self, controller: FakeController) -> None:
        match controller.phase:
            case "starting":
                controller.phase = "running"
                controller.event("training.started", "training started", {"steps": self.steps})
            case "running" if self.steps is None or controller.step < self.steps:
                controller.step += 1
            case "running":
                self.finish(controller.launch.name, Outcome(ReasonCode.COMPLETED, "all steps done"))
            case "stopping":
                outcome = Outcome(ReasonCode.CANCELLED, f"stopped after step {controller.step}, with a checkpoint")
                self.finish(controller.launch.name, outcome)

    def _observation(self, controller: FakeController, sequence: int) -> Observation:
        state: Literal["running", "done"] = "done" if controller.phase == "finished" else "running"
        steps = self.steps or 1_000_000
        observation = Observation(
            phase=controller.phase,
            outcome=controller.outcome,
            progress=Progress(controller.step, steps, controller.step / steps, 100.0, None),
            latest={"train/loss": 1 / (1 + controller.step)} if controller.step else {},
            health={"verdict": "healthy", "findings": []},
            workers=[
                WorkerStatus(rank, 1000 + rank, self._address(rank), self._node(rank), "cpu", state, 0.0)
                for rank in range(controller.launch.shape.workers)
            ],
            events=[event for event in controller.events if event.sequence > sequence],
            links={},
            recoveries=tuple(controller.recoveries),
        )
        if controller.phase == "recovering":
            controller.phase = "running"
        return observation

    def _node(self, rank: int) -> str:
        return self.nodes[rank % len(self.nodes)].id if self.nodes else "gone"

    def _address(self, rank: int) -> str:
        return self.nodes[rank % len(self.nodes)].address if self.nodes else "gone"
