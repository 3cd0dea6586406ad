"""A cluster in memory, under the same contract test as the real one: for tests, and to try the control plane without Ray.

Jobs train nothing. Unless told otherwise each ``observe`` lets every attempt do one step; with ``steps=None`` they go on for ever
and a test ends them by ``finish``.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
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
    shape: GroupShape  # that is wanted
    phase: Phase = "starting"
    step: int = 0
    outcome: Outcome | None = None
    events: list[Event] = field(default_factory=list)
    stops: list[StopMode] = field(default_factory=list)
    shapes: list[GroupShape] = field(default_factory=list)  # every one that was asked for
    recoveries: list[Recovery] = field(default_factory=list)
    workers: list[WorkerStatus] = field(default_factory=list)  # by rank
    past: list[WorkerStatus] = field(default_factory=list)
    silent: bool = False  # it is there, and does not answer
    links: Mapping[str, str] = field(default_factory=dict)

    def event(self, type: str, message: str, data: Mapping[str, Any] | None = None, level: Level = "info") -> None:
        self.events.append(Event(len(self.events) + 1, time.time(), level, type, message, data or {}))

    def end_workers(self, workers: Sequence[WorkerStatus], state: Literal["done", "lost", "left"], why: str) -> None:
        now = time.time()
        self.past += [replace(worker, state=state, ended_at=now, why=why) for worker in workers]
        self.workers = [worker for worker in self.workers if worker not in workers]


class FakeCluster:
    def __init__(self, *nodes: Resources, steps: int | None = 3) -> None:
        totals = nodes or (Resources(cpus=2, gpus=0, memory=2**33),)
        self.nodes = [Node(f"node-{index}", f"10.0.0.{index + 1}", total) for index, total in enumerate(totals)]
        self.steps = steps
        self.cluster_id = "fake-1"
        self.controllers: dict[str, FakeController] = {}
        self.launched: list[str] = []  # every launch that started something
        self.problem: str | None = None  # set: the cluster cannot be reached
        self._pids = itertools.count(1000)

    def capacity(self) -> Capacity:
        self._reach()
        return Capacity(tuple(self.nodes), self.cluster_id)

    def launch(self, launch: Launch) -> None:
        self._reach()
        if launch.name not in self.controllers:
            self.controllers[launch.name] = FakeController(launch, launch.shape)
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
            self.finish(name, Outcome(ReasonCode.KILLED, "killed on request; nothing was written"))
        else:
            controller.phase = "stopping"

    def reshape(self, name: str, shape: GroupShape) -> None:
        self._reach()
        controller = self.controllers.get(name)
        if controller is not None:
            controller.shapes.append(shape)
            controller.shape = shape

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
        controller.end_workers(controller.workers, "done", outcome.message)
        controller.event("tracking.complete", "MLflow has everything")

    def recover(self, name: str) -> None:
        """A worker is lost; the next ``observe`` after this one's sees it replaced."""
        controller = self.controllers[name]
        controller.phase = "recovering"
        lost = controller.workers[-1]
        controller.end_workers([lost], "lost", "killed")
        self._form(controller)
        controller.recoveries.append(Recovery(time.time(), (lost.rank,), "killed", controller.step, "memory", 1.0))
        controller.event("worker.lost", f"worker {lost.rank} was lost", {"rank": lost.rank}, level="warning")

    def drain(self, node_id: str) -> None:
        """The machine goes away soon."""
        self.nodes = [replace(node, draining=node.draining or node.id == node_id) for node in self.nodes]

    def replace(self) -> None:
        """Another cluster takes its place: nothing of what ran is there."""
        self.cluster_id = f"fake-{int(self.cluster_id.removeprefix('fake-')) + 1}"
        self.controllers.clear()

    def _reach(self) -> None:
        if self.problem is not None:
            raise ClusterUnavailableError(self.problem)

    def _advance(self, controller: FakeController) -> None:
        match controller.phase:
            case "starting":
                self._form(controller)
                if len(controller.workers) < controller.shape.workers:  # all or none
                    controller.workers = []
                    return
                controller.phase = "running"
                controller.event("training.started", "training started", {"steps": self.steps})
            case "running" if self.steps is None or controller.step < self.steps:
                controller.step += 1
                self._reform(controller)
            case "running":
                self.finish(controller.launch.name, Outcome(ReasonCode.COMPLETED, "all steps done"))
            case "stopping":
                paused = controller.stops[-1] is StopMode.PAUSE
                code = ReasonCode.PAUSED if paused else ReasonCode.CANCELLED
                message = f"{code} after step {controller.step}, with a checkpoint"
                self.finish(controller.launch.name, Outcome(code, message))

    def _reform(self, controller: FakeController) -> None:
        """Workers leave nodes that they should avoid, and ranks that are too many; others come."""
        shape, before = controller.shape, len(controller.workers)
        gone = [
            worker
            for worker in controller.workers
            if worker.rank >= shape.workers or (worker.node_id in shape.avoid and self._place(controller) is not None)
        ]
        controller.end_workers(gone, "left", "no longer needed")
        self._form(controller)
        if gone or len(controller.workers) != before:
            message = f"{before} -> {len(controller.workers)} workers"
            controller.event("workers.reshaped", message, {"workers": len(controller.workers)})

    def _form(self, controller: FakeController) -> None:
        """A worker for each rank for which there is room."""
        there = {worker.rank for worker in controller.workers}
        for rank in range(controller.shape.workers):
            node = self._place(controller)
            if rank not in there and node is not None:
                pid = next(self._pids)
                worker = WorkerStatus(rank, pid, node.address, node.id, "cpu", "running", time.time())
                controller.workers.append(worker)
        controller.workers.sort(key=lambda worker: worker.rank)

    def _place(self, controller: FakeController) -> Node | None:
        """A node with room for one worker more."""
        for node in self.nodes:
            used = sum(
                other.launch.spec.workers.cpus
                for other in self.controllers.values()
                for worker in other.workers
                if worker.node_id == node.id
            )
            cpus = controller.launch.spec.workers.cpus
            if node.id not in controller.shape.avoid and not node.draining and used + cpus <= node.total.cpus + 1e-6:
                return node
        return None

    def _observation(self, controller: FakeController, sequence: int) -> Observation:
        steps = self.steps or 1_000_000
        observation = Observation(
            phase=controller.phase,
            outcome=controller.outcome,
            progress=Progress(controller.step, steps, controller.step / steps, 100.0, None),
            latest={"train/loss": 1 / (1 + controller.step)} if controller.step else {},
            health={"verdict": "healthy", "findings": []},
            workers=(*controller.past, *controller.workers),
            events=[event for event in controller.events if event.sequence > sequence],
            links=controller.links,
            recoveries=tuple(controller.recoveries),
        )
        if controller.phase == "recovering":
            controller.phase = "running"
        return observation
