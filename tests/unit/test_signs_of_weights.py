"""What becomes of weights, gradients and answers in a run that fails, and what looks like it and is well."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.written_records import (
    LAYERS,
    LN_10,
    PROBED,
    STEPS,
    alarms,
    evaluated,
    flat,
    learning,
    noise,
    record,
    table,
)
from workers.watch import layers
from workers.watch.diagnosis import diagnose
from workers.watch.record import LayerFacts, LossFacts, TensorFacts

pytestmark = pytest.mark.unit


def test_weights_that_are_written_back_are_frozen_and_those_kept_at_a_length_are_not() -> None:
    moved, still = table(*[0.03] * 4), table(*[5.0] * 4)
    (found,) = diagnose(record(flat(), update_ratios=moved, weight_norms=still).until(60)).findings
    assert (found.code, found.evidence["undone"]) == ("frozen_params", pytest.approx(0.03))
    assert "something writes the old weights back" in found.explanation
    assert alarms(record(learning(), update_ratios=moved, weight_norms=still)) == [], "it learns all the same"
    assert "frozen_params" not in alarms(record(flat(), update_ratios=moved)), "they wander"


def test_a_term_of_the_loss_that_takes_the_weights_is_regularised_too_much() -> None:
    losses = (2.5 + 20 * np.exp(-np.arange(STEPS) / 20)) * noise(STEPS, 0.002)
    left = table(*[5.0 * np.maximum(0.02, np.exp(-PROBED / 20))] * 4)
    parts = LossFacts("cross_entropy", classes=10, class_counts=(30,) * 10, output=TensorFacts("float32", (32, 10)))
    known = evaluated(record(losses, {"loss": parts}, weight_norms=left), [3.0] * 10, [0.1] * 10)
    assert alarms(known) == ["over_regularised"]
    assert alarms(evaluated(record(losses, {"loss": parts}), [3.0] * 10, [0.1] * 10)) != ["over_regularised"]


def test_a_loss_of_one_s_own_that_makes_answers_worse_is_the_wrong_one() -> None:
    unknown = {"loss": LossFacts()}
    falls = [0.6, 0.4, 0.35, 0.33, 0.32, 0.31, 0.3, 0.3, 0.29, 0.29]
    worse = [0.92, 0.9, 0.89, 0.88, 0.87, 0.86, 0.86, 0.86, 0.85, 0.85]
    (found,) = diagnose(evaluated(record(learning(last=0.3), unknown), falls, worse)).findings
    assert found.code == "wrong_loss"
    assert "92 %" in found.explanation
    assert alarms(evaluated(record(learning(last=0.3), unknown), falls, worse[::-1])) == []
    assert alarms(evaluated(record(learning(last=0.3), unknown), falls, [0.92] * 10)) == []
    rare = evaluated(record(learning(last=0.3), unknown), falls, worse)
    rises = {**rare.evaluations.metrics, "worst_recall": np.linspace(0.0, 0.8, 10)}
    assert alarms(replace(rare, evaluations=replace(rare.evaluations, metrics=rises))) == [], "the rare class is found"


def test_labels_are_not_to_blame_while_more_and_more_answers_are_right() -> None:
    losses = (LN_10 - 0.1 * np.arange(STEPS) / STEPS) * noise(STEPS, 0.02)
    more = list(np.linspace(0.15, 0.5, 10))
    assert "label_error" not in alarms(evaluated(record(losses), [2.3] * 10, more))
    assert alarms(evaluated(record(losses), [2.3] * 10, [0.1] * 10)) == ["label_error"]


def test_a_validation_loss_that_comes_back_does_not_walk_away() -> None:
    high_for_a_while = [2.0, 0.8, 1.2, 2.4, 2.2, 1.9, 1.6, 1.3]
    stays = [2.0, 0.8, 1.2, 2.0, 2.1, 2.2, 2.3, 2.4]
    assert alarms(evaluated(record(learning()), high_for_a_while)) == []
    assert alarms(evaluated(record(learning()), stays)) == ["overfitting"]


def test_a_rate_that_climbs_and_climbs_is_to_blame_for_what_runs_away() -> None:
    losses = learning()
    losses[180:] = 40.0
    known = record(losses)
    for growth, told in ((1.03, "lr_too_high"), (1.0, "loss_spike")):
        rates = 1e-3 * np.power(growth, np.arange(STEPS, dtype=np.float64))
        changed = replace(known, series=replace(known.series, learning_rates=rates))
        assert alarms(changed, 200)[:1] == [told]


def test_what_began_trained_and_knows_nothing_any_more_was_thrown_away() -> None:
    losses = np.concatenate([[0.2], flat(STEPS - 1)])
    moved = table(*[0.3] * 4)
    assert alarms(record(losses, update_ratios=moved), 60) == ["lr_too_high"]
    assert alarms(record(0.2 * noise(STEPS), update_ratios=moved), 60) == []


def test_an_expert_that_nobody_asks_is_not_on_the_way_of_the_gradient() -> None:
    """The first quarter of the layers seems to have none."""
    names = ("gate", "a", "b", "c", "d", "e", "f", "g")
    norms = noise(STEPS)[:, None] * np.array([0.06, 0.0, 0.0, 0.03, 0.05, 0.04, 0.05, 0.04])
    known = record(flat())
    known = replace(known, series=replace(known.series, layers=names, norms=norms))
    flow = layers.flow(known)
    assert flow is not None
    assert flow.ratio > 0.5
    assert "vanishing_gradient" not in alarms(known, 60)


def test_a_likelihood_s_validation_loss_has_to_rise_by_a_good_part_of_what_was_learnt() -> None:
    losses = -2.5 + 2.6 * np.exp(-np.arange(STEPS) / 40)
    unknown = {"loss": LossFacts()}
    wavers = [-0.3, -1.0, -1.8, -2.4, -2.8, -2.7, -2.5, -2.3, -2.2, -2.3]
    assert alarms(evaluated(record(losses * noise(STEPS), unknown), wavers)) == []


def test_a_place_without_any_slope_is_a_plateau_although_batches_differ() -> None:
    """Dice's loss of a model that names nothing: much of it is left, other in each batch, and no weight changes it."""
    losses = (0.42 + 0.5 * np.exp(-np.arange(STEPS) / 10)) * noise(STEPS, 0.1)
    known = record(losses, {"loss": LossFacts()})
    gone = known.series.norms * np.where(np.arange(STEPS) < 60, 1.0, 1e-3)[:, None]
    (found,) = diagnose(replace(known, series=replace(known.series, norms=gone))).findings
    assert (found.code, found.evidence["norm_left"] < 0.01) == ("plateau", True)
    assert alarms(known) == [], "whose batches still pull to and fro"


def test_a_validation_loss_that_is_no_number_is_told_before_training_meets_it() -> None:
    known = evaluated(record(learning(), {"loss": LossFacts()}), [0.9, 0.8, float("nan"), 0.7])
    (found,) = diagnose(known.until(240)).findings
    assert (found.code, found.severity) == ("nonfinite_gradient", "critical")
    assert "training samples is a number" in found.explanation
    assert alarms(evaluated(record(learning()), [float("nan")] * 4)) == [], "there may be no such samples"


def test_weights_that_grow_and_grow_while_nothing_is_learnt_are_the_rate_s() -> None:
    growing = table(*[5.0 * np.linspace(1, 12, len(PROBED))] * 4)
    moved = table(*[0.02] * 4)
    assert alarms(record(flat(), weight_norms=growing, update_ratios=moved)) == ["lr_too_high"]
    assert alarms(record(flat(), update_ratios=moved)) == ["label_error"]
    small = {"layers": tuple(LayerFacts(name, "Linear", (64, 64), 64, 0.0, 0.01) for name in LAYERS)}
    assert "lr_too_high" not in alarms(record(flat(), small, weight_norms=growing, update_ratios=moved)), (
        "they began small"
    )


def test_slow_weights_of_half_precision_lose_their_updates() -> None:
    losses = (LN_10 - 0.2 * np.arange(STEPS) / STEPS) * noise(STEPS, 0.005)
    half = {"layers": tuple(LayerFacts(name, "Linear", (64, 64), 64, 0.0, 0.1, dtype="bfloat16") for name in LAYERS)}
    short = table(*[4e-4] * 4)
    assert alarms(record(losses, half, update_ratios=short)) == ["precision_underflow"]
    assert alarms(record(losses, update_ratios=short)) == ["slow_convergence"]


def test_a_rate_of_zero_at_the_end_is_a_waste_where_all_is_learnt_and_an_alarm_where_it_is_not() -> None:
    for losses, told in ((learning(), []), (learning(last=1.5), ["lr_zero"])):
        known = record(losses)
        rates = np.where(np.arange(STEPS) < 150, 1e-3, 0.0)
        ended = replace(known, series=replace(known.series, learning_rates=rates)).until(200)
        assert alarms(ended) == told
        assert [found.code for found in diagnose(ended).findings] == ["lr_zero"]


def test_logits_that_begin_sure_of_anything_have_that_to_unlearn() -> None:
    output = TensorFacts("float32", (32, 10), -12.0, 12.0, 0.0, 3.9, rows=32)
    loss = {"loss": LossFacts("cross_entropy", output=output, classes=10, bound=0.0, constant=LN_10)}
    falling = (3.0 + 3.5 * np.exp(-np.arange(STEPS) / 100)) * noise(STEPS)
    assert alarms(record(falling, loss)) == ["bad_init"]
    assert alarms(record(falling - 1.5, loss)) == [], "it is below before half of the run"


def test_what_only_validation_sees_creep_down_with_short_steps_is_a_rate_too_low() -> None:
    short, creeping = table(*[1e-4] * 4), list(np.linspace(2.303, 2.299, 10))
    noisy = LN_10 * noise(STEPS, 0.03)
    assert alarms(evaluated(record(noisy, update_ratios=short), creeping), STEPS // 2 + 30) == ["lr_too_low"]
    assert alarms(evaluated(record(noisy, update_ratios=short), creeping[::-1]), STEPS // 2 + 30) == []
    assert "lr_too_low" not in alarms(evaluated(record(noisy), creeping), STEPS // 2 + 30), "its steps are long enough"


def test_an_accuracy_of_thirty_answers_falls_by_chance() -> None:
    few = [0.4333, 0.5667, 0.7667, 0.7, 0.8667, 0.8, 0.7667, 0.6667, 0.7333, 0.7]
    steady = (0.9 + 1.4 * np.exp(-np.arange(STEPS) / 10)) * noise(STEPS)
    assert alarms(evaluated(record(steady), [0.9] * 10, few)) == []
    many = [*few[:9], 0.7003]
    assert alarms(evaluated(record(steady), [0.9] * 10, many)) == ["oscillating_loss"], "of thousands it does not"
