"""What is known to be wrong from the first pass alone, and what looks like it and is right."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tests.written_records import LAYERS, STEPS, alarms, first_tenth, flat, learning, record
from workers.watch.diagnosis import diagnose
from workers.watch.facts import FirstPass
from workers.watch.record import Facts, LayerFacts, LossFacts, TensorFacts

pytestmark = pytest.mark.unit


def seen(model: nn.Module, inputs: torch.Tensor) -> Facts:
    first = FirstPass(model, {"x": inputs}, torch.optim.SGD(model.parameters(), lr=0.1), see_calls=True)
    with first.watch():
        model(inputs)
    return first.seen()


# --- normalisation ----------------------------------------------------------------------------------------------------


def test_values_that_a_batch_norm_takes_a_mean_of_are_counted_as_it_is_called() -> None:
    wide, narrow = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    model = nn.Sequential(wide, nn.AdaptiveAvgPool2d(1), narrow)
    assert seen(model, torch.randn(2, 3, 5, 5)).batch_statistics == 2
    narrow.eval()
    assert seen(model, torch.randn(2, 3, 5, 5)).batch_statistics == 50, "held still, it has statistics of its own"
    assert seen(nn.Linear(3, 3), torch.randn(2, 3)).batch_statistics is None
    assert not narrow._forward_pre_hooks


@pytest.mark.parametrize(("values", "told"), [(2, ["batch_size"]), (4, []), (None, [])])
def test_a_mean_of_two_values_is_too_thin(values: int | None, told: list[str]) -> None:
    known = record(learning(), {"batch_statistics": values, "batch_size": 32})
    assert first_tenth(known) == told
    if told:
        assert "mean and deviation of 2 values" in diagnose(known).findings[0].explanation


# --- answers ----------------------------------------------------------------------------------------------------------


def given(shape: tuple[int, ...], mean: float = 0.0, std: float = 1.0) -> TensorFacts:
    return TensorFacts("float32", shape, mean - 2 * std, mean + 2 * std, mean, std, rows=32)


@pytest.mark.parametrize(("shape", "told"), [((32, 1), ["output_activation"]), ((32, 2), [])])
def test_a_softmax_of_a_single_answer_says_nothing(shape: tuple[int, ...], told: list[str]) -> None:
    loss = LossFacts("binary_cross_entropy", "softmax", given(shape, 0.5, 0.1), given(shape, 0.5, 0.1), bound=0.0)
    assert first_tenth(record(learning(), {"loss": loss})) == told


@pytest.mark.parametrize(
    ("mean", "std", "told"),
    [(150.0, 70.0, ["output_activation"]), (0.0, 70.0, ["output_activation"]), (0.0, 1.0, []), (0.3, 1.2, [])],
)
def test_an_answer_that_is_normalised_cannot_come_to_targets_elsewhere(
    mean: float, std: float, told: list[str]
) -> None:
    loss = LossFacts("mse_loss", "batch_norm", given((32, 1)), given((32, 1), mean, std), bound=0.0)
    assert first_tenth(record(learning(), {"loss": loss})) == told
    own = tuple(LayerFacts(name, "Linear", (64, 64), 64, 0.0, 0.1) for name in LAYERS[:-1])
    gain = (*own, LayerFacts(LAYERS[-1], "BatchNorm1d", (1,)))
    assert first_tenth(record(learning(), {"loss": loss, "layers": gain})) == [], "a gain and a shift bring it there"


# --- classes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "told"),
    [((7.0, 270.0), ["class_imbalance"]), ((270.0, 7.0), []), ((5.0, 1.0), []), ((1.0, 1.0), []), ((), [])],
)
def test_weights_that_make_the_frequent_class_count_for_more(weights: tuple[float, ...], told: list[str]) -> None:
    loss = LossFacts("cross_entropy", classes=2, class_counts=(6, 266), weighted=True, class_weights=weights, bound=0.0)
    known = record(learning(), {"loss": loss})
    assert first_tenth(known) == told
    if told:
        assert "Weight each class by the inverse" in diagnose(known).findings[0].suggestion


def test_the_weights_of_classes_are_seen() -> None:
    model, inputs, labels = nn.Linear(4, 2), torch.randn(16, 4), torch.arange(16) % 2
    first = FirstPass(model, {"x": inputs}, torch.optim.SGD(model.parameters(), lr=0.1), see_calls=True)
    with first.watch():
        loss = nn.functional.cross_entropy(model(inputs), labels, weight=torch.tensor([1.0, 3.0]))
    first.took(loss * 16, torch.tensor(16.0), None)  # type: ignore[arg-type]
    assert first.seen().loss.class_weights == (1.0, 3.0)


# --- inputs -----------------------------------------------------------------------------------------------------------


def test_inputs_of_nearly_nothing_explain_a_flat_loss_and_alarm_nobody_without_it() -> None:
    faint = TensorFacts("float32", (32, 64), 0.0, 0.0039, 0.0012, 0.0015, 0.0039, 0.003, 0.0, 0.0017, rows=32)
    (found,) = diagnose(record(flat(), {"inputs": faint}).until(STEPS // 2)).findings
    assert found.code == "unnormalised_input"
    assert "divided twice" in found.suggestion
    assert alarms(record(learning(), {"inputs": faint})) == []


def test_a_first_layer_without_gradient_behind_huge_inputs_is_not_cut_off() -> None:
    huge = TensorFacts("float32", (32, 24, 1), 15e3, 46e3, 30e3, 7e3, 43e3, 30e3, 7e3, 7e3, rows=32)
    norms = np.ones((STEPS, 4))
    norms[:, 0] = 0.0
    known = record(learning(last=1.5), {"inputs": huge})
    known = replace(known, series=replace(known.series, norms=norms))
    assert first_tenth(known) == ["unnormalised_input"]
    plain = replace(known, facts=replace(known.facts, inputs=None))
    assert first_tenth(plain) == ["frozen_params"]


# --- targets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column_first", [True, False])
def test_a_column_of_answers_less_a_row_of_targets_is_seen_in_any_loss(column_first: bool) -> None:
    model, inputs, targets = nn.Linear(4, 1), torch.randn(16, 4), torch.randn(16)
    seen_first = FirstPass(model, {"x": inputs}, torch.optim.SGD(model.parameters(), lr=0.1), see_calls=True)
    with seen_first.watch():
        outputs = model(inputs)
        loss = (outputs - targets if column_first else targets - outputs).square().mean()
    seen_first.took(loss * 16, torch.tensor(16.0), None)  # type: ignore[arg-type]
    facts = seen_first.seen()
    assert facts.loss.outer == (16, 16)
    (found,) = diagnose(replace(record(learning()), facts=replace(facts, layers=()))).findings
    assert found.code == "wrong_loss"
    assert "compares each with every other" in found.explanation


def test_pairs_of_answers_are_meant() -> None:
    model, inputs = nn.Linear(4, 1), torch.randn(16, 4)
    first = FirstPass(model, {"x": inputs}, torch.optim.SGD(model.parameters(), lr=0.1), see_calls=True)
    with first.watch():
        outputs, targets = model(inputs), torch.randn(16)
        pairs = (outputs - outputs.squeeze(1)) * (targets[:, None] - targets)
    first.took(pairs.mean() * 16, torch.tensor(16.0), None)  # type: ignore[arg-type]
    assert first.seen().loss.outer == ()


def test_classes_that_are_not_there_are_not_rare() -> None:
    for counts, told in (((100, 100, 0, 0), []), ((400, 400, 10, 0), ["class_imbalance"])):
        loss = LossFacts("cross_entropy", classes=4, class_counts=counts, bound=0.0)
        assert first_tenth(record(learning(), {"loss": loss})) == told


def test_a_column_of_ids_among_numbers_is_no_scale() -> None:
    mixed = TensorFacts("float32", (32, 60), -2.0, 239.0, 60.0, 77.0, 235.0, 235.0, 0.6, 2.5, rows=32)
    assert first_tenth(record(flat(), {"inputs": mixed})) == ["unnormalised_input"]
    known = record(flat())
    table = LayerFacts("wide", "Embedding", (240, 2), 2, 0.0, 1.0)
    assert first_tenth(record(flat(), {"inputs": mixed, "layers": (*known.facts.layers, table)})) == []


def test_words_that_are_told_and_read_are_not_rare_classes_although_some_are_only_read() -> None:
    counts = tuple(round(1000 / (1 + place)) for place in range(300))
    loss = LossFacts("cross_entropy", classes=300, class_counts=counts, bound=0.0)
    for rows, told in ((303, []), (5000, ["class_imbalance"])):
        read = (LayerFacts("words", "Embedding", (rows, 32), 32, 0.0, 1.0), *record(flat()).facts.layers)
        assert first_tenth(record(learning(), {"loss": loss, "layers": read})) == told
