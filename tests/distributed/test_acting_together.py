"""What one rank finds critical, all ranks act on after the same step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.processes import Processes
from tests.distributed.toys import Result, Toy, job, train_toy
from workers import checkpoints, recording
from workers.checkpoint_folders import complete
from workers.recording import NONFINITE_LIMIT
from workers.reports import ReasonCode
from workers.spec import JobSpec
from workers.storage import folder_at

pytestmark = pytest.mark.distributed

SICK_FROM = 8
TOY = Toy(broken_loss_from=SICK_FROM)


LOUD_FROM = 60  # an even one, after which a checkpoint is made
LOUD = Toy(loud_from=LOUD_FROM)


def spec(on_critical: str, workers: int = 2, strategy: str = "ddp", keep_last: int = 4) -> JobSpec:
    return job(
        training={"epochs": 40, "batch_size": 12},
        workers={"count": workers, "strategy": strategy},
        checkpoint={"every_steps": 2, "keep_last": keep_last},
        evaluation={"every_steps": 500},
        health={"on_critical": on_critical},
    )


def looking(rank: int, world_size: int, toy: Toy, job_spec: JobSpec, folder: Path, **context: Any) -> Result:
    """Rank 0 judges after each step, the others never by themselves."""
    always = {"FLUSH_SECONDS": 0.0, "LOOKS": 1e9, "LOOK_SHARE": 1e9}
    never = {"LOOKS": 1e-9, "LOOK_SECONDS": 1e9}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (always if rank == 0 else never).items():
            patch.setattr(recording, name, value)
        return train_toy(rank, world_size, toy, job_spec, folder, **context)


looking.forms_its_own_group = True  # type: ignore[attr-defined]  # told to Processes


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize(
    ("wish", "code"), [("pause", ReasonCode.CRITICAL_PAUSE), ("stop", ReasonCode.CRITICAL_FINDING)]
)
def test_all_stop_after_the_step_in_which_the_first_was_sure(
    processes: Processes, tmp_path: Path, strategy: str, wish: str, code: ReasonCode
) -> None:
    ends = processes.run(2, tmp_path, looking, TOY, spec(wish, strategy=strategy), tmp_path)
    assert [end.outcome.code for end in ends] == [code, code]
    (step,) = {end.outcome.detail["steps"] for end in ends}
    assert SICK_FROM < step <= SICK_FROM + 2
    assert "nonfinite_gradient" in ends[0].outcome.message
    (first, *_) = ends[0].outcome.detail["critical"]
    assert first["first_bad_step"] == SICK_FROM
    assert len({end.outcome.detail["parameters_sha256"] for end in ends}) == 1


def test_a_job_that_says_nothing_goes_on(processes: Processes, tmp_path: Path) -> None:
    ends = processes.run(2, tmp_path, looking, TOY, spec("continue"), tmp_path)
    assert {end.outcome.code for end in ends} == {ReasonCode.NONFINITE}
    assert ends[0].outcome.detail["steps"] >= SICK_FROM + NONFINITE_LIMIT - 1


def test_steps_that_are_quicker_than_the_first_look_are_paused_too(processes: Processes, tmp_path: Path) -> None:
    """The end by itself of a loss that stays NaN comes before the look every five seconds."""
    ends = processes.run(2, tmp_path, train_toy, TOY, spec("pause"), tmp_path)
    assert {end.outcome.code for end in ends} == {ReasonCode.CRITICAL_PAUSE}
    assert "nonfinite_gradient" in ends[0].outcome.message


def test_resumed_it_goes_on_in_spite_of_the_finding(processes: Processes, tmp_path: Path) -> None:
    paused, _ = processes.run(2, tmp_path, looking, TOY, spec("pause"), tmp_path)
    newest, _ = checkpoints.newest(tmp_path / "checkpoints")
    assert newest is not None
    assert newest.step == SICK_FROM - 2, "no checkpoint of weights that are no numbers"
    known = frozenset((each["code"], each["rank"]) for each in paused.outcome.detail["critical"])
    resumed = looking(0, 1, TOY, spec("pause", workers=1), tmp_path, accepted=known)
    assert resumed.memory.found("training.resumed") == [{"step": newest.step}]
    assert resumed.outcome.code is ReasonCode.NONFINITE
    assert resumed.outcome.detail["steps"] > paused.outcome.detail["steps"] + 5


# --- healthy checkpoints ----------------------------------------------------------------------------------------------


def verdicts(folder: Path) -> dict[int, str]:
    return {found.step: found.verdict for found in complete(folder_at(folder / "checkpoints"))}


def test_checkpoints_from_before_it_was_noticed_are_not_healthy(processes: Processes, tmp_path: Path) -> None:
    """Would catch a resume that begins with the sickness, because that was not known yet when the checkpoint was saved."""
    paused, _ = processes.run(2, tmp_path, looking, LOUD, spec("pause"), tmp_path)
    assert paused.outcome.code is ReasonCode.CRITICAL_PAUSE
    saved = [(event["step"], event["verdict"]) for event in paused.memory.found("checkpoint.saved")]
    assert (LOUD_FROM, "healthy") in saved, "nobody knew it then"
    kept = verdicts(tmp_path)
    assert kept[LOUD_FROM - 2] == "healthy"
    assert {verdict for step, verdict in kept.items() if step >= LOUD_FROM} == {"critical"}
    (told,) = paused.memory.found("checkpoint.rejudged")
    assert told["steps"][0] == LOUD_FROM
    known = frozenset((each["code"], each["rank"]) for each in paused.outcome.detail["critical"])
    resumed, _ = processes.run(2, tmp_path, going_on, Toy(), spec("pause"), tmp_path, known, 1000)
    assert resumed.memory.found("training.resumed") == [{"step": LOUD_FROM - 2, "verdict": "healthy"}]
    assert resumed.outcome.code is ReasonCode.COMPLETED
    assert set(verdicts(tmp_path).values()) == {"healthy"}, "what the other future left is gone"


def going_on(
    rank: int,
    world_size: int,
    toy: Toy,
    job_spec: JobSpec,
    folder: Path,
    known: frozenset[Any],
    healthy_before: int,
    **context: Any,
) -> Result:
    return train_toy(rank, world_size, toy, job_spec, folder, accepted=known, healthy_before=healthy_before, **context)


going_on.forms_its_own_group = True  # type: ignore[attr-defined]


def test_what_is_done_after_going_back_counts_healthy_or_not(tmp_path: Path) -> None:
    """Would catch a job that goes back to the same healthy checkpoint each time a worker is lost, and never gets on."""
    paused = looking(0, 1, LOUD, spec("pause", 1), tmp_path)
    known = frozenset((each["code"], each["rank"]) for each in paused.outcome.detail["critical"])
    again = looking(
        0, 1, Toy(loud_from=2), spec("continue", 1), tmp_path, accepted=known, healthy_before=2, stop_after=20
    )
    assert again.outcome.detail["steps"] == LOUD_FROM - 2 + 20
    later = looking(0, 1, Toy(), spec("continue", 1), tmp_path, healthy_before=2, stop_after=1)
    assert later.memory.found("training.resumed")[0]["step"] == LOUD_FROM - 2 + 20


def test_without_any_healthy_one_it_goes_on_from_the_newest_and_says_so(tmp_path: Path) -> None:
    paused = looking(0, 1, LOUD, spec("pause", 1, keep_last=1), tmp_path)
    assert set(verdicts(tmp_path).values()) == {"critical"}
    resumed = looking(0, 1, Toy(), spec("continue", 1), tmp_path, healthy_before=1000, stop_after=1)
    assert resumed.memory.found("checkpoint.none_healthy") == [{"step": paused.outcome.detail["steps"]}]


def test_the_last_healthy_one_is_kept_while_a_sick_run_goes_on(processes: Processes, tmp_path: Path) -> None:
    end, _ = processes.run(2, tmp_path, looking, LOUD, spec("continue"), tmp_path)
    assert end.outcome.code is ReasonCode.COMPLETED
    kept = verdicts(tmp_path)
    assert min(kept) == LOUD_FROM - 2
    assert kept.pop(LOUD_FROM - 2) == "healthy"
    assert set(kept.values()) == {"critical"}
