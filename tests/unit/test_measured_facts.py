"""What is wrong beyond doubt once it is measured, whether or not the loss falls, and what looks like it and is right."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.written_records import LN_10, PROBED, STEPS, alarms, evaluated, learning, noise, record, table
from workers.watch.diagnosis import diagnose
from workers.watch.record import Evaluations, LossFacts, Record, TensorFacts
from workers.watch.stored import living

pytestmark = pytest.mark.unit


# --- silence ----------------------------------------------------------------------------------------------------------


def silent_since(step: int, *, before: float = 1.0, all_of: float = 1.0) -> Record:
    """The second activation falls silent and the first two layers get nothing from then on; the loss falls all the same."""
    losses = learning(last=0.5)
    known = record(losses, silent=table(0.1, np.where(step <= PROBED, all_of, 0.1), 0.1))
    norms = np.ones((STEPS, 4))
    norms[:, :2] = before
    norms[step - 1 :, :2] = 0
    return replace(known, series=replace(known.series, norms=norms))


def test_a_layer_that_falls_silent_cuts_off_what_is_before_it() -> None:
    (found,) = diagnose(silent_since(60)).findings
    assert (found.code, found.severity, found.layer) == ("dying_relu", "critical", "3")
    assert abs(found.first_bad_step - 60) <= 1
    assert "exactly nothing comes back to the 2 layers before it" in found.explanation


@pytest.mark.parametrize(
    ("known", "why"),
    [
        (silent_since(290), "not for long enough"),
        (silent_since(60, all_of=0.95), "some units are left"),
        (record(learning(last=0.5)), "gradients come"),
    ],
)
def test_what_is_not_cut_off(known: Record, why: str) -> None:
    assert alarms(known) == [], why


def test_layers_that_never_had_a_gradient_have_other_codes() -> None:
    assert "dying_relu" not in alarms(silent_since(60, before=0.0))


# --- rate -------------------------------------------------------------------------------------------------------------


def killed(update: float, *, leapt: float, silent: float) -> Record:
    losses = learning(last=0.5)
    losses[5:25] = leapt * LN_10 * noise(20)
    dead = np.where(PROBED > 20, silent, 0.05)
    updates = np.where(PROBED < 20, update, 1e-3)
    return record(losses, silent=table(0.1, dead, dead), update_ratios=table(*[updates] * 4))


def test_units_that_the_first_steps_killed_are_told_although_the_rest_learns() -> None:
    assert alarms(killed(0.2, leapt=1.3, silent=0.92)) == ["lr_too_high"]
    assert alarms(killed(0.01, leapt=1.3, silent=0.92)) == [], "steps as usual"
    assert alarms(killed(0.2, leapt=1.0, silent=0.92)) == [], "the loss did not leap"
    assert alarms(killed(0.2, leapt=1.3, silent=0.7)) == [], "a third of the units is enough"


def climbing(rates: np.ndarray, worse: float) -> Record:
    """Best at step 80, and ``worse`` since."""
    losses = (1.2 + (LN_10 - 1.2) * np.exp(-np.arange(STEPS) / 20)) * noise(STEPS, 0.01)
    losses[80:] += np.linspace(0, worse, STEPS - 80) ** 0.5
    known = record(losses)
    later = [2.0, 1.3, *np.linspace(1.3, 1.3 + worse**0.5, 8).tolist()]
    return evaluated(replace(known, series=replace(known.series, learning_rates=rates)), later)


def test_what_is_lost_while_the_rate_climbs_is_the_rates() -> None:
    upwards = np.linspace(1e-3, 0.1, STEPS)
    known = climbing(upwards, 0.15)
    (found,) = (each for each in diagnose(known).findings if each.severity != "note")
    assert found.code == "lr_too_high"
    assert 80 < found.first_bad_step < 200
    assert "has become worse since as the rate climbed" in found.explanation
    assert "lr_too_high" not in alarms(climbing(upwards, 0.0)), "nothing is lost"
    assert "lr_too_high" not in alarms(climbing(np.full(STEPS, 1e-3), 0.15)), "the rate is what it was"
    top = np.concatenate([np.linspace(1e-3, 0.1, 200), np.linspace(0.1, 1e-3, 100)])
    assert "lr_too_high" not in alarms(climbing(top, 0.15)), "the top of a cycle is passed"


# --- batch ------------------------------------------------------------------------------------------------------------

LEAPING = [2.2, 2.0, 1.8, 1.6, 1.5, 1.5, 1.4, 1.4, 1.3, 1.9, 1.2, 2.0, 1.3, 1.9, 1.4]
CALM = [2.2, 2.0, 1.8, 1.6, 1.5, 1.5, 1.4, 1.4, 1.35, 1.3, 1.28, 1.3, 1.26, 1.25, 1.24]


@pytest.mark.parametrize(("batch", "checks", "told"), [(1, LEAPING, ["batch_size"]), (1, CALM, []), (32, LEAPING, [])])
def test_a_sample_a_step_that_upsets_the_others(batch: int, checks: list[float], told: list[str]) -> None:
    losses = (1.2 + 1.1 * np.exp(-np.arange(STEPS) / 60)) * noise(STEPS, 0.05)
    known = evaluated(record(losses, {"batch_size": batch}), checks)
    assert alarms(known) == told
    if told:
        assert "leaps between 1.2 and 2" in diagnose(known).findings[0].explanation


def short(steps: int, faster: bool, batches: int = 2) -> Record:
    share = np.arange(steps) / (steps - 1)
    losses = LN_10 - 0.6 * (share**3 if faster else 1 - (1 - share) ** 3)
    known = record(losses, {"total_steps": steps, "steps_per_epoch": batches, "batch_size": 2000})
    return replace(known, probes=known.probes.until(steps))


def test_a_run_that_ends_while_it_learns_faster_than_ever_had_too_few_steps() -> None:
    (found,) = diagnose(short(24, True)).findings
    assert (found.code, found.severity) == ("batch_size", "warning")
    assert "After all 24 steps of 2000 samples each" in found.explanation
    assert alarms(short(24, False)) == [], "its curve has bent"
    assert alarms(short(24, True, batches=40)) == [], "not for the size of its batches"
    assert alarms(short(24, True).until(22)) == [], "it is not over yet"


# --- loss -------------------------------------------------------------------------------------------------------------


def with_parts(silent: float, explained: float, last: float = 98.0) -> Record:
    """A loss of which only a part is known by name: it falls at once, and stays."""
    losses = (last + (128 - last) * np.exp(-np.arange(STEPS) / 15)) * noise(STEPS, 0.005)
    part = LossFacts("binary_cross_entropy_with_logits", output=TensorFacts("float32", (64, 64)))
    known = record(losses, {"loss": part}, silent=table(np.where(PROBED > 20, silent, 0.02), 0.1, 0.1))
    steps = np.arange(30, STEPS + 1, 30)
    metrics = {"loss": np.full(len(steps), last), "r2": np.linspace(0.1, explained, len(steps))}
    return replace(known, evaluations=Evaluations(steps, metrics))


def test_units_that_another_part_of_the_loss_takes() -> None:
    found = [each for each in diagnose(with_parts(0.75, 0.28)).findings if each.severity != "note"]
    assert [(each.code, each.layer) for each in found] == [("over_regularised", "1")]
    assert "75 % of the units in layer 1 give 0" in found[0].explanation
    assert alarms(with_parts(0.4, 0.28)) == [], "most units are there"
    assert alarms(with_parts(0.75, 0.6)) == [], "the answers are good all the same"
    assert alarms(with_parts(0.75, 0.28, last=20.0)) == [], "little of the loss is left"


# --- what a run has left behind ---------------------------------------------------------------------------------------


def repaired(state: str = "kept", **act: object) -> dict[str, object]:
    return {"act": {"step": 200, "rewind": None, "patches": None, **act}, "state": state, "ended": 250}


def test_steps_that_a_repair_left_behind_are_not_judged() -> None:
    """Would catch a verdict on a finished run that accuses what was mended."""
    losses = learning()
    losses[100:200] = 40.0
    known = record(losses, {"learning_rate": 0.1})
    assert alarms(known, 200), "it ran away"
    assert alarms(living(known, [repaired(rewind=100)])) == []
    assert len(living(known, [repaired(rewind=100)]).series.steps) == STEPS - 100
    assert living(known, []) is known


def test_a_run_that_began_anew_is_judged_from_there_and_told_in_steps_of_the_job() -> None:
    losses = np.concatenate([np.full(200, LN_10), learning(100)])
    losses[260:] = 50.0
    anew = living(record(losses), [repaired(patches=[])])
    assert anew.series.steps[0] == 1
    assert anew.total_steps == 100
    assert anew.probes.steps[0] >= 1
    found = [each for each in diagnose(anew).findings if each.severity != "note"]
    assert found
    assert 255 <= found[0].first_bad_step <= 270


def test_what_came_of_a_repair_that_was_undone_is_left_behind_too() -> None:
    undone = living(record(learning()), [repaired("undone", rewind=100)])
    assert set(range(1, STEPS + 1)) - set(undone.series.steps.tolist()) == set(range(201, 251))
