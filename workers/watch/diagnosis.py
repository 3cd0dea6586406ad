"""The verdict on a run from its record: facts, then symptoms, then causes.

Symptom first, cause second: only a job that fails is asked why. The first cause is named; what follows from it is folded under it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from workers.watch import causes, explanations, fact_rules, measured_facts, rank_rules
from workers.watch.course import MIN_STEPS, Course
from workers.watch.findings import ORDER, Found, Judgement
from workers.watch.record import Record
from workers.watch.symptom import Symptom
from workers.watch.symptoms import EARLY_PATIENCE, STUCK_PATIENCE, stuck, symptoms

# Codes that can make a job fail in any way: with one of these, what its failing looks like is a consequence.
ROOTS = (
    "nonfinite_data",
    "silent_corruption",
    "rank_divergence",
    "wrong_loss",
    "output_activation",
    "bad_init",
    "grad_accumulation",
    "frozen_params",
    "lr_zero",
)
BY_EXCLUSION = ("plateau", "label_error", "slow_convergence", "oscillating_loss")  # nothing follows into these


def diagnose(record: Record) -> Judgement:
    """Pure, and fast enough to be asked every few seconds. Findings are sorted: the first cause first."""
    course = Course(record)
    if not len(course.steps) and not record.facts.layers:
        return Judgement("unknown", "No step has been measured yet.")
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # medians of what was not measured
        found = _found(course)
    findings = [explanations.finding(_of_the_job(cause, record.origin), consequences) for cause, consequences in found]
    alarms = [finding for finding in findings if finding.severity != "note"]
    if alarms:
        worst = max(alarms, key=lambda finding: ORDER.index(finding.severity)).severity
        return Judgement("critical" if worst == "critical" else "warning", alarms[0].explanation, findings)
    if len(course.steps) < MIN_STEPS:
        few = f"Only {len(course.steps)} steps were measured; {MIN_STEPS} are needed for a verdict."
        return Judgement("unknown", few, findings)
    return Judgement("healthy", _healthy(record), findings)


def _of_the_job(found: Found, origin: int) -> Found:
    """Steps as the job counts them."""
    return replace(found, step=found.step + origin) if found.step and origin else found


def _found(course: Course) -> list[tuple[Found, list[str]]]:
    known = [*rank_rules.findings(course), *fact_rules.findings(course)]
    measured = sorted(measured_facts.findings(course), key=lambda each: each.step)
    chains = [(symptom, causes.causes(course, symptom)) for symptom in symptoms(course)]
    early = _early(course)
    if early:
        chains.append((early[0], early[1]))
    failing = [chain for chain in chains if chain[1]]
    roots = sorted((each for each in known if _root(each)), key=lambda each: (each.step, ROOTS.index(each.code)))
    others = [each for each in known if not _root(each)]
    if not roots and not failing:
        first_measured = [(measured[0], _told(measured[1:], measured[0]))] if measured else []
        return [*first_measured, *((each, []) for each in others)]
    result: list[tuple[Found, list[str]]] = []
    consequences = [*(each for _, matched in failing for each in matched), *measured]
    if roots and _explains(roots[0], failing, course):
        first = replace(roots[0], severity="critical") if failing else roots[0]
        rest = [*roots[1:], *consequences]
    elif failing:
        first, rest = failing[0][1][0], [*roots, *consequences[1:]]
        for root in roots:
            result.append((root, []))
        rest = consequences[1:]
    else:
        first, rest = roots[0], roots[1:]
    return [(first, _told(rest, first)), *result, *((each, []) for each in others if each.code != first.code)]


def _root(found: Found) -> bool:
    return found.code in ROOTS and found.severity != "note"


def _explains(root: Found, failing: Sequence[tuple[Symptom, Sequence[Found]]], course: Course) -> bool:
    """A fact explains failing that comes after it, but not a validation loss that walks away. Steps of symptoms are those of a smoothed loss."""
    slack = max(MIN_STEPS, round(0.1 * course.total)) if root.step else 0
    return all(
        symptom.kind != "walks_away" and root.step <= max(symptom.step, matched[0].step) + slack
        for symptom, matched in failing
    )


def _early(course: Course) -> tuple[Symptom, list[Found]] | None:
    if course.past(STUCK_PATIENCE):
        return None
    symptom = stuck(course, EARLY_PATIENCE)
    if symptom is None or (not course.start - course.recent < 0.1 * course.scale and course.constant is None):
        return None
    found = list(causes.certain_early(course, symptom))
    return (symptom, found) if found else None


def _told(found: Sequence[Found], first: Found) -> list[str]:
    """Codes, each once and with its layer, in the order in which they were seen."""
    told: dict[str, str] = {}
    for each in found:
        if each.code != first.code and each.code not in BY_EXCLUSION:
            told.setdefault(each.code, f"{each.code} in {each.layer}" if each.layer else each.code)
    return list(told.values())


def _healthy(record: Record) -> str:
    norms = record.series.norms[-MIN_STEPS:]
    if not norms.size or not math.isfinite(float(norms.sum())):
        return "The loss is finite and goes as that of a healthy run; norms of gradients were not measured."
    values = np.median(norms, axis=0)
    total = math.sqrt(float(np.square(values).sum()))
    low, high = int(np.argmin(values)), int(np.argmax(values))
    layers = record.series.layers
    if not values[low] > 0:
        return (
            f"The loss moves and all gradients are finite (global norm {total:.3g}), but {layers[low]} receives none."
        )
    return (
        f"Gradients reach every layer: over the last {len(norms)} steps the global norm is {total:.3g}, the smallest layer's "
        f"{values[low]:.3g} ({layers[low]}), the largest's {values[high]:.3g} ({layers[high]}); all finite."
    )
