"""What is done to a run that fails, and what becomes of it: pure functions, without a run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import pytest

from workers.repair.acts import Act, Entry
from workers.repair.data_answers import DATA_ANSWERS
from workers.repair.ladder import ANSWERS, ONLY_PEOPLE, REBUILDS, Situation, answer, rungs
from workers.repair.repairs import PROBATION_STEPS, SETTLES, Repairs
from workers.repair.requests import Request
from workers.spec import Health, RepairBudget
from workers.watch.explanations import WORDS

pytestmark = pytest.mark.unit

STEPS, RATE = 200, 0.1
SNAPSHOTS = [0, 40, 44, 48]


def finding(code: str, begun: int = 46, severity: str = "critical", **evidence: Any) -> dict[str, Any]:
    return {"code": code, "severity": severity, "first_bad_step": begun, "evidence": evidence}


def situation(found: Mapping[str, Any], step: int) -> Situation:
    return Situation(found, step, STEPS, usual_norm=2.0, optimizer="sgd", learning_rate=RATE)


def repairs(**budget: Any) -> Repairs:
    return Repairs(Health(mode="repair", budget=RepairBudget(**budget)), STEPS, RATE)


def next_act(run: Repairs, step: int, *found: Mapping[str, Any], snapshots: list[int] = SNAPSHOTS) -> Act | None:
    return run.next_act(found, situation(found[0], step) if found else None, snapshots, step)


def done(run: Repairs, step: int, *found: Mapping[str, Any], snapshots: list[int] = SNAPSHOTS) -> Act:
    act = next_act(run, step, *found, snapshots=snapshots)
    assert act is not None
    run.done(act, found[0] if found else {}, {})
    return act


HIGH = finding("lr_too_high", largest_update_ratio=0.1)


# --- trials -----------------------------------------------------------------------------------------------------------


def test_it_goes_back_to_before_it_began_with_shorter_steps_and_is_kept_when_nothing_is_seen_again() -> None:
    run = repairs()
    act = done(run, 50, HIGH)
    assert act.rate == pytest.approx(0.1)
    assert (act.rewind, act.clip) == (44, 4.0)
    assert "went back" in act.words
    assert next_act(run, 50 + act.probation - 1) is None
    kept = done(run, 50 + act.probation)
    assert (kept.verdict, run.entries[0].state, run.entries[0].ended) == ("kept", "kept", 50 + act.probation)
    assert run.trial is None


def test_what_is_seen_again_is_taken_back_for_the_next_rung() -> None:
    run = repairs()
    first = done(run, 50, HIGH)
    assert next_act(run, 50 + SETTLES - 1, HIGH) is None, "too soon to say"
    second = done(run, 50 + SETTLES, HIGH)
    assert second.instead_of == 1
    assert second.rate == pytest.approx(first.rate / 3)
    assert [entry.state for entry in run.entries] == ["taken_back", "trial"]
    assert run.rate(70, 1.0) == pytest.approx(second.rate), "the first one's factor is gone"


def test_a_second_try_goes_further_back() -> None:
    run = repairs()
    assert [done(run, step, HIGH, snapshots=kept).rewind for step, kept in ((50, SNAPSHOTS), (60, [0, 40, 44]))] == [
        44,
        40,
    ]
    assert [done(run, step, HIGH, snapshots=[0]).rewind for step in (70, 80)] == [0, 0]


def test_a_warning_counts_when_the_trial_is_over_and_not_before() -> None:
    run = repairs()
    act = done(run, 50, HIGH)
    warning = finding("oscillating_loss", severity="warning")
    assert next_act(run, 60, warning) is None
    assert done(run, 50 + act.probation, warning).instead_of == 1


def test_all_is_taken_back_where_no_rung_is_left() -> None:
    run = repairs()
    tried = len(rungs(situation(HIGH, 50)))
    for number in range(tried):
        done(run, 50 + number * SETTLES, HIGH)
    end = done(run, 50 + tried * SETTLES, HIGH)
    assert end.verdict == "taken_back"
    assert {entry.state for entry in run.entries} == {"taken_back"}
    assert (run.rate(150, 1.0), run.clip(None)) == (1.0, None)
    assert next_act(run, 150, HIGH) is None
    assert run.why_not(situation(HIGH, 150)) == "all that is known has been tried"


def test_probation_is_as_long_as_it_took_to_see_what_was_wrong() -> None:
    low = finding("lr_too_low", begun=1, update_ratio=1e-5)
    lengths = [done(repairs(), step, low).probation for step in (20, 51, 150)]
    assert lengths == [PROBATION_STEPS, 50, 0.3 * STEPS]


def test_what_nobody_could_see_the_end_of_is_not_begun() -> None:
    flat = finding("plateau", severity="warning")
    assert next_act(repairs(), STEPS - PROBATION_STEPS + 1, flat) is None
    assert next_act(repairs(), STEPS - 70, flat) is not None


def test_steps_that_are_too_short_are_judged_when_the_rate_has_climbed() -> None:
    run = repairs()
    low = finding("lr_too_low", begun=1, update_ratio=1e-5)
    act = done(run, 20, low)
    assert act.rewind == 0, "the schedule has all of its steps again"
    assert next_act(run, 20 + SETTLES + 1, low) is None
    assert done(run, 20 + act.probation, low).rate == pytest.approx(3 * act.rate)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (finding("lr_too_low", begun=1, update_ratio=1e-6), HIGH),
        (finding("lr_too_high", largest_update_ratio=5.0), finding("lr_too_low", severity="warning")),
    ],
)
def test_what_went_too_far_goes_half_the_way(first: dict[str, Any], then: dict[str, Any]) -> None:
    run = repairs()
    act = done(run, 50, first)
    assert done(run, 50 + act.probation, then).rate == pytest.approx(math.sqrt(act.rate))


def test_sound_weights_are_not_given_up_for_a_schedule() -> None:
    """The rate died at step 46: the only snapshot from before it is the first, and 45 steps of learning would be lost."""
    died = finding("lr_zero", begun=46)
    assert done(repairs(), 60, died).rewind == 44
    act = done(repairs(), 60, died, snapshots=[0])
    assert act.rewind is None
    assert "went back" not in act.words


# --- what is not touched ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", sorted(WORDS.keys() - ANSWERS.keys()))
def test_nothing_is_done_about_what_has_no_live_answer(code: str) -> None:
    run = repairs()
    assert next_act(run, 50, finding(code)) is None
    assert answer(situation(finding(code), 50), ["live"], 0) is None
    why = run.why_not(situation(finding(code), 50))
    assert ("health.allow would have to name" if code in {*REBUILDS, *DATA_ANSWERS} else "only a person") in why


def test_what_only_a_person_knows_is_not_treated_by_what_follows_from_it() -> None:
    assert not ONLY_PEOPLE & ANSWERS.keys()
    run = repairs()
    next_act(run, 20, finding("wrong_loss", begun=0))
    assert next_act(run, 50, HIGH) is None
    again = repairs()
    again.restore(json.loads(json.dumps(run.document())))
    assert next_act(again, 50, HIGH) is None
    assert "only a person" in again.why_not(situation(HIGH, 50))


def test_a_trial_ends_when_only_a_person_can_help() -> None:
    run = repairs()
    act = done(run, 50, HIGH)
    assert done(run, 50 + act.probation, finding("label_error", severity="warning")).verdict == "taken_back"


def test_a_layer_that_makes_no_number_from_the_first_step_on_is_left_alone() -> None:
    assert next_act(repairs(), 10, finding("nonfinite_gradient", begun=1, bad_steps=10)) is None
    assert next_act(repairs(), 50, finding("nonfinite_gradient", bad_steps=2, begun=30)) is None, (
        "leaving out is enough"
    )
    assert next_act(repairs(), 50, finding("nonfinite_gradient", bad_steps=4)) is not None


def test_a_fact_that_was_answered_says_nothing_of_the_answer_unless_the_job_fails() -> None:
    run = repairs()
    fact = finding("lr_zero", begun=0, severity="warning")
    act = done(run, 1, fact, snapshots=[0])
    assert act.rate_at_least == RATE
    assert done(run, 1 + act.probation, fact).verdict == "kept"
    assert next_act(run, 100, fact) is None
    assert next_act(run, 100, finding("lr_zero", begun=0)) is not None


def test_nothing_is_done_without_a_finding() -> None:
    assert next_act(repairs(), 50) is None
    assert next_act(repairs(), 50, HIGH, snapshots=[]) is None, "there is nothing to go back to"


# --- contests ---------------------------------------------------------------------------------------------------------


def compared(run: Repairs, step: int, loss: float | None, *found: Mapping[str, Any], plan: Any = None) -> Act | None:
    """At the end of a trial whose loss is ``loss``."""
    about = situation(found[0], step) if found else None
    act = run.next_act(found, about, SNAPSHOTS, step, plan, lambda steps: loss)
    if act is not None:
        run.done(act, found[0] if found else {}, {})
    return act


def test_neighbours_are_tried_until_both_are_worse_and_the_best_one_holds() -> None:
    run = repairs()
    first = done(run, 50, HIGH)
    step, losses = 50, [1.0, 0.8, 0.9]
    rates: list[Any] = []
    while run.trial is not None:
        step += run.trial.act.probation
        act = compared(run, step, losses[len(rates)])
        assert act is not None
        rates.append(act.rate / first.rate if act.verdict is None else act.verdict)
    assert rates == [pytest.approx(3), pytest.approx(9), "taken_back"], "a third is known: it was the first"
    assert [each.state for each in run.entries] == ["taken_back", "kept", "taken_back"]
    assert [each.score for each in run.entries] == [1.0, 0.8, 0.9]
    assert run.rate(step + 50, 1.0) == pytest.approx(3 * first.rate)
    assert run.entries[-1].returned == run.entries[-1].act.step, "the run goes on from the end of the best one's trial"


def test_what_fails_in_a_contest_loses_it_before_its_trial_is_over() -> None:
    run = repairs()
    first = done(run, 50, HIGH)
    compared(run, 50 + first.probation, 1.0)
    act = compared(run, 50 + first.probation + SETTLES + 1, 0.1, HIGH)
    assert act is not None
    assert act.rate == pytest.approx(first.rate / 3), "the other neighbour"
    assert act.against == 1, "with the same champion"


def test_there_is_no_contest_beyond_the_budget() -> None:
    for budget in ({"repairs": 1}, {"extra_steps": 0.2}):
        run = repairs(**budget)
        first = done(run, 50, HIGH)
        act = compared(run, 50 + first.probation, 1.0)
        assert act is not None
        assert act.verdict == "kept"


def test_undoing_the_winner_brings_the_one_before_back() -> None:
    run = repairs(repairs=3)
    first = done(run, 50, HIGH)
    compared(run, 80, 1.0)
    compared(run, 110, 0.5)
    compared(run, 140, 0.4)
    undone = run.asked(Request("a", "undo", "ann", number=3), 145)
    assert isinstance(undone, Act)
    assert undone.rewind == 110, "the end of the second one's trial"
    run.done(undone, {}, {})
    assert [each.state for each in run.entries] == ["taken_back", "kept", "undone"]
    assert run.trial is None
    assert run.rate(200, 1.0) == pytest.approx(3 * first.rate)


def test_what_is_known_from_the_start_has_to_be_beaten_at_the_same_age() -> None:
    fact = finding("output_activation", begun=0, severity="warning")

    def run_of(loss: float) -> Repairs:
        run = Repairs(Health(mode="repair", allow=["architecture"]), STEPS, RATE)
        plan = lambda name: [{"kind": "drop_output", "where": "3", "arguments": {}}]  # noqa: E731
        assert compared(run, 5, 2.0, fact, plan=plan) is None, "too early to compare"
        act = compared(run, 40, 2.0, fact, plan=plan)
        assert act is not None
        assert (act.rival, act.probation) == (2.0, 40)
        compared(run, 80, loss)
        assert compared(run, 90, 2.0, fact, plan=plan) is None, "it is not tried again"
        return run

    assert [each.state for each in run_of(1.5).entries] == ["kept"]
    lost = run_of(1.99)
    assert [each.state for each in lost.entries] == ["taken_back"]
    assert (lost.entries[0].returned, lost.lost, lost.patches) == (40, 40, [])


def test_a_model_that_learns_little_is_compared_with_the_next_one() -> None:
    run = Repairs(Health(mode="repair", allow=["architecture", "weights"]), STEPS, RATE)
    plan = lambda name: [{"kind": name}]  # noqa: E731
    vanishing = finding("vanishing_gradient")
    compared(run, 20, None, vanishing, plan=plan)
    losses = iter([0.9, 1.0])  # of the second half of its trial, of its first steps
    act = run.next_act([], None, [], 20 + run.entries[0].act.probation, plan, lambda steps: next(losses))
    assert act is not None
    assert (act.plan, act.against) == (REBUILDS["vanishing_gradient"][1].plan, 1)
    losses = iter([0.4, 1.0])  # it learns well
    act = run.next_act([], None, [], 20 + run.entries[0].act.probation, plan, lambda steps: next(losses))
    assert act is not None
    assert act.verdict == "kept"


# --- what holds -------------------------------------------------------------------------------------------------------


def test_the_rate_climbs_anew_and_never_falls_below_its_floor() -> None:
    run = repairs(lr_floor=0.05)
    run.entries = [Entry(Act(1, 50, "lr_too_high", "live", "", rate=0.01, rewarm=10), "kept", {})]
    assert [run.rate(step, 2.0) for step in (50, 54, 60, 90)] == pytest.approx([0.01, 0.05, 0.1, 0.1])


def test_the_smaller_clipping_holds() -> None:
    run = repairs()
    run.entries = [Entry(Act(1, 50, "lr_too_high", "live", "", clip=3.0), "kept", {})]
    assert [run.clip(limit) for limit in (None, 1.0, 5.0)] == [3.0, 1.0, 3.0]


def test_what_was_lost_is_made_up_for_within_the_budget_and_the_schedule_goes_back() -> None:
    run = repairs(extra_steps=0.25)
    run.entries = [Entry(Act(1, 60, "lr_too_high", "live", "", rewind=40), "taken_back", {})]
    assert (run.lost, run.extra, run.schedule_step(60)) == (20, 20, 40)
    run.entries.append(Entry(Act(2, 110, "lr_too_high", "live", "", rewind=40), "kept", {}))
    assert (run.lost, run.extra, run.schedule_step(110)) == (70, 50, 60)


def test_its_budget_of_repairs_includes_those_taken_back() -> None:
    run = repairs(repairs=2)
    done(run, 50, HIGH)
    done(run, 60, HIGH)
    assert done(run, 70, HIGH).verdict == "taken_back"
    assert next_act(run, 80, HIGH) is None
    assert "2 repairs of its budget" in run.why_not(situation(HIGH, 80))


# --- people, record ---------------------------------------------------------------------------------------------------


def test_what_was_undone_is_not_repaired_again() -> None:
    run = repairs()
    act = done(run, 50, HIGH)
    done(run, 50 + act.probation)
    undone = run.asked(Request("a", "undo", "ann", number=1), 100)
    assert isinstance(undone, Act)
    run.done(undone, {}, {})
    assert (run.entries[0].state, run.lost, run.taken) == ("undone", 50, ["a"])
    assert (run.rate(120, 1.0), run.clip(None)) == (1.0, None)
    assert next_act(run, 120, HIGH) is None
    assert run.asked(Request("b", "undo", "ann", number=1), 130) == "repair 1 is undone already"
    assert run.asked(Request("c", "undo", "ann", number=5), 130) == "there is no repair 5"


def test_the_newest_is_undone_first() -> None:
    run = repairs()
    run.entries = [Entry(Act(number, 50, "lr_too_high", "live", ""), "kept", {}) for number in (1, 2)]
    said = run.asked(Request("a", "undo", "ann", number=1), 100)
    assert isinstance(said, str)
    assert "a later repair holds" in said


def test_rate_and_clipping_become_what_people_ask_for_and_cost_nothing_of_the_budget() -> None:
    run = repairs(repairs=1)
    run.entries = [Entry(Act(1, 10, "lr_too_high", "live", "", rate=0.1, clip=1.0), "taken_back", {})]
    act = run.asked(Request("a", "steer", "ann", learning_rate=0.02, clip_norm=7.0), 20)
    assert isinstance(act, Act)
    run.done(act, {}, {})
    assert run.entries[-1].state == "kept"
    assert run.rate(30, RATE / 2) == pytest.approx(0.01), "half of its schedule's top"
    assert run.clip(1.0) == 7.0


def test_the_record_goes_through_json() -> None:
    run = repairs()
    done(run, 50, HIGH)
    done(run, 60, HIGH)
    again = repairs()
    again.restore(json.loads(json.dumps(run.document())))
    assert again.entries == run.entries
    assert next_act(again, 70, HIGH) == next_act(run, 70, HIGH)
    again.restore({"entries": [], "taken": []})
    assert (again.entries, again.left_to_people) == ([], None)
