"""Rules on records that are written down by hand: which cause comes first, how early it is told, and what only looks like it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from workers.watch import explanations, symptoms
from workers.watch.course import Course
from workers.watch.diagnosis import diagnose
from workers.watch.findings import Found
from workers.watch.record import Evaluations, Facts, LayerFacts, LossFacts, Probes, Record, Series, TensorFacts, none

pytestmark = pytest.mark.unit

STEPS = 300
LAYERS = ("0", "2", "4", "6")
ACTIVATIONS = ("1", "3", "5")
LN_10 = float(np.log(10))
PROBED = np.array([1, 2, 3, 5, *range(6, STEPS + 1, 6)], dtype=np.int64)


def noise(size: int, share: float = 0.02) -> np.ndarray:
    return np.exp(share * np.random.default_rng(0).standard_normal(size))


def flat(steps: int = STEPS, level: float = LN_10) -> np.ndarray:
    found: np.ndarray = level * noise(steps)
    return found


def learning(steps: int = STEPS, last: float = 0.1) -> np.ndarray:
    found: np.ndarray = (last + (LN_10 - last) * np.exp(-np.arange(steps) / 40)) * noise(steps)
    return found


def table(*values: float | np.ndarray) -> np.ndarray:
    """(P, columns)"""
    return np.stack([np.broadcast_to(value, PROBED.shape) for value in values], axis=1).astype(float)


def record(losses: np.ndarray, facts: dict[str, Any] | None = None, **probed: Any) -> Record:
    steps = np.arange(1, len(losses) + 1)
    layers = tuple(LayerFacts(name, "Linear", (64, 64), 64, 0.0, 0.1) for name in LAYERS)
    known = {
        "layers": layers,
        "loss": LossFacts("cross_entropy", classes=10, bound=0.0, constant=LN_10),
        "total_steps": STEPS,
    }
    ones = np.ones(len(steps))
    probes = Probes(
        LAYERS, ACTIVATIONS, PROBED, weight_norms=table(*[5.0] * 4), update_ratios=table(*[1e-3] * 4),
        zero_shares=table(*[0.1] * 4), zero_rows=table(*[0.0] * 4), largest=table(*[0.1] * 4), nonfinite=table(*[0.0] * 4),
        silent=table(*[0.1] * 3), saturated=none(len(PROBED), 3),
    )  # fmt: skip
    return Record(
        Facts(**{**known, **(facts or {})}),
        Series(LAYERS, steps, losses, noise(len(steps))[:, None] * np.ones(4), 1e-3 * ones, ones, ones, 0 * ones),
        replace(probes, **probed),
    )


def evaluated(known: Record, loss: list[float], accuracy: list[float] | None = None) -> Record:
    steps = np.linspace(STEPS / len(loss), STEPS, len(loss)).astype(np.int64)
    metrics = {"loss": np.array(loss)} | ({"accuracy": np.array(accuracy)} if accuracy else {})
    return replace(known, evaluations=Evaluations(steps, metrics))


def alarms(known: Record, step: int = STEPS) -> list[str]:
    return [found.code for found in diagnose(known.until(step)).findings if found.severity != "note"]


def first_tenth(known: Record) -> list[str]:
    return alarms(known, STEPS // 10)


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


# --- validation says what the training loss does not ------------------------------------------------------------------


def test_validation_that_has_only_become_worse_contradicts_a_fit_that_is_on_its_way() -> None:
    """The training loss falls, but is above that of a constant answer yet."""
    losses = (5.0 - 2.0 * np.arange(STEPS) / STEPS) * noise(STEPS)
    facts = {"steps_per_epoch": 40, "batch_size": 32}
    rising = [5.0, 5.05, 5.1, 5.2, 5.2, 5.3, 5.35, 5.4, 5.5, 5.6]
    assert alarms(evaluated(record(losses, facts), rising)) == ["label_error"]
    assert alarms(evaluated(record(losses, facts), [5.0, 4.8, 4.6, 4.4, 4.2, 4.0, 3.8, 3.6, 3.4, 3.2])) == []


def test_batches_that_become_trivial_are_no_overfitting() -> None:
    losses = 0.8 * noise(STEPS)
    losses[:100] = (0.8 + 1.5 * np.exp(-np.arange(100) / 20)) * noise(100)
    losses[200:] = 0.002
    later = [1.6, 1.2, 1.0, 0.9, 0.8, 0.8, 2.0, 3.0, 3.5, 3.7]
    (found,) = diagnose(evaluated(record(losses), later)).findings
    assert (found.code, abs(found.first_bad_step - 201) <= 10) == ("label_error", True)
    assert "the batches since then are trivial" in found.explanation
    assert alarms(evaluated(record(learning(last=0.001)), later)) == ["overfitting"], "step by step"


def test_an_explained_variance_of_nothing_is_a_plateau_where_no_constant_answer_is_known() -> None:
    """A loss of several parts falls as long as the part that is easy does."""
    losses = (30 + 27 * np.exp(-np.arange(STEPS) / 15)) * noise(STEPS, 0.01)
    facts = {"loss": LossFacts("mse_loss", output=TensorFacts("float32", (32, 8)))}
    known = record(losses, facts)
    steps = np.linspace(30, STEPS, 10).astype(np.int64)
    for r2, told in ((0.001, ["plateau"]), (0.3, [])):
        metrics = {"loss": np.full(10, 30.0), "r2": np.linspace(-0.5, r2, 10)}
        assert alarms(replace(known, evaluations=Evaluations(steps, metrics))) == told


def test_weights_that_were_thrown_far_away_ring_sooner() -> None:
    losses = 1.2 * noise(STEPS, 0.2)
    losses[:20] = LN_10
    unsteady = [2.2, 1.2, 1.1, 0.9, 1.3, 1.1, 1.4, 1.0, 1.3, 1.4]
    growing = table(*[5.0 * np.linspace(1, 40, len(PROBED))] * 4)
    moved = table(*[0.03] * 4)
    assert alarms(evaluated(record(losses, weight_norms=growing, update_ratios=moved), unsteady)) == ["lr_too_high"]
    assert alarms(evaluated(record(losses, update_ratios=moved), unsteady)) == []


def test_the_way_out_of_a_plateau_is_not_slow() -> None:
    """Nothing, and then ever more: a line through it says nothing of the end."""
    steps = np.arange(STEPS)
    escaping = (LN_10 - 0.25 * (steps / 200) ** 4) * noise(STEPS, 0.002)
    assert symptoms.slow(Course(record(escaping).until(150))) is None
    line = (LN_10 - 0.25 * steps / STEPS) * noise(STEPS, 0.002)
    assert symptoms.slow(Course(record(line).until(150))) is not None


def test_short_steps_and_an_accuracy_of_no_use_are_slow() -> None:
    line = (1.1 - 0.35 * np.arange(STEPS) / STEPS) * noise(STEPS, 0.005)
    facts = {"loss": LossFacts("cross_entropy", classes=3, class_counts=(20, 60, 20), bound=0.0, constant=0.95)}
    guessing, answering = [0.6] * 10, [0.6, 0.6, 0.62, 0.63, 0.65, 0.67, 0.7, 0.72, 0.75, 0.75]
    validation = list(np.linspace(1.1, 0.8, 10))
    short = {"update_ratios": table(*[1e-4] * 4)}
    assert alarms(evaluated(record(line, facts, **short), validation, guessing)) == ["lr_too_low"]
    assert alarms(evaluated(record(line, facts, **short), validation, answering)) == []
    assert alarms(evaluated(record(line, facts), validation, guessing)) == [], "steps are as long as usual"


def test_what_takes_logarithms_is_not_given_probabilities() -> None:
    def given(function: str, least: float, largest: float) -> list[str]:
        output = TensorFacts("float32", (32, 10), least=least, largest=largest)
        return alarms(record(learning(), {"loss": LossFacts(function, output=output)}))

    assert given("kl_div", 0.05, 0.4) == ["wrong_loss"]
    assert given("nll_loss", -3.0, 4.0) == ["wrong_loss"]
    assert given("kl_div", -9.0, -0.1) == []


def test_counts_are_not_negative() -> None:
    for least, told in ((-0.3, ["wrong_loss"]), (0.0, [])):
        seen = LossFacts("poisson_nll_loss", target=TensorFacts("float32", (32,), least=least, largest=9.0))
        assert alarms(record(learning(), {"loss": seen})) == told


def test_a_plain_recurrent_layer_over_many_positions_loses_what_it_read() -> None:
    layers = (LayerFacts("memory", "RNN", (64, 64), 64, 0.0, 0.1), LayerFacts("head", "Linear", (10, 64), 64, 0.0, 0.1))
    long = {"layers": layers, "inputs": TensorFacts("float32", (32, 60, 8))}
    lively = {"update_ratios": table(*[2e-3] * 4)}
    (found,) = diagnose(record(flat(), long, **lively)).findings
    assert (found.code, found.layer) == ("vanishing_gradient", "memory")
    assert "60 positions" in found.explanation
    gated = (replace(layers[0], kind="LSTM"), layers[1])
    assert alarms(record(flat(), long | {"layers": gated}, **lively)) == ["label_error"]


# --- what is no sickness, and what hides behind another one -----------------------------------------------------------


def test_an_accuracy_that_falls_while_the_fit_goes_on_is_not_lost_to_the_rate() -> None:
    """Targets that are wrong where it trains: the more it fits, the fewer answers are right."""
    facts = {"steps_per_epoch": 40, "batch_size": 32}
    falling = [0.79, 0.76, 0.7, 0.68, 0.66, 0.65, 0.65, 0.64, 0.64, 0.64]
    rising = [2.3, 2.35, 2.4, 2.6, 2.8, 3.0, 3.2, 3.3, 3.5, 3.6]
    found = alarms(evaluated(record(learning(), facts, update_ratios=table(*[0.02] * 4)), rising, falling))
    assert found == ["label_error"]


def test_what_is_compared_within_a_batch_has_no_constant_answer_and_wrong_pairs_show_in_validation() -> None:
    losses = (4.5 - 2.5 * (np.arange(STEPS) / STEPS) ** 2) * noise(STEPS)
    facts = {"loss": LossFacts("cross_entropy", output=TensorFacts("float32", (64, 64)), classes=64)}
    assert alarms(evaluated(record(losses, facts), [5.7, 5.7, 5.9, 6.1, 6.6, 6.9, 7.2, 7.6, 8.0, 8.3])) == [
        "label_error"
    ]
    assert alarms(evaluated(record(losses, facts), [5.7, 5.5, 5.2, 4.9, 4.6, 4.3, 4.0, 3.7, 3.4, 3.1])) == []


@pytest.mark.parametrize(("samples", "told"), [(2, ["batch_size"]), (4, ["batch_size"]), (64, [])])
def test_hardly_any_others_to_be_told_from(samples: int, told: list[str]) -> None:
    output = TensorFacts("float32", (samples, samples))
    loss = LossFacts("cross_entropy", "matmul", output, classes=samples, class_counts=(1,) * samples)
    assert alarms(record(learning(), {"loss": loss})) == told
    assert alarms(record(learning(), {"loss": replace(loss, output_operation="linear")})) == []


def test_a_layer_without_any_gradient_among_layers_with_one_is_cut_off() -> None:
    known = record(flat())
    norms = np.array(known.series.norms)
    norms[:, 0] = norms[:, 2] = 0
    assert alarms(replace(known, series=replace(known.series, norms=norms)))[0] == "frozen_params"
    assert alarms(replace(record(learning()), series=replace(record(learning()).series, norms=norms))) == [], (
        "it learns"
    )
    small = np.array(known.series.norms)
    small[:, :2] = 1e-9
    assert alarms(replace(known, series=replace(known.series, norms=small)))[0] == "vanishing_gradient"


def test_of_two_layers_the_first_has_to_have_next_to_nothing() -> None:
    known = record(flat())
    for share, told in ((1e-19, "vanishing_gradient"), (1e-4, "label_error")):
        series = replace(known.series, layers=LAYERS[:2], norms=known.series.norms[:, :2] * np.array([share, 1.0]))
        assert alarms(replace(known, series=series, probes=Probes()))[0] == told


def test_adapters_that_are_zero_throughout_are_a_start_that_leads_nowhere() -> None:
    """Whatever else of the model is normalised, and frozen."""
    known = record(flat())
    adapters = tuple(LayerFacts(name, "Linear", (64, 4), 4, 0.0, 0.0, 1.0) for name in LAYERS)
    norm = LayerFacts("norm", "LayerNorm", (64,), None, 1.0, 0.0, requires_grad=False)
    still = replace(known.series, norms=np.zeros((STEPS, 4)))
    assert (
        first_tenth(replace(known, facts=replace(known.facts, layers=(*adapters, norm)), series=still))[0] == "bad_init"
    )


def test_letters_are_not_classes_out_of_balance() -> None:
    counts = (1904, 764, 180, 319, 20, 5)
    target = TensorFacts("int64", (32,), least=0.0, largest=5.0)
    loss = LossFacts("cross_entropy", target=target, classes=6, class_counts=counts, bound=0.0, constant=1.2)
    reads = (
        LayerFacts("embedding", "Embedding", (6, 8), None, 0.0, 1.0),
        LayerFacts("head", "Linear", (6, 8), 8, 0.0, 0.1),
    )
    assert alarms(record(learning(), {"loss": loss, "layers": reads})) == []
    assert alarms(record(learning(), {"loss": loss})) == ["class_imbalance"]


def test_a_term_that_grows_for_its_own_sake() -> None:
    falling = 60.0 - np.exp(np.arange(STEPS) / 18)
    facts: dict[str, Any] = {"loss": LossFacts()}
    assert alarms(record(falling, facts))[0] == "wrong_loss"
    density = 60.0 - 120 * (1 - np.exp(-np.arange(STEPS) / 60))
    assert alarms(record(density * noise(STEPS), facts)) == []


def test_a_loss_that_falls_without_any_better_answer_measures_something_else() -> None:
    validation = list(np.linspace(0.5, 0.1, 10))
    stays, grows = [0.27, 0.28, *[0.3] * 8], [0.27, 0.4, *[0.9] * 8]
    facts: dict[str, Any] = {"loss": LossFacts(), "steps_per_epoch": 40, "batch_size": 32}
    assert alarms(evaluated(record(learning(), facts), validation, stays)) == ["label_error"]
    assert alarms(evaluated(record(learning(), facts), validation, grows)) == []
    rare = LossFacts("binary_cross_entropy_with_logits", target=TensorFacts("float32", (64, 24), mean=0.005))
    assert alarms(evaluated(record(learning(), {"loss": rare}), validation, stays)) == ["class_imbalance"]


def test_a_policy_s_loss_measures_nothing() -> None:
    losses = -0.4 * np.exp(-((np.arange(STEPS) - 60.0) ** 2) / 2000) - 0.1 * (noise(STEPS, 0.3) - 1)
    losses[0] = -0.001
    assert alarms(record(losses, {"loss": LossFacts()})) == []


def test_weights_that_are_gone_are_found_whatever_took_them() -> None:
    gone = table(*[5.0 * np.exp(-PROBED / 30.0)] * 4)
    facts = {"loss": LossFacts("mse_loss", output=TensorFacts("float32", (32, 1)))}
    assert "over_regularised" in alarms(record(flat(level=0.5), facts, weight_norms=gone))
    assert "over_regularised" not in alarms(record(flat(level=0.5), facts, weight_norms=table(*[5.0 * 0.5] * 4)))


def test_a_spike_in_the_last_steps_is_told_at_the_end() -> None:
    losses = learning()
    losses[-4:] = 1.5
    steady, jumped = [0.5, 0.3, 0.25, *[0.2] * 7], [0.5, 0.3, 0.25, *[0.2] * 6, 1.6]
    (found,) = diagnose(evaluated(record(losses), jumped)).findings
    assert (found.code, found.first_bad_step) == ("loss_spike", STEPS - 3)
    assert alarms(evaluated(record(losses), steady)) == [], "its validation is as before"
    assert alarms(evaluated(record(losses, {"total_steps": 2 * STEPS}), jumped)) == [], "it may come back"


def test_weights_drawn_too_large_are_above_a_constant_answer_for_half_of_the_run() -> None:
    losses = (3.0 + 18 * np.exp(-np.arange(STEPS) / 60)) * noise(STEPS)
    wide = tuple(LayerFacts(name, "Linear", (64, 64), 64, 0.0, 1.0) for name in LAYERS)
    assert alarms(record(losses, {"layers": wide}))[0] == "bad_init"
    assert alarms(record((1.0 + 20 * np.exp(-np.arange(STEPS) / 20)) * noise(STEPS), {"layers": wide})) == []


def test_layers_in_a_list_are_found_before_the_first_step() -> None:
    (found,) = diagnose(record(learning(), {"strays": 6}).until(30)).findings
    assert (found.code, found.first_bad_step) == ("frozen_params", 0)
    assert "6 parameters that the model does not have" in found.explanation
