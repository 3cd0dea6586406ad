"""Verdicts on recorded runs: each rule with a run that has the sickness and healthy ones that look a little like it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray

from workers.watch.course import MIN_STEPS
from workers.watch.diagnosis import diagnose
from workers.watch.findings import Judgement
from workers.watch.record import Facts, Record, Series

pytestmark = pytest.mark.unit

LAYERS = tuple(f"layer{number}" for number in range(8))
Floats = NDArray[np.float64]


def noise(*shape: int, seed: int = 0) -> Floats:
    return np.exp(0.2 * np.random.default_rng(seed).standard_normal(shape))


def learning(steps: int = 200, first: float = 2.3, last: float = 0.2) -> Floats:
    return (last + (first - last) * np.exp(-np.arange(steps) / (steps / 5))) * noise(steps, seed=1) ** 0.2


def flat(steps: int = 200, level: float = 2.3) -> Floats:
    return level * noise(steps, seed=2) ** 0.05


def norms(steps: int = 200, layer_ratio: float = 1.0) -> Floats:
    """``layer_ratio``: of a layer's norm over that of the layer after it."""
    return layer_ratio ** np.arange(len(LAYERS))[::-1] * noise(steps, len(LAYERS))


def verdict(losses: Floats, gradient_norms: Floats, *, total: int | None = None, warmup: int = 0) -> Judgement:
    steps = np.arange(1, len(losses) + 1)
    facts = Facts(total_steps=total or len(losses), warmup_steps=warmup)
    return diagnose(Record(facts, Series.of(LAYERS, steps, losses, gradient_norms)))


def codes(judgement: Judgement) -> list[str]:
    return [finding.code for finding in judgement.findings]


def test_a_run_that_learns_is_healthy_and_the_sentence_has_numbers() -> None:
    found = verdict(learning(), norms())
    assert (found.verdict, codes(found)) == ("healthy", [])
    assert "layer" in found.sentence


@pytest.mark.parametrize("steps", [0, 1, MIN_STEPS - 1])
def test_too_little_to_judge(steps: int) -> None:
    assert verdict(flat(steps), norms(steps, 1e-3)).verdict == "unknown"


def test_vanishing() -> None:
    found = verdict(flat(), norms(layer_ratio=0.2))
    assert (found.verdict, codes(found)) == ("critical", ["vanishing_gradient"])
    evidence = found.findings[0].evidence
    assert evidence["first_layers_norm"] < 1e-3 * evidence["last_layers_norm"]
    assert found.findings[0].suggestion


def test_the_layer_where_the_gradient_is_lost_is_named() -> None:
    gradient_norms = norms()
    gradient_norms[:, :3] *= 1e-6
    finding = verdict(flat(), gradient_norms).findings[0]
    assert finding.layer in ("layer2", "layer3")


def test_the_bias_of_the_output_is_no_sign_of_life() -> None:
    """It learns in a few steps how frequent the classes are, and the loss falls to the logarithm of their number."""
    losses = flat(400, level=2.303)
    losses[:15] *= np.linspace(1.25, 1.0, 15)
    assert codes(verdict(losses, norms(400, layer_ratio=0.2))) == ["vanishing_gradient"]
    assert codes(verdict(losses, norms(400))) == [], "the gradients are lively"
    slow = learning(400, first=2.9, last=2.2)  # the same gain, but all along the run
    assert codes(verdict(np.linspace(2.9, 2.25, 400), norms(400, layer_ratio=0.2))) == []
    assert codes(verdict(slow, norms(400))) == []


def test_no_symptom_no_vanishing() -> None:
    """The traps: a job that learns with tiny first gradients, one still in warm-up, one that has hardly begun."""
    small = norms(layer_ratio=0.2)
    assert verdict(learning(), small).verdict == "healthy"
    assert verdict(flat(), small, warmup=500).verdict == "healthy"
    assert verdict(flat(), small, total=10_000).verdict == "healthy"


def test_a_flat_loss_with_lively_gradients_is_not_called_vanishing() -> None:
    assert codes(verdict(flat(), norms())) == []


def exploding(steps: int = 200, start: int = 120) -> tuple[Floats, Floats]:
    growth = np.where(np.arange(steps) < start, 1.0, 10.0 ** np.minimum((np.arange(steps) - start) / 10, 6))
    return learning(steps) * growth, norms(steps) * growth[:, None]


def test_an_explosion_after_progress_names_the_step_where_it_left() -> None:
    """With losses and norms alone a climb within a tenth of the run may be called a spike that stays, too."""
    losses, gradient_norms = exploding()
    found = verdict(losses, gradient_norms)
    assert found.verdict == "critical"
    assert codes(found)[0] in ("loss_spike", "exploding_gradient")
    assert 120 <= found.findings[0].first_bad_step <= 150
    assert found.findings[0].layer in LAYERS


def test_no_symptom_no_explosion() -> None:
    """The traps: norms that grow while the loss falls, one spike that is over, large norms from the start."""
    _, grown = exploding()
    assert verdict(learning(), grown).verdict == "healthy"
    spiked_losses, spiked_norms = learning(), norms()
    spiked_losses[100] *= 50
    spiked_norms[100] *= 1e4
    assert verdict(spiked_losses, spiked_norms).verdict == "healthy"
    assert verdict(learning(first=1e4, last=10), norms() * 1e5).verdict == "healthy"


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_not_finite_names_step_and_layer(value: float, where: str) -> None:
    losses, gradient_norms = learning(), norms()
    if where == "loss":
        losses[30:] = value
    else:
        gradient_norms[30:, :5] = value
    found = verdict(losses, gradient_norms)
    assert (found.verdict, codes(found)) == ("critical", ["nonfinite_gradient"])
    finding = found.findings[0]
    assert finding.first_bad_step == 31
    assert finding.layer == (None if where == "loss" else "layer4")  # nearest the output: where it came in


def test_not_finite_needs_no_patience() -> None:
    losses = learning(3)
    losses[1] = np.nan
    assert codes(verdict(losses, norms(3))) == ["nonfinite_gradient"]


def test_a_layer_without_gradients_does_not_divide_by_zero() -> None:
    gradient_norms = norms()
    gradient_norms[:, 2] = 0.0
    assert verdict(learning(), gradient_norms).verdict == "healthy"
    assert verdict(flat(), gradient_norms * 0.0).verdict in ("healthy", "warning", "critical")


def test_a_judgement_is_plain_json() -> None:
    for found in (verdict(*exploding()), verdict(flat(), norms(layer_ratio=0.2)), verdict(learning(), norms())):
        document = json.loads(json.dumps(found.as_dict(), allow_nan=False))
        assert document["verdict"] == found.verdict
        for finding in document["findings"]:
            assert finding.keys() == {
                "code",
                "severity",
                "first_bad_step",
                "layer",
                "evidence",
                "explanation",
                "suggestion",
                "rank",
                "consequences",
            }
