"""Rules on records that are written down by hand: which cause comes first, how early it is told, and what only looks like it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.written_records import (
    LN_10,
    PROBED,
    STEPS,
    alarms,
    evaluated,
    first_tenth,
    flat,
    learning,
    noise,
    record,
    table,
)
from workers.watch import explanations, symptoms
from workers.watch.course import Course
from workers.watch.diagnosis import diagnose
from workers.watch.findings import Found
from workers.watch.record import LayerFacts, LossFacts, TensorFacts, none

pytestmark = pytest.mark.unit


# --- the first cause --------------------------------------------------------------------------------------------------


def test_units_that_long_steps_have_killed_are_a_consequence_of_the_rate() -> None:
    alive_once = np.where(PROBED < 5, 0.1, 1.0)
    long = np.where(PROBED < 10, 0.4, 1e-4)
    killed = record(flat(), silent=table(0.1, 0.1, alive_once), update_ratios=table(*[long] * 4))
    assert alarms(killed)[0] == "lr_too_high"
    assert any(each.startswith("dying_relu") for each in diagnose(killed).findings[0].consequences)
    assert first_tenth(killed)[0] == "lr_too_high"
    born_dead = record(flat(), silent=table(0.1, 0.1, 1.0), update_ratios=table(*[long] * 4))
    assert alarms(born_dead)[0] == "dying_relu"


def test_gradients_that_are_no_number_from_the_first_step_on_come_before_the_loss_that_follows() -> None:
    losses = np.where(np.arange(20) < 1, LN_10, np.nan)
    known = record(losses)
    spoilt = replace(
        known,
        series=replace(known.series, norms=none(20, 4)),
        probes=replace(known.probes, nonfinite=table(*[9.0] * 4)),
    )
    for step in (1, 2, 20):
        found = diagnose(spoilt.until(step)).findings[0]
        assert (found.code, found.first_bad_step, found.layer) == ("nonfinite_gradient", 1, "6")
    unmeasured = replace(known, series=replace(known.series, losses=learning(20), norms=none(20, 4)))
    assert alarms(unmeasured) == []


def test_gradients_that_underflow_everywhere_are_no_frozen_parameters() -> None:
    known = record(flat(), {"precision": "fp16"}, zero_shares=table(*[1.0] * 4), update_ratios=table(*[0.0] * 4))
    nothing = replace(known, series=replace(known.series, norms=np.zeros((STEPS, 4))))
    assert first_tenth(nothing)[0] == "precision_underflow"
    assert first_tenth(replace(nothing, facts=replace(nothing.facts, precision="fp32")))[0] == "frozen_params"


def test_a_flat_loss_at_that_of_a_constant_answer_is_not_the_rate_s_because_adam_began_with_long_steps() -> None:
    began_long = np.where(PROBED < 6, 0.12, 0.01)
    known = record(flat(), update_ratios=table(*[began_long] * 4))
    assert alarms(known)[0] == "label_error"
    above = record(flat(level=1.3 * LN_10), update_ratios=table(*[began_long] * 4))
    assert alarms(above)[0] == "lr_too_high"


# --- early ------------------------------------------------------------------------------------------------------------


def test_steps_that_cannot_arrive_are_told_early() -> None:
    short = record(flat(), update_ratios=table(*[1e-7] * 4))
    assert first_tenth(short) == ["lr_too_low"]
    half = tuple(replace(layer, dtype="bfloat16") for layer in short.facts.layers)
    assert first_tenth(replace(short, facts=replace(short.facts, layers=half))) == [], "they may be rounded away"
    climbing = replace(short, facts=replace(short.facts, schedule={"0": 1e-3, "1": 1e3}))
    assert first_tenth(climbing) == []


def test_decay_that_has_halved_the_weights_is_told_early() -> None:
    left = 5 * np.exp(-PROBED / 10)
    assert first_tenth(record(flat(), {"weight_decay": 1.0}, weight_norms=table(*[left] * 4))) == ["over_regularised"]
    assert first_tenth(record(flat(), {"weight_decay": 1.0})) == []


def test_raw_inputs_of_a_flat_loss_are_told_early_and_never_without_it() -> None:
    inputs = TensorFacts(
        "float32", (32, 64), mean=700.0, std=900.0, largest_feature_mean=1500.0, largest_feature_std=900.0
    )
    assert first_tenth(record(flat(), {"inputs": inputs})) == ["unnormalised_input"]
    assert alarms(record(learning(), {"inputs": inputs})) == []


@pytest.mark.parametrize(
    ("changes", "told"), [({"std": 9.0}, True), ({"std": 0.3}, False), ({"kind": "Embedding", "std": 1.0}, False)]
)
def test_weights_beyond_any_scale_are_a_fact(changes: dict[str, Any], told: bool) -> None:
    known = record(learning())
    layers = tuple(replace(layer, **changes) for layer in known.facts.layers)
    assert alarms(replace(known, facts=replace(known.facts, layers=layers)), 1) == (["bad_init"] if told else [])
    others: tuple[dict[str, Any], ...] = (
        {"begins_trained": True},
        {"layers": (*layers, LayerFacts("n", "LayerNorm", (64,)))},
    )
    for harmless in others:
        assert alarms(replace(known, facts=replace(known.facts, **{"layers": layers, **harmless})), 1) == []


def test_a_climb_of_the_rate_that_nobody_declared_and_that_does_not_end_is_no_warm_up() -> None:
    known = record(flat(), update_ratios=table(*[1e-7] * 4))
    climbing = replace(known, series=replace(known.series, learning_rates=1e-9 * known.series.steps.astype(np.float64)))
    assert alarms(climbing, STEPS // 2) == ["lr_too_low"]
    declared = replace(climbing, facts=replace(climbing.facts, warmup_steps=STEPS))
    assert alarms(declared, STEPS // 2) == []


# --- validation -------------------------------------------------------------------------------------------------------

LOWEST_THEN_UP = [1.0, 0.5, 0.4, 0.45, 0.5, 0.6, 0.65, 0.7, 0.72, 0.75]


def test_being_surer_of_the_same_answers_is_no_overfitting() -> None:
    known = record(learning(last=0.001))
    better = [0.7, 0.85, 0.88, 0.89, 0.89, 0.9, 0.9, 0.9, 0.9, 0.9]
    worse = [0.7, 0.85, 0.88, 0.87, 0.86, 0.85, 0.84, 0.83, 0.83, 0.83]
    assert alarms(evaluated(known, LOWEST_THEN_UP, better)) == []
    assert alarms(evaluated(known, LOWEST_THEN_UP, worse)) == ["overfitting"]
    assert alarms(evaluated(known, LOWEST_THEN_UP)) == ["overfitting"]
    assert alarms(evaluated(known, [each * (1 + 0.3 * n) for n, each in enumerate(LOWEST_THEN_UP)], better)) == [
        "overfitting"
    ]


def test_samples_known_by_heart_and_a_validation_near_the_constant_answer() -> None:
    by_heart = evaluated(record(learning(last=0.001)), [1.9, 1.85, *[2.0] * 8])
    assert alarms(by_heart) == ["overfitting"]
    assert alarms(evaluated(record(learning(last=1.0)), [1.9, 1.85, *[2.0] * 8])) == [], "not by heart"


def test_a_fit_that_validation_contradicts_is_the_labels_unless_there_are_few() -> None:
    facts = {"steps_per_epoch": 40, "batch_size": 32}
    contradicted = [2.32, 2.31, 2.33, 2.35, 2.34, 2.36, 2.35, 2.37, 2.36, 2.38]
    assert alarms(evaluated(record(learning(last=1.8), facts), contradicted)) == ["label_error"]
    assert alarms(evaluated(record(learning(last=1.8), facts | {"steps_per_epoch": 2}), contradicted)) == []
    assert (
        alarms(evaluated(record(learning(last=1.8), facts), [2.3, 2.28, 2.25, 2.2, 2.1, 2.05, 2.0, 1.95, 1.9, 1.85]))
        == []
    )


def test_a_validation_loss_that_falls_is_not_stuck_however_noisy_the_batches_are() -> None:
    noisy = flat() * noise(STEPS, 0.1)
    falling = list(np.linspace(2.3, 2.1, 10))
    assert alarms(record(noisy)) == ["label_error"]
    assert alarms(evaluated(record(noisy), falling)) == []


# --- what the loss is measured against --------------------------------------------------------------------------------


def test_a_loss_with_other_parts_has_no_constant_answer_and_no_bound() -> None:
    seen = LossFacts("cross_entropy", output=TensorFacts("float32", (32, 10)), classes=10)
    below = np.linspace(1.0, -1.0, STEPS)
    assert alarms(record(below, {"loss": seen})) == []
    assert alarms(record(below, {"loss": replace(seen, bound=0.0)}))[0] == "wrong_loss"
    assert alarms(record(below, {"loss": replace(seen, bound=0.0), "optimizers": 2})) == [], "adversaries"


def test_without_any_gradient_no_rate_is_to_blame() -> None:
    """Loss varies from batch to batch, far above that of a constant answer, and nothing comes back to any layer."""
    losses = 5.0 + 2.0 * np.random.default_rng(0).standard_normal(STEPS)
    known = record(losses)
    still = replace(known, series=replace(known.series, norms=np.zeros((STEPS, 4))))
    assert first_tenth(still)[0] == "frozen_params"
    layers = tuple(LayerFacts(f"{name}.factor", "Linear", (4, 4), 4, 0.0, 0.0, 1.0) for name in "ab")
    zeros = replace(still, facts=replace(still.facts, layers=layers))
    assert first_tenth(zeros)[0] == "bad_init"


def test_an_h_from_a_handful_of_targets_accuses_nobody() -> None:
    """Four samples of the first microbatch: H may be two and a half times as large as it looks."""
    known = record(
        0.45 + 0.4 * np.exp(-np.arange(STEPS) / 20.0) + 0.05 * np.random.default_rng(1).standard_normal(STEPS)
    )
    loss = LossFacts(function="mse_loss", bound=0.0, constant=0.21, constant_rows=4)
    few = replace(known, facts=replace(known.facts, loss=loss))
    assert alarms(few) == []
    sure = replace(few, facts=replace(few.facts, loss=replace(loss, constant=0.45, constant_rows=4000)))
    assert alarms(sure) != [], "a loss at H for most of the run"


def test_a_warm_up_that_outlasts_the_run_is_known_before_it() -> None:
    climbing = {"0": 1e-8, "0.01": 1e-7, "0.1": 1e-6, "1": 1e-5}
    assert first_tenth(record(flat(), {"learning_rate": 1e-2, "schedule": climbing}))[0] == "lr_too_low"
    (found,) = diagnose(record(flat(), {"learning_rate": 1e-2, "schedule": climbing}).until(30)).findings
    assert "never comes near the 0.01" in found.explanation
    warm = {"0": 1e-5, "0.01": 1e-4, "0.1": 1e-2, "1": 0.0}
    assert alarms(record(learning(), {"learning_rate": 1e-2, "schedule": warm})) == []


def test_nearly_everything_left_out_is_regularised_too_much() -> None:
    assert first_tenth(record(flat(), {"dropout": 0.99}))[0] == "over_regularised"
    assert alarms(record(learning(), {"dropout": 0.9})) == [], "it learns all the same"


def test_batches_that_differ_do_not_ring() -> None:
    """Squared errors of a noisy series: the validation loss, over many samples, stays where it is good."""
    losses = 0.35 * np.exp(0.9 * np.random.default_rng(3).standard_normal(STEPS))
    losses[:3] = 1.0
    facts = {"loss": LossFacts("mse_loss", bound=0.0, constant=1.0)}
    steady, leaping = [0.9, 0.6, 0.5, 0.48, 0.5, 0.49, 0.5, 0.48, 0.49], [0.9, 0.6, 0.5, 0.9, 0.5, 0.95, 0.5, 0.98, 0.9]
    assert symptoms.rings(Course(evaluated(record(losses, facts), steady))) is None
    assert symptoms.rings(Course(evaluated(record(losses, facts), leaping))) is not None


def test_what_is_said_was_measured() -> None:
    """A rate that killed units has no loss in its evidence, and what validation lost has no update."""
    killed = {"largest_update_ratio": 0.9, "dead_share": 0.99, "dead_layer": "3"}
    for code, evidence in (("lr_too_high", killed), ("lr_too_high", {"best": 0.9, "recent": 0.5, "update_ratio": 0.1})):
        assert "unknown" not in explanations.finding(Found(code, "critical", 12, evidence)).explanation
    without = explanations.finding(Found("dying_relu", "critical", 12, {}, "3")).explanation
    assert without.startswith("In layer 3, unknown of the units"), "which no rule leaves out"
    told = explanations.finding(Found("lr_too_high", "critical", 12, {"loss": 2.0})).explanation
    assert told.startswith("The loss is 2, first off at step 12. The gradient"), "and no word of what was not measured"
    dead = explanations.finding(Found("dying_relu", "critical", 12, {"dead_share": 0.958}, "3")).explanation
    assert dead.startswith("In layer 3, 95.8 % of the units give 0 for every sample (healthy: below 85 %)")
