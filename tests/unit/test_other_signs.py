"""What validation, facts and steps say that the training loss does not, and what is no sickness although it looks like one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.written_records import (
    LAYERS,
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
from workers.watch import symptoms
from workers.watch.course import Course
from workers.watch.diagnosis import diagnose
from workers.watch.record import Evaluations, LayerFacts, LossFacts, Probes, TensorFacts

pytestmark = pytest.mark.unit


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
    assert alarms(evaluated(record(learning(), facts), validation, stays)) == ["wrong_loss"]
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
