"""The rules on real small trainings: each sickness, and a healthy run that looks like it for each trap of the rules."""

from __future__ import annotations

import dataclasses
import time
from functools import cache

import numpy as np
import pytest
import torch

from tests.rules_cases import HEALTHY, SICK
from workers.repair.ladder import ANSWERS, REBUILDS
from workers.watch.diagnosis import diagnose
from workers.watch.explanations import WORDS, finding
from workers.watch.findings import Found, Judgement
from workers.watch.record import Facts, LossFacts, Record, Series
from workers.watch.watching import Entry, Watch, timeline

pytestmark = pytest.mark.unit

LOOKS = 20


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@cache
def run(name: str) -> Record:
    return (SICK[name][1] if name in SICK else HEALTHY[name])(0)


@cache
def told(name: str) -> tuple[Entry, ...]:
    """The time line of a run: several tests read it, and a look at every twentieth of a run takes as long as the run."""
    return tuple(timeline(run(name), LOOKS))


def alarms(judgement: Judgement) -> list[str]:
    return [found.code for found in judgement.findings if found.severity != "note"]


@pytest.mark.parametrize("name", SICK)
def test_the_first_code_of_a_sick_run_is_right_when_first_seen_and_at_the_end(name: str) -> None:
    wanted = SICK[name][0]
    record = run(name)
    codes = alarms(diagnose(record))
    assert codes, "nothing was found"
    assert codes[0] in wanted if isinstance(wanted, tuple) else codes[0] == wanted
    first = next(entry for entry in told(name) if entry.event == "raised")
    assert first.finding.code in wanted if isinstance(wanted, tuple) else first.finding.code == wanted
    assert first.finding.first_bad_step <= first.step


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_raises_no_alarm_at_any_time(name: str) -> None:
    record = run(name)
    for look in range(1, LOOKS + 1):
        step = max(1, record.total_steps * look // LOOKS)
        assert alarms(diagnose(record.until(step))) == [], f"at step {step}"
    assert diagnose(record).verdict == "healthy"


def test_most_sicknesses_are_found_early() -> None:
    """In the first tenth of the run 45 %, within its half 90 %."""
    shares = []
    for name in SICK:
        record = run(name)
        if name in ("spike that stays", "rate rises late"):
            continue  # these are well until half of it is over
        raised = [entry.step for entry in told(name) if entry.event == "raised"]
        shares.append(raised[0] / record.total_steps if raised else 1.0)
    assert np.mean(np.array(shares) <= 0.1) >= 0.45
    assert np.mean(np.array(shares) <= 0.5) >= 0.9


# --- what must not matter ---------------------------------------------------------------------------------------------


def scaled(record: Record, factor: float) -> Record:
    """As if the loss were in another unit: its gradients are, too."""
    loss, series = record.facts.loss, record.series
    constant = None if loss.constant is None else loss.constant * factor
    facts = dataclasses.replace(record.facts, loss=dataclasses.replace(loss, constant=constant))
    held = dict(record.evaluations.metrics)
    if "loss" in held:
        held["loss"] = held["loss"] * factor
    return dataclasses.replace(
        record,
        facts=facts,
        series=dataclasses.replace(series, losses=series.losses * factor, norms=series.norms * factor),
        probes=dataclasses.replace(record.probes, largest=record.probes.largest * factor),
        evaluations=dataclasses.replace(record.evaluations, metrics=held),
    )


@pytest.mark.parametrize(
    "name", ["deep sigmoid", "rate too high, adam", "dead layer", "overfitting", "plain", "near convergence"]
)
@pytest.mark.parametrize("factor", [1e-3, 50.0])
def test_the_unit_of_the_loss_does_not_matter(name: str, factor: float) -> None:
    record = run(name)
    assert alarms(diagnose(scaled(record, factor))) == alarms(diagnose(record))


@pytest.mark.parametrize("name", [*SICK, "plain", "batch of two"])
def test_names_of_layers_do_not_matter(name: str) -> None:
    record = run(name)
    others = {layer: f"net.{number}.x" for number, layer in enumerate(record.series.layers)}
    others |= {fact.name: others.get(fact.name, f"{fact.name}.x") for fact in record.facts.layers}
    renamed = dataclasses.replace(
        record,
        facts=dataclasses.replace(
            record.facts,
            layers=tuple(dataclasses.replace(fact, name=others[fact.name]) for fact in record.facts.layers),
        ),
        series=dataclasses.replace(record.series, layers=tuple(others[layer] for layer in record.series.layers)),
        probes=dataclasses.replace(record.probes, layers=tuple(others[layer] for layer in record.probes.layers)),
    )
    before, after = diagnose(record).findings, diagnose(renamed).findings
    assert [found.code for found in after] == [found.code for found in before]
    assert [found.layer for found in after] == [others.get(found.layer or "", found.layer) for found in before]


@pytest.mark.parametrize("name", HEALTHY)
def test_with_losses_and_norms_alone_a_healthy_run_stays_healthy(name: str) -> None:
    """What jobs of scripts and old runs have."""
    series = run(name).series
    bare = Record(Facts(), Series.of(series.layers, series.steps, series.losses, series.norms))
    for step in (30, 60, 150, 300):
        assert alarms(diagnose(bare.until(step))) == []
    assert alarms(diagnose(Record(Facts(total_steps=len(series.steps)), bare.series))) == []


@pytest.mark.parametrize(
    "name", ["deep sigmoid", "rate too high, regression", "nan by the loss", "exploding deep", "wrong sign"]
)
def test_with_losses_and_norms_alone_much_is_still_found(name: str) -> None:
    record = run(name)
    loss = LossFacts(function=record.facts.loss.function)
    bare = Record(
        Facts(total_steps=record.total_steps, loss=loss),
        Series.of(record.series.layers, record.series.steps, record.series.losses, record.series.norms),
    )
    assert alarms(diagnose(bare))


# --- evidence, words, time --------------------------------------------------------------------------------------------


def test_a_spike_names_its_step_and_is_not_told_before() -> None:
    record = run("spike that stays")
    found = diagnose(record).findings[0]
    assert 149 <= found.first_bad_step <= 152
    assert alarms(diagnose(record.until(148))) == []


def test_a_late_nan_names_its_step_and_hides_what_follows() -> None:
    found = diagnose(run("nan by the loss")).findings
    assert (found[0].code, found[0].first_bad_step, found[0].severity) == ("nonfinite_gradient", 100, "critical")
    assert found[0].layer == "4", "the layer nearest the output has it first"


def test_a_dead_layer_is_named_and_small_gradients_before_it_follow_from_it() -> None:
    found = diagnose(run("dead layer")).findings
    assert [each.code for each in found] == ["dying_relu"]
    assert found[0].layer == "3", "the activation behind the layer whose bias is far below zero"
    assert any(each.startswith("vanishing_gradient") for each in found[0].consequences)


def test_every_finding_is_four_sentences_with_consent_and_a_check() -> None:
    for name in SICK:
        for found in diagnose(run(name)).findings:
            consents = ("health.allow: [", "only you can decide", "Nothing of it is changed while the job trains")
            assert any(consent in found.explanation for consent in consents)
            for consent, known in (("live", ANSWERS), ("weights", REBUILDS), ("architecture", REBUILDS)):
                promised = f"health.allow: [{consent}]" in found.explanation
                assert promised <= (found.code in known), "what is promised is done"
            assert "It worked when" in found.explanation
            assert "{" not in found.explanation
            assert found.suggestion


def test_every_code_has_words_without_evidence_too() -> None:
    for code in WORDS:
        assert "{" not in finding(Found(code, "warning", 0)).explanation


def test_nothing_is_repeated() -> None:
    for name in SICK:
        open_codes: set[str] = set()
        for entry in told(name):
            if entry.event == "raised":
                assert entry.finding.code not in open_codes or entry.finding.severity == "critical"
                open_codes.add(entry.finding.code)
            else:
                open_codes.discard(entry.finding.code)


def test_what_passes_is_cleared_once() -> None:
    """The weights become NaN for some steps and are put back: as after a rollback."""
    record = run("plain")
    losses = record.series.losses.copy()
    losses[100:110] = np.nan
    spoilt = dataclasses.replace(record, series=dataclasses.replace(record.series, losses=losses))
    entries = [(entry.event, entry.finding.code) for entry in timeline(spoilt, 60)]
    assert entries == [("raised", "nonfinite_gradient"), ("cleared", "nonfinite_gradient")]


def test_looking_again_without_a_new_step_tells_nothing_new() -> None:
    watch, record = Watch(), run("nan by the loss")
    assert [found.code for found in watch.look(record).raised] == ["nonfinite_gradient"]
    again = watch.look(record)
    assert (list(again.raised), list(again.cleared)) == ([], [])
    assert again.judgement.verdict == "critical"


def test_too_little_to_judge() -> None:
    assert (
        diagnose(Record(Facts(), Series.of((), np.zeros(0, np.int64), np.zeros(0), np.zeros((0, 0))))).verdict
        == "unknown"
    )
    assert diagnose(run("plain").until(5)).verdict == "unknown"


def test_a_long_run_is_judged_within_20_ms() -> None:
    steps, layers = 4096, 100
    random = np.random.default_rng(0)
    losses = 2.3 * np.exp(-np.arange(steps) / 1000) * np.exp(0.1 * random.standard_normal(steps)) + 0.1
    norms = np.exp(0.3 * random.standard_normal((steps, layers)))
    names = tuple(f"layer{number}" for number in range(layers))
    record = Record(
        Facts(total_steps=8192, loss=LossFacts("cross_entropy", classes=10)),
        Series.of(names, np.arange(1, steps + 1), losses, norms),
    )
    diagnose(record)
    spent = []
    for _ in range(7):
        began = time.process_time()
        diagnose(record)
        spent.append(time.process_time() - began)
    assert min(spent) < 0.020
