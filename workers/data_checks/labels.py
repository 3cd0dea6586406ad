"""Classes: how many samples each has, in which part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.data_checks.report import finding, listed, percent
from workers.watch.findings import Finding

IMBALANCE = 20.0  # largest class over smallest, without class weights
ENOUGH_TO_JUDGE = 200  # training samples; fewer say little about how frequent classes are
FEW_FOR_EVALUATION = 30  # the standard error of an accuracy is then up to 9 points
NAMED_CLASSES = 50  # classes of which a summary has the counts


def class_counts(labels: NDArray[np.int64], names: Sequence[str]) -> dict[str, int]:
    counts = np.bincount(labels, minlength=len(names)).tolist()
    return dict(zip(names[:NAMED_CLASSES], counts, strict=False))


def classes(
    train: NDArray[np.int64], held_out: Mapping[str, NDArray[np.int64]], names: Sequence[str], *, weighted: bool
) -> list[Finding]:
    """Labels in [0, len(names)) of the training part and of each part that is held out. ``weighted``: the loss has class weights."""
    counts = np.bincount(train, minlength=len(names))
    seen = np.flatnonzero(counts)
    if len(seen) < 2:
        return [_one_class(names[int(seen[0])], len(train))]
    found = _missing(counts, held_out, names)
    return found if weighted else found + _imbalance(counts, names)


def _one_class(name: str, samples: int) -> Finding:
    return finding(
        "class_missing",
        "critical",
        {"classes": [name], "samples": samples},
        f"All {samples:,} training samples are of one class, {name}. Answering that class always is perfect then, so nothing is "
        f"learnt that tells "
        "classes apart.",
        "Check how labels were read or written; training needs samples of at least two classes.",
    )


def _missing(counts: NDArray[Any], held_out: Mapping[str, NDArray[np.int64]], names: Sequence[str]) -> list[Finding]:
    found = []
    for part, labels in held_out.items():
        theirs = np.bincount(labels, minlength=len(names))
        unseen = [names[i] for i in np.flatnonzero((theirs > 0) & (counts == 0)).tolist()]
        unasked = [names[i] for i in np.flatnonzero((theirs == 0) & (counts > 0)).tolist()]
        if unseen:
            asked = int(theirs[counts == 0].sum())
            found.append(
                finding(
                    "class_missing",
                    "warning",
                    {"part": part, "in": part, "classes": unseen[:20], "samples": asked},
                    f"{part.capitalize()} has {asked:,} samples of classes that the training part does not have at all: {listed(unseen)}. "
                    "No gradient ever raises the output of such a class, so these answers will be wrong.",
                    "Add training samples of these classes, or split the data so that every class is in both parts.",
                )
            )
        if unasked:
            found.append(
                finding(
                    "class_missing",
                    "note",
                    {"part": part, "in": "training", "classes": unasked[:20]},
                    f"{part.capitalize()} has no sample of {len(unasked)} of the {len(names)} classes: {listed(unasked)}. What is "
                    f"measured says nothing about them.",
                    "Hold out samples of these classes as well, where there are enough.",
                )
            )
    return found


def _imbalance(counts: NDArray[Any], names: Sequence[str]) -> list[Finding]:
    there = np.flatnonzero(counts)
    least, most = there[np.argmin(counts[there])], there[np.argmax(counts[there])]
    ratio = float(counts[most] / counts[least])
    if ratio <= IMBALANCE or counts.sum() < ENOUGH_TO_JUDGE:
        return []
    share = float(counts[most] / counts.sum())
    return [
        finding(
            "class_imbalance",
            "warning",
            {
                "ratio": ratio,
                "largest": [names[most], int(counts[most])],
                "smallest": [names[least], int(counts[least])],
            },
            f"The largest class, {names[most]}, has {int(counts[most]):,} training samples ({percent(share)}), the smallest, "
            f"{names[least]}, has {int(counts[least]):,}: {ratio:.0f} times "
            "fewer. The gradient is a mean over samples, so the large class steers it, and a model may get a good accuracy without "
            "ever answering the small one.",
            "Set task.class_weights: balanced, which weighs each class by its rarity, and look at F1 or AUROC beside the accuracy.",
        )
    ]


def few_to_evaluate(counts: Mapping[str, int], items: str) -> list[Finding]:
    """``counts``: of the samples of each part that is held out."""
    return [
        finding(
            "too_few_evaluation_samples",
            "note",
            {"part": part, "samples": count},
            f"{part.capitalize()} has {count} {items} only. What is measured on so few jumps by {percent(1 / count)} with each one, "
            f"so small differences between runs mean little.",
            "Hold out more, where the data allows it, or compare several seeds.",
        )
        for part, count in counts.items()
        if 0 < count < FEW_FOR_EVALUATION
    ]
