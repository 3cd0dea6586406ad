"""Which samples formed which step on which rank, long after: found out from what a job's folder tells. Without torch.

The samples of a step are a function of (seed, step), see ``sample_order``. All else that it takes is how many workers made the step, of how many
microbatches; a group of workers tells both when it begins. A step may have been made more than once (by a group that was lost, and again by one
that went on from a checkpoint): the one that counts is the one whose numbers are recorded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from workers.jobfolder import JobFolder
from workers.metric_series import Series
from workers.problems import SpecError
from workers.repair.acts import Act
from workers.repair.quarantine import holding, left_out
from workers.repair.told import CHANGES, DONE
from workers.sample_order import Indices, Plan, microbatches, plan_of
from workers.spec import JobSpec, parse_spec
from workers.tasks import RUNNERS

STARTED, CONTINUED = "training.started", "training.continued"
LOSS, NORM, RATE = "train/loss", "gradient/norm", "train/learning_rate"
SERIES = (LOSS, NORM, RATE)
NEVER = 2**62  # a step that no run comes to
MOST_SAMPLES = 200_000_000  # of a data set, whose order takes eight bytes a sample to be found out again


class NoSuchStepError(Exception):
    """The step was not made."""


class UnknownStepError(Exception):
    """It was made, and what it was made of cannot be told. ``str()`` says why."""


@dataclass(frozen=True)
class Change:
    """An act of the record of repairs, as it was told. ``done``: it was done then, else what became of it."""

    step: int  # optimizer steps done when it took hold
    type: str
    repair: Mapping[str, Any]

    @property
    def number(self) -> int:
        return int(self.repair["act"]["number"])

    @property
    def of_samples(self) -> bool:
        """Whether it says which samples are trained on."""
        return any(self.repair["act"].get(name) for name in ("leaves_out", "takes_in"))

    @property
    def act(self) -> Act:
        """As ranks agreed on it. Raises TypeError for one of another version."""
        act = Act.of(self.repair["act"])
        if self.type == DONE:
            return act
        verdict: Any = self.repair["state"]
        return Act(
            act.number, self.step, act.code, act.consent, act.words, verdict, instead_of=act.number,
            patches=act.patches if verdict == "undone" else None, rewind=self.repair.get("returned"),
            score=self.repair.get("score"),
        )  # fmt: skip


@dataclass(frozen=True)
class Group:
    """The workers that went on together after ``begins`` optimizer steps."""

    begins: int
    world_size: int
    accumulate: int
    attempt: int
    at: float  # seconds since the epoch
    from_memory: bool  # it took over what others held; else it began from a checkpoint, or from the start
    changes: tuple[Change, ...]  # oldest first
    machine: Mapping[str, str]  # of rank 0, where it is known


@dataclass(frozen=True)
class Stretch:
    """Steps that one group made of those that led to a state: ``first`` to ``last``, counted from 1."""

    group: Group
    first: int
    last: int
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Recorded:
    """What is recorded of a step. None: it is not."""

    loss: float | None
    norm: float | None
    learning_rate: float | None
    at: float


@dataclass(frozen=True)
class RankSamples:
    rank: int
    indices: Indices  # in the order in which the rank takes them
    microbatches: tuple[int, ...]  # how many of them each has


@dataclass(frozen=True)
class StepMade:
    step: int  # from 1
    epoch: int  # from 0
    recorded: Recorded
    group: Group
    plan: Plan

    @property
    def samples(self) -> int:
        return len(self.plan.step_indices(self.step - 1))

    def of_rank(self, rank: int) -> RankSamples:
        return samples_of(self.plan, self.step, rank, self.group.world_size, self.group.accumulate)


def samples_of(plan: Plan, step: int, rank: int, world_size: int, accumulate: int) -> RankSamples:
    """``step`` counts from 1. Without the stand-ins of empty shares, which count nothing."""
    import numpy as np

    parts = microbatches(plan.step_indices(step - 1), rank, world_size, accumulate)
    counted = [part.indices for part in parts if part.weight]
    return RankSamples(rank, np.concatenate([np.zeros(0, np.int64), *counted]), tuple(map(len, counted)))


def ranks_of(spec: JobSpec, made: StepMade, most: int) -> list[dict[str, Any]]:
    """Of each rank which samples, at most ``most`` of them, with their names where the source has any."""
    from workers.sources.naming import names_of

    name = names_of(spec, made.plan.samples)
    found = []
    for rank in range(made.group.world_size):
        samples = made.of_rank(rank)
        shown = samples.indices[:most].tolist()
        found.append(
            {
                "rank": rank,
                "samples": len(samples.indices),
                "microbatches": list(samples.microbatches),
                "indices": shown,
                "names": None if name is None else [name(index) for index in shown],
                "left_out": len(samples.indices) - len(shown),
            }
        )
    return found


class StepLedger:
    """Of one job's folder, as far as it has come."""

    def __init__(self, folder: JobFolder, series: Mapping[str, Series] | None = None) -> None:
        """``series``: those of ``SERIES``, where somebody has read them. Raises UnknownStepError where the folder holds no job that our own loop
        trains."""
        self._folder = folder
        self.spec = _spec_of(folder)
        self._series = folder.series(SERIES) if series is None else series
        self.groups, self.samples = _groups(
            folder, self.spec
        )  # how many are in the training set; None: nobody has told

    def step(self, number: int) -> StepMade:
        """Raises NoSuchStepError, UnknownStepError."""
        recorded = self.recorded(number)
        group = self.groups[self._owner(number, recorded.at)]
        plan = replace(self.plan(), left_out=self.left_out(number))
        return StepMade(number, plan.epoch(number - 1), recorded, group, plan)

    def left_out(self, number: int | None) -> tuple[int, ...]:
        """Samples that step ``number`` left out, ascending; None: that the next one will. Raises NoSuchStepError, UnknownStepError."""
        changed = any(change.of_samples for group in self.groups for change in group.changes)
        return left_out(self.spec.training.leave_out, self.acts(number) if changed else ())

    def acts(self, number: int | None) -> list[Act]:
        """Those that held in step ``number``, oldest first; None: that hold now. Raises NoSuchStepError, UnknownStepError."""
        if number is None and not self.groups:
            return []
        stretches = self.lineage(number) if number is not None else self._lineage(len(self.groups) - 1, NEVER)
        return holding([change.act for stretch in stretches for change in stretch.changes])

    def recorded(self, number: int) -> Recorded:
        """Raises NoSuchStepError."""
        found = {key: _at(self._series.get(key), number) for key in SERIES}
        loss = found[LOSS]
        if loss is None:
            raise NoSuchStepError(f"there is no step {number}: {self._made()}")
        values = {key: None if pair is None else pair[0] for key, pair in found.items()}
        return Recorded(values[LOSS], values[NORM], values[RATE], loss[1])

    def plan(self) -> Plan:
        """Raises UnknownStepError."""
        if self.samples is None:
            raise UnknownStepError("how many samples there are was not recorded")
        if self.samples > MOST_SAMPLES:
            raise UnknownStepError(f"{self.samples:,} samples are too many to find out their order here")
        return plan_of(self.spec, self.samples)

    def lineage(self, number: int) -> list[Stretch]:
        """How the state after step ``number`` came about, from the start on: each stretch made by the group that the next one went on from.

        Raises NoSuchStepError, UnknownStepError.
        """
        return self._lineage(self._owner(number, self.recorded(number).at), number)

    def _lineage(self, index: int, last: int) -> list[Stretch]:
        """Of a group's step ``last``."""
        found: list[Stretch] = []
        while True:
            group = self.groups[index]
            found.insert(0, Stretch(group, group.begins + 1, last, self._changes(group, last, found)))
            if group.begins == 0:
                return found
            last = group.begins
            earlier = [each for each in range(index) if self.groups[each].begins < last]
            if not earlier:
                raise UnknownStepError(f"who made the steps up to {last} was not recorded")
            index = earlier[-1]

    @staticmethod
    def _changes(group: Group, last: int, later: Sequence[Stretch]) -> tuple[Change, ...]:
        """What was done to the run in this stretch. After its last step only what the next group took over, if there is one."""
        kept = bool(later) and later[0].group.from_memory
        return tuple(each for each in group.changes if each.step < last or (kept and each.step == last))

    def _owner(self, number: int, at: float) -> int:
        """The group that made what is recorded of a step."""
        able = [index for index, group in enumerate(self.groups) if group.begins < number]
        if not able:
            raise UnknownStepError(f"who made step {number} was not recorded")
        # The newest that had begun by then; clocks of two machines may differ a little.
        return max((index for index in able if self.groups[index].at <= at), default=able[0])

    def _made(self) -> str:
        steps = self._series[LOSS].steps.tolist() if LOSS in self._series else []
        return f"the job has made steps {steps[0]} to {steps[-1]}" if steps else "the job has made none yet"


def _spec_of(folder: JobFolder) -> JobSpec:
    document = folder.read_document("job.json")
    if document is None:
        raise UnknownStepError(f"{folder.path} holds no job: job.json is missing")
    kind = (document.get("task") or {}).get("kind")
    if kind in RUNNERS:
        raise UnknownStepError(f"the job is a {kind}, whose own loop decides what a step is and which samples it takes")
    try:
        return parse_spec(document)
    except SpecError as error:
        raise UnknownStepError(f"job.json cannot be read by this version: {error}") from error


def _at(series: Series | None, step: int) -> tuple[float, float] | None:
    """(value, time) of a step. Not a number where that was recorded."""
    import numpy as np

    if series is None:
        return None
    place = int(np.searchsorted(series.steps, step))
    if place == len(series.steps) or series.steps[place] != step:
        return None
    return float(series.values[place]), float(series.timestamps[place])


def _groups(folder: JobFolder, spec: JobSpec) -> tuple[list[Group], int | None]:
    """(groups in the order in which they formed, how many samples the training data has)."""
    found: list[Group] = []
    changes: list[list[Change]] = []
    samples: int | None = None
    for attempt, event in _events(folder):
        type, data = event["type"], event["data"] or {}
        if type in (STARTED, CONTINUED) and "world_size" in data:
            known = found[-1].machine if found and type == CONTINUED else {}
            begins = data.get("step") if type == CONTINUED else data.get("resumed_from")
            group = Group(
                begins=begins or 0,
                world_size=data["world_size"],
                accumulate=data.get("accumulate", spec.training.accumulate),  # not told by earlier versions
                attempt=attempt,
                at=event["timestamp"],
                from_memory=type == CONTINUED,
                changes=(),
                machine=data.get("machine", known),
            )
            found.append(group)
            changes.append([])
            samples = data.get("train_samples", samples)
        if type in CHANGES and changes and "repair" in data:
            changes[-1].append(Change(data["step"], type, data["repair"]))
    whole = [Group(**{**vars(group), "changes": _acts(told)}) for group, told in zip(found, changes, strict=True)]
    return whole, samples


def _acts(told: Iterable[Change]) -> tuple[Change, ...]:
    """What ranks did, without what is part of it: an act that takes another one's place ends that one, of which an event of its own tells."""
    told = list(told)
    replaced = {(each.step, each.repair["act"].get("instead_of")) for each in told if each.type == DONE}
    return tuple(each for each in told if each.type == DONE or (each.step, each.number) not in replaced)


def _events(folder: JobFolder) -> list[tuple[int, dict[str, Any]]]:
    paths = sorted((folder.path / "events").glob("attempt-*.jsonl"))
    attempts = [int(path.stem.removeprefix("attempt-")) for path in paths]
    return [(attempt, event) for attempt in attempts for event in folder.events(attempt)]
