"""A job that fails is mended while it trains: by all ranks alike, in steps that are told; one that is well is left as it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.processes import Processes
from tests.distributed.test_acting_together import looking
from tests.distributed.toys import Result, Toy, job, train_toy
from workers import run_repairs
from workers.parallel import plain
from workers.repair import repairs, timeline
from workers.repair.acts import Entry
from workers.repair.requests import ask
from workers.repair.told import entries
from workers.reports import ReasonCode
from workers.spec import JobSpec
from workers.weights import parameters_sha256

pytestmark = pytest.mark.distributed

STEPS = 240  # 20 in an epoch
TOY = Toy(samples=240, evaluation_samples=60)


def spec(rate: float, health: dict[str, Any], workers: int = 2, strategy: str = "ddp", **parts: Any) -> JobSpec:
    return job(
        training={"epochs": 12, "batch_size": 12},
        workers={"count": workers, "strategy": strategy},
        optimizer={"name": "sgd", "momentum": 0.9, "learning_rate": rate},
        evaluation={"every_steps": 20},
        health=health,
        **parts,
    )


def told(result: Result, type: str) -> list[Any]:
    return [data["repair"] for data in result.memory.found(type)]


def record(result: Result) -> list[Entry]:
    """Of what was done, as it was told."""
    return [Entry.of(each) for each in entries((kind, data) for _, kind, data in result.memory.events)]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_rate_far_too_high_is_brought_down_by_all_ranks_after_the_same_step(
    processes: Processes, tmp_path: Path, strategy: str
) -> None:
    sick = processes.run(2, tmp_path, looking, TOY, spec(100.0, {"mode": "advise"}, strategy=strategy), tmp_path / "a")
    ends = processes.run(2, tmp_path, looking, TOY, spec(100.0, {"mode": "repair"}, strategy=strategy), tmp_path / "b")
    losses = [end.outcome.detail["metrics"]["eval/loss"] for end in (sick[0], ends[0])]
    assert not losses[0] < 4 * losses[1], "it fails by itself"
    assert not told(sick[0], "repair.done")
    assert {end.outcome.code for end in ends} == {ReasonCode.COMPLETED}
    assert ends[0].outcome.detail["metrics"]["eval/accuracy"] > 0.8
    assert len({end.outcome.detail["parameters_sha256"] for end in ends}) == 1
    assert len({end.outcome.detail["gradients_sha256"] for end in ends}) == 1
    acts = told(ends[0], "repair.done")
    assert acts
    assert not told(ends[1], "repair.done"), "one rank tells"
    assert acts[0]["act"]["code"] in ("lr_too_high", "exploding_gradient", "nonfinite_gradient")
    assert acts[0]["act"]["rate"] < 1
    assert told(ends[0], "repair.kept")
    lost = timeline.lost(record(ends[0]))
    assert {end.outcome.detail["steps"] for end in ends} == {STEPS + min(lost, STEPS)}, "what was lost is made up for"


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_job_that_is_well_is_the_same_bit_by_bit(processes: Processes, tmp_path: Path, strategy: str) -> None:
    parts: dict[str, Any] = {"strategy": strategy}
    watched = processes.run(2, tmp_path, looking, TOY, spec(0.05, {"mode": "observe"}, **parts), tmp_path / "a")
    mended = processes.run(2, tmp_path, looking, TOY, spec(0.05, {"mode": "repair"}, **parts), tmp_path / "b")
    for name in ("parameters_sha256", "gradients_sha256", "samples_sha256", "steps"):
        assert len({end.outcome.detail[name] for end in watched[:1] + mended[:1]}) == 1, name
    assert not told(mended[0], "repair.done")
    assert watched[0].memory.series("train/loss") == mended[0].memory.series("train/loss")


def test_updates_that_are_no_number_are_left_out_and_honestly_given_up(tmp_path: Path) -> None:
    """From one step on every loss is NaN, whatever the weights: nothing mends that, and the weights stay finite."""
    end = looking(0, 1, Toy(samples=240, broken_loss_from=50), spec(0.05, {"mode": "repair"}, workers=1), tmp_path)
    assert end.outcome.code is ReasonCode.NONFINITE
    assert end.memory.found("repair.skipped")[0]["step"] == 50
    assert math.isfinite(end.memory.series("eval/loss")[-1])
    assert len(told(end, "repair.done")) > 1
    assert [each["state"] for each in told(end, "repair.taken_back")] == ["taken_back"] * len(
        told(end, "repair.taken_back")
    )
    assert end.memory.found("repair.none"), "it is said that nothing more is known"


def test_a_run_goes_on_from_a_checkpoint_with_what_was_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a rate, a length or a trial that a pause forgets."""
    monkeypatch.setattr(run_repairs, "SNAPSHOT_SHARE", 1e9)  # at the same steps in both, however long they take
    parts: dict[str, Any] = {"workers": 1, "checkpoint": {"every_steps": 20, "keep_last": 40}}
    whole = looking(0, 1, TOY, spec(100.0, {"mode": "repair"}, **parts), tmp_path / "whole")
    last = told(whole, "repair.kept")[-1]["ended"]
    first = looking(0, 1, TOY, spec(100.0, {"mode": "repair"}, **parts), tmp_path / "two", stop_after=last + 30)
    assert first.outcome.code is ReasonCode.CANCELLED
    second = looking(0, 1, TOY, spec(100.0, {"mode": "repair"}, **parts), tmp_path / "two")
    assert second.outcome.detail["steps"] == whole.outcome.detail["steps"]
    assert second.outcome.detail["parameters_sha256"] == whole.outcome.detail["parameters_sha256"]
    assert (
        second.memory.series("train/learning_rate")
        == whole.memory.series("train/learning_rate")[-len(second.memory.rows) :]
    )


def test_nothing_is_changed_without_consent(tmp_path: Path) -> None:
    end = train_toy(0, 1, TOY, spec(100.0, {"mode": "advise"}, workers=1), tmp_path)
    assert not [kind for _, kind, _ in end.memory.events if kind.startswith("repair")]
    assert end.outcome.detail["steps"] == STEPS


def nothing_is_better(
    rank: int, world_size: int, toy: Toy, job_spec: JobSpec, folder: Path, **context: Any
) -> tuple[Result, list[tuple[str, str]]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repairs, "is_doubtful", lambda first, score: True)
        patch.setattr(
            repairs, "better", lambda challenger, champion, by=None: by is None
        )  # but for the run that failed
        return asking_of(rank, world_size, toy, job_spec, folder, [], **context)


nothing_is_better.forms_its_own_group = True  # type: ignore[attr-defined]  # told to Processes


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_after_rates_that_do_no_better_the_run_goes_on_from_the_one_that_helped(
    processes: Processes, tmp_path: Path, strategy: str
) -> None:
    """Would catch a comparison that loses what was learnt in the trial, or leaves another rate than the one that is told."""
    job_spec = spec(100.0, {"mode": "repair"}, strategy=strategy)
    (result, seen), (_, seen_by_other) = processes.run(2, tmp_path, nothing_is_better, TOY, job_spec, tmp_path)
    assert seen == seen_by_other
    found = record(result)
    first = next(index for index, each in enumerate(found) if each.act.against is not None)
    champion, rivals = found[first - 1], found[first : first + 2]
    assert champion.state == "kept"
    assert [each.state for each in rivals] == ["taken_back", "taken_back"]
    assert [each.act.rate / champion.act.rate for each in rivals] == pytest.approx([3, 1 / 3])
    assert {each.act.rewind for each in rivals} == {champion.act.rewind}
    assert seen[first][1] == seen[first + 1][1], "both begin with the same weights"
    assert seen[first + 2][1] == seen[first][0], "and the run goes on from the end of the first one's trial"
    assert rivals[-1].returned == rivals[0].act.step
    rates = result.memory.series("train/learning_rate")
    assert rates[rivals[-1].ended] == pytest.approx(100.0 * champion.act.rate)


# --- what people ask for ----------------------------------------------------------------------------------------------


def asking_of(
    rank: int,
    world_size: int,
    toy: Toy,
    job_spec: JobSpec,
    folder: Path,
    wishes: Sequence[Mapping[str, Any]],
    **context: Any,
) -> tuple[Result, list[tuple[str, str]]]:
    """Each wish is asked for once the one before it, or the first repair, is done. With the digests of the weights before and after each change."""
    seen: list[tuple[str, str]] = []
    left = list(wishes)
    repair = run_repairs.RunRepairs.repair

    def watched(self: Any) -> None:
        before = parameters_sha256(plain(self.model))
        repair(self)
        seen.append((before, parameters_sha256(plain(self.model))))
        if left and rank == 0:
            ask(folder / "requests", **left.pop(0))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_repairs.RunRepairs, "repair", watched)
        patch.setattr(run_repairs, "ASK_SECONDS", 0.0)
        if job_spec.health.mode != "repair" and rank == 0:
            ask(folder / "requests", **left.pop(0))
        return looking(rank, world_size, toy, job_spec, folder, requests=folder / "requests", **context), seen


asking_of.forms_its_own_group = True  # type: ignore[attr-defined]  # told to Processes


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_undoing_brings_the_state_before_back_bit_by_bit(processes: Processes, tmp_path: Path, strategy: str) -> None:
    wish = {"kind": "undo", "by": "key test", "number": 1}
    job_spec = spec(100.0, {"mode": "repair"}, strategy=strategy)
    ends = processes.run(2, tmp_path, asking_of, TOY, job_spec, tmp_path, [wish])
    (result, seen), (_, seen_by_other) = ends
    (undone,) = told(result, "repair.undone")
    assert undone["state"] == "undone"
    assert undone["act"]["number"] == 1
    assert seen[0][0] != seen[0][1], "the repair changed the weights"
    assert seen[1][1] == seen[0][0], "and they are what they were before it"
    assert seen == seen_by_other
    assert result.memory.found("repair.none"), "what was undone is not repaired again"
    rates = result.memory.series("train/learning_rate")
    assert rates[undone["ended"] + 1] == 100.0
    assert len({end.outcome.detail["parameters_sha256"] for end, _ in ends}) == 1


def test_rate_and_clipping_of_a_running_job_are_what_people_ask_for(processes: Processes, tmp_path: Path) -> None:
    wish = {"kind": "steer", "by": "key test", "learning_rate": 0.02, "clip_norm": 0.5}
    job_spec = spec(0.05, {"mode": "observe"}, schedule={"name": "linear"})
    ends = processes.run(2, tmp_path, asking_of, TOY, job_spec, tmp_path, [wish])
    result = ends[0][0]
    (act,) = (each["act"] for each in told(result, "repair.done"))
    assert (act["code"], act["learning_rate"], act["clip"]) == ("asked", 0.02, 0.5)
    rates, norms = (result.memory.series(name) for name in ("train/learning_rate", "gradient/norm_clipped"))
    step = act["step"]
    assert rates[step - 1] == pytest.approx(0.05 * (1 - (step - 1) / (STEPS - 1)), rel=0.02)
    assert rates[step] == pytest.approx(rates[step - 1] * 0.4, rel=0.02), "the schedule goes on from there"
    assert max(norms[step:]) <= 0.5 * 1.001
    assert len({end.outcome.detail["parameters_sha256"] for end, _ in ends}) == 1


@pytest.mark.parametrize(
    ("number", "said"), [(7, "there is no repair 7"), (1, "repair 1 is undone already")], ids=["unknown", "twice"]
)
def test_what_cannot_be_undone_is_told(tmp_path: Path, number: int, said: str) -> None:
    wishes = [{"kind": "undo", "by": "key test", "number": 1}, {"kind": "undo", "by": "key test", "number": number}]
    result, _ = asking_of(0, 1, TOY, spec(100.0, {"mode": "repair"}, workers=1), tmp_path, wishes)
    assert any(said in message for kind, message in messages(result) if kind == "repair.refused")


def messages(result: Result) -> list[tuple[str, str]]:
    return [(kind, message) for (_, kind, _), message in zip(result.memory.events, result.memory.messages, strict=True)]
