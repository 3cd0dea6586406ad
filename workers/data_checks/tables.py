"""Rows of numbers and categories, and what they are to predict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.data_checks import duplicates, labels
from workers.data_checks.report import Clock, Report, counted, finding, listed, percent, sampled
from workers.kinds.tables import BreastCancerData, TabularTask
from workers.sources import tables
from workers.sources.tables import Tables
from workers.watch.findings import Finding

OTHER_SCALE = 20.0  # ratio of deviations, or distance of means in deviations, of two parts that no drift explains
MISSING = 0.5  # share of a column's rows without a value, from which on it is worth a note
UNSEEN = 0.2  # share of held-out rows with a category that training does not have, from which on it is a warning
FINE = 0.2  # distinct values of a column over distinct rows, from which on equal rows are no coincidence
ENOUGH = 50  # rows, from which on an equality of columns is no coincidence
IDENTIFIES = 0.9  # categories over rows, from which on a category names the row


def check(task: TabularTask, clock: Clock) -> Report:
    """Raises BadDataError for what cannot be used."""
    found = _read(task)
    train, evaluation = found.train, found.evaluation
    parts = {"training": train, "evaluation": evaluation}
    contents = {}
    for part in ("evaluation", "training"):
        rows = np.column_stack([parts[part].features, parts[part].targets.astype(np.float64)])
        name = duplicates.namer(part, "row", parts[part].rows)
        contents[part] = duplicates.contents_of(rows, name, sampled(len(rows), clock))
    held_out = {"evaluation": contents["evaluation"]}
    names = found.feature_names
    findings = [
        *_leaks(found),
        *_classes_or_target(task, found),
        *duplicates.overlaps(contents["training"], held_out, "rows", natural=_repeats_by_nature(found, contents)),
        *_other_scale(found),
        *_columns(found),
        *duplicates.repeats(contents["training"], "rows", natural=True),
        *labels.few_to_evaluate({"evaluation": len(evaluation.targets)}, "rows"),
    ]
    summary: dict[str, Any] = {
        "samples": {part: len(rows.targets) for part, rows in parts.items()},
        "features": len(names),
        "categorical": len(found.categories),
        "missing_values": int(np.isnan(train.features).sum()),
    }
    if found.class_names:
        summary |= {
            "classes": len(found.class_names),
            "class_counts": {p: labels.class_counts(rows.targets, found.class_names) for p, rows in parts.items()},
        }
    else:
        summary["target"] = _figures(train.targets)
    goal = counted(len(found.class_names), "class", "classes") if found.class_names else "a number to predict"
    said = f"Rows: {len(train.targets):,} for training, {len(evaluation.targets):,} for evaluation; {counted(len(names), 'column')}; {goal}."
    return Report(said, summary, findings, duplicates.partly(list(contents.values()), "rows"))


def _read(task: TabularTask) -> Tables:
    if isinstance(task.data, BreastCancerData):
        return tables.read_breast_cancer(task.data)
    return tables.read_table(task.data, task.objective)


def _figures(values: NDArray[np.float64]) -> dict[str, float]:
    return {
        "least": float(values.min()),
        "largest": float(values.max()),
        "mean": float(values.mean()),
        "deviation": float(values.std()),
    }


def _repeats_by_nature(found: Tables, contents: Mapping[str, duplicates.Contents]) -> bool:
    """Whether equal rows are to be expected, because columns have few values: then what is in both parts says nothing."""
    train = contents["training"]
    distinct = len(set(train.digests.values()))
    known = set(train.digests.values())
    evaluation = contents["evaluation"].digests.values()
    shared = sum(digest in known for digest in evaluation) / max(1, len(evaluation))
    if duplicates.repeated_share(train) < 0.2 * shared:
        return False
    numbers = [i for i, name in enumerate(found.feature_names) if name not in found.categories]
    values = max((len(np.unique(found.train.features[:, i])) for i in numbers), default=0)
    return values < FINE * distinct


# --- the target -------------------------------------------------------------------------------------------------------


def _classes_or_target(task: TabularTask, found: Tables) -> list[Finding]:
    targets = found.train.targets
    if found.class_names:
        held_out = {"evaluation": found.evaluation.targets}
        return labels.classes(targets, held_out, found.class_names, weighted=task.class_weights is not None)
    if len(targets) > 1 and targets.min() == targets.max():
        return [
            finding(
                "constant_target",
                "critical",
                {"value": float(targets[0]), "rows": len(targets)},
                f"The target is {targets[0]:g} in all {len(targets):,} training rows. A bias alone fits that, so no gradient tells "
                f"the features apart.",
                "Check task.data.target and how the rows were selected.",
            )
        ]
    return []


def _leaks(found: Tables) -> list[Finding]:
    """Features that are the target under another name."""
    targets, train = found.train.targets, found.train
    if len(targets) < ENOUGH or targets.min() == targets.max():
        return []
    copies = [name for i, name in enumerate(found.feature_names) if _same(train.features[:, i], targets, found, name)]
    if not copies:
        return []
    return [
        finding(
            "target_leak",
            "warning",
            {"columns": copies[:20]},
            f"{'Column' if len(copies) == 1 else 'Columns'} {listed(copies)} and the target say the same in each of the "
            f"{len(targets):,} training rows. The model only has to "
            "copy it, which looks perfect here and fails where the answer is not known beforehand.",
            "Leave these columns out (task.data.features), unless they are really known before the target is.",
        )
    ]


def _same(column: NDArray[np.float64], targets: NDArray[Any], found: Tables, name: str) -> bool:
    if not found.class_names:
        return bool(np.array_equal(column, targets))
    if name in found.categories:  # one category for each class, and the other way round
        pairs = len(np.unique(np.column_stack([column, targets]), axis=0))
        return pairs == len(np.unique(column)) == len(np.unique(targets)) > 1
    try:
        values = np.array([float(each) for each in found.class_names])
    except ValueError:  # classes have names: numbers in their order are a copy
        values = np.arange(len(found.class_names), dtype=np.float64)
    return bool(np.array_equal(column, values[targets]))


# --- the columns ------------------------------------------------------------------------------------------------------


def _other_scale(found: Tables) -> list[Finding]:
    """Most columns of the held-out rows unlike those of the training rows: another unit, or standardised in one part only."""
    numbers = np.array([i for i, name in enumerate(found.feature_names) if name not in found.categories], dtype=int)
    ours, theirs = found.train.features[:, numbers], found.evaluation.features[:, numbers]
    usable = ~(np.isnan(ours).all(axis=0) | np.isnan(theirs).all(axis=0))
    ours, theirs, numbers = ours[:, usable], theirs[:, usable], numbers[usable]
    if not len(numbers) or len(theirs) < ENOUGH:
        return []
    spread, other = np.nanstd(ours, axis=0), np.nanstd(theirs, axis=0)
    ratio = np.where(
        (spread > 0) & (other > 0), np.maximum(spread, other) / np.maximum(np.minimum(spread, other), 1e-300), 1.0
    )
    away = np.abs(np.nanmean(theirs, axis=0) - np.nanmean(ours, axis=0)) / np.where(spread > 0, spread, np.inf)
    off = (ratio > OTHER_SCALE) | (away > OTHER_SCALE)
    if off.sum() <= len(numbers) / 2:
        return []
    names = [found.feature_names[numbers[i]] for i in np.flatnonzero(off)]
    return [
        finding(
            "split_mismatch",
            "warning",
            {"part": "evaluation", "columns": names[:20], "of": len(numbers)},
            f"{len(names)} of {len(numbers)} columns of numbers are on another scale in the evaluation rows: {listed(names)}. They "
            f"are standardised "
            "with the training rows' figures, so the model is asked about values unlike any that it was taught with.",
            "Write both parts in the same units, and leave standardising to the job.",
        )
    ]


def _columns(found: Tables) -> list[Finding]:
    features, rows = found.train.features, len(found.train.targets)
    constant, sparse, naming = [], [], []
    for i, name in enumerate(found.feature_names):
        column = features[:, i]
        known = column[~np.isnan(column)]
        if name in found.categories:
            if rows >= 2 * ENOUGH and len(found.categories[name]) > IDENTIFIES * rows:
                naming.append(name)
        elif len(known) < (1 - MISSING) * rows:
            sparse.append(f"{name} ({percent(1 - len(known) / rows)})")
        if rows > 1 and (not len(known) or known.min() == known.max()):
            constant.append(name)
    findings = []
    if constant:
        everything = len(constant) == len(found.feature_names)
        findings.append(
            finding(
                "constant_input",
                "critical" if everything else "note",
                {"columns": constant[:20], "of": len(found.feature_names)},
                f"{counted(len(constant), 'column')} of {len(found.feature_names)} {'has' if len(constant) == 1 else 'have'} the "
                f"same value in all training rows: {listed(constant)}. "
                + (
                    "Nothing can be learnt from the features."
                    if everything
                    else "A constant says nothing about the target; the weights on it learn no more than a bias."
                ),
                "Check how the columns were written, or leave them out (task.data.features).",
            )
        )
    if sparse:
        findings.append(
            finding(
                "missing_values",
                "note",
                {"columns": sparse[:20]},
                f"Most values are missing in {listed(sparse)} of the training rows; they are filled with the column's mean.",
                "Leave such columns out, or add a column that says whether the value was known: the mean hides it.",
            )
        )
    if naming:
        findings.append(
            finding(
                "identifier_column",
                "note",
                {"columns": naming[:20]},
                f"Nearly every row has a category of its own in {listed(naming)}: the column names the row. A network can learn "
                f"rows by heart from it, and nothing for new ones.",
                "Leave it out (task.data.features), unless it is meant as it is.",
            )
        )
    return findings + _unseen(found)


def _unseen(found: Tables) -> list[Finding]:
    """Only with an evaluation file of its own: categories are collected from the whole first file."""
    shares = {}
    for i, name in enumerate(found.feature_names):
        if name in found.categories:
            held_out, known = found.evaluation.features[:, i], found.train.features[:, i]
            unseen = ~np.isin(held_out, known) & (held_out < len(found.categories[name]))
            foreign = (held_out >= len(found.categories[name])) & ~(known >= len(found.categories[name])).any()
            share = float((unseen | foreign).mean())
            if share > 0:
                shares[name] = share
    if not shares:
        return []
    named = [f"{name} ({percent(share)})" for name, share in shares.items()]
    return [
        finding(
            "unseen_categories",
            "warning" if max(shares.values()) >= UNSEEN else "note",
            {"columns": dict(list(shares.items())[:20])},
            f"Evaluation rows have categories that no training row has, in {listed(named)}. Weights on a category that never "
            f"occurred were never "
            "trained, so it tells the model nothing it knows.",
            "Split so that every category occurs in training, or join rare categories into one.",
        )
    ]
