"""The verdict of a run while it goes on: from facts, probes and series alike, on every rank, and the same as from what was kept of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.distributed.processes import Processes
from tests.distributed.toys import CLASSES, FEATURES, Toy, ToyTask, context_in, job
from workers.jobfolder import JobFolder
from workers.ledger import Ledger
from workers.membership import Alone, MeetingPoint
from workers.outbox import Outbox
from workers.spec import JobSpec
from workers.tasks.base import Batch
from workers.train import Run
from workers.watch.diagnosis import diagnose
from workers.watch.facts_json import to_json
from workers.watch.stored import from_folder
from workers.worker_link import Activity, Poll

pytestmark = pytest.mark.distributed

DEPTH = 12


@dataclass(frozen=True)
class SickToy(Toy):
    sickness: str = "none"


class SickTask(ToyTask):
    toy: SickToy

    def model(self) -> nn.Module:
        if self.toy.sickness == "deep sigmoid":
            hidden = [layer for _ in range(DEPTH) for layer in (nn.Linear(16, 16), nn.Sigmoid())]
            return nn.Sequential(nn.Linear(FEATURES, 16), nn.Sigmoid(), *hidden, nn.Linear(16, CLASSES))
        first = nn.Linear(FEATURES, 16)
        if self.toy.sickness == "dead units":
            nn.init.constant_(first.bias, -30.0)
        return nn.Sequential(first, nn.ReLU(), nn.Linear(16, CLASSES))

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        outputs = model(batch["x"])
        if self.toy.sickness == "two softmaxes":
            outputs = outputs.softmax(1)
        return F.cross_entropy(outputs, batch["y"], reduction="sum"), torch.tensor(float(len(outputs)))


@dataclass
class Told:
    """``judged``: what this rank would say; ``kept``: what is left of the run on disk, on the rank that tells."""

    facts: dict[str, Any]
    judged: list[tuple[str, int, str | None]]
    kept: list[tuple[str, int, str | None]]
    events: list[tuple[str, int, str]]  # type, step at which it was told, code
    verdicts: int  # that were told; the last one always is


def findings(found: Any) -> list[tuple[str, int, str | None]]:
    return [(each.code, each.first_bad_step, each.layer) for each in found]


def train_sick(
    rank: int, world_size: int, toy: SickToy, spec: JobSpec, folder: Path, *, meeting: MeetingPoint = None
) -> Told:
    outbox = Outbox()
    context = context_in(folder, outbox, Alone(rank, world_size, store=meeting))
    training = Run(SickTask(toy), spec, context)
    try:
        training.train()
    finally:
        training.close()
    assert training.recorder.facts is not None
    own = JobFolder(folder, f"rank-{rank}")
    own.create(spec.model_dump_json())
    ledger = Ledger(own, 1)
    ledger.take("w", rank, Poll("running", 1, None, None, Activity(0, 0, 0.0), None, outbox.after(0), None, version=1))
    return Told(
        to_json(training.recorder.facts),
        findings(training.recorder.judgement().findings),
        findings(diagnose(from_folder(own)).findings) if rank == 0 else [],
        [
            (event.type, event.data["step"], event.data["finding"]["code"])
            for event in ledger.events
            if event.type.startswith("finding.")
        ],
        [event.type for event in ledger.events].count("health.verdict"),
    )


train_sick.forms_its_own_group = True  # type: ignore[attr-defined]  # told to Processes


@pytest.mark.parametrize(
    ("workers", "strategy", "sickness", "code"),
    [
        (1, "ddp", "two softmaxes", "output_activation"),
        (1, "ddp", "deep sigmoid", "vanishing_gradient"),
        (1, "ddp", "dead units", "dying_relu"),
        (2, "ddp", "dead units", "dying_relu"),
        (2, "fsdp", "deep sigmoid", "vanishing_gradient"),
        (2, "ddp", "none", None),
    ],
)
def test_the_cause_is_named_while_it_trains(
    processes: Processes, tmp_path: Path, workers: int, strategy: str, sickness: str, code: str | None
) -> None:
    steps = 300 if strategy == "fsdp" else 600  # shards of tiny layers take their time
    spec = job(
        training={"epochs": None, "steps": steps, "batch_size": 24},
        workers={"count": workers, "strategy": strategy},
        optimizer={"name": "sgd", "learning_rate": 0.1},
        gradients={"overhead_budget": 1.0},
    )
    toy = SickToy(samples=240, evaluation_samples=0, sickness=sickness)
    results = processes.run(workers, tmp_path, train_sick, toy, spec, tmp_path)
    first = results[0]
    assert [result.facts for result in results] == [first.facts] * workers
    assert [result.judged for result in results] == [first.judged] * workers, "any rank may have to go on telling"
    assert first.kept == first.judged
    assert all(not result.events for result in results[1:])
    if code is None:
        assert (first.judged, first.events) == ([], [])
    else:
        assert first.judged[0][0] == code
        assert first.events[0][::2] == ("finding.raised", code)
        assert first.events[0][1] < steps // 2, "found in the first half"


def test_a_run_that_goes_on_tells_nothing_twice(tmp_path: Path) -> None:
    spec = job(training={"epochs": 40, "batch_size": 24}, checkpoint={"every_steps": 300})
    toy = SickToy(samples=240, evaluation_samples=0, sickness="two softmaxes")
    half = spec.model_copy(update={"training": spec.training.model_copy(update={"epochs": 30})})
    first = train_sick(0, 1, toy, half, tmp_path)
    again = train_sick(0, 1, replace(toy), spec, tmp_path)
    assert [event[::2] for event in first.events] == [("finding.raised", "output_activation")]
    assert again.events == []
    assert again.judged == first.judged
    assert again.verdicts == 2, "an attempt that goes on says soon how the run is"
