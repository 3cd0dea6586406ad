"""Items that are there more than once, by a hash of their content: within the training part, and in what is held out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.data_checks.report import NAMED, finding, listed, looked_at, percent
from workers.watch.findings import Finding

REPEATED = 0.001  # share of the training items that repeat another one, from which on it is worth a note
MOSTLY_REPEATED = 0.5  # and from which on it is a warning
LEAKED = 0.05  # share of the held-out items that are in the training part as well, from which on it is a warning
CONTRADICTED = 0.01  # share of the training items with an identical one of another class, from which on it is a warning


@dataclass
class Contents:
    """Hashes of those ``rows`` of a part that were looked at, in any order; ``total`` are there. ``name`` says which one a row is, for people."""

    total: int
    name: Callable[[int], str]
    digests: dict[int, bytes] = field(default_factory=dict)

    def add(self, row: int, *content: bytes | memoryview) -> None:
        digest = hashlib.blake2b(digest_size=16)
        for part in content:
            digest.update(part)
        self.digests[row] = digest.digest()

    @property
    def looked_at(self) -> int:
        return len(self.digests)

    def without(self, rows: Iterable[int]) -> Contents:
        left_out = set(rows)
        kept = {row: digest for row, digest in self.digests.items() if row not in left_out}
        return Contents(self.total, self.name, kept)


def namer(part: str, item: str, rows: NDArray[np.int64] | None) -> Callable[[int], str]:
    """Says which one of a file's it is. ``rows``: their numbers there, where a part of the file was held out."""
    return lambda row: f"{part} {item} {row}" if rows is None else f"{item} {rows[row]}"


def contents_of(rows: NDArray[Any], name: Callable[[int], str], order: Iterable[int]) -> Contents:
    """Of the rows (first dimension) of an array, as far as ``order`` goes."""
    found = Contents(len(rows), name)
    for row in order:
        content = rows[row] + 0.0 if rows.dtype.kind == "f" else rows[row]  # -0.0 is 0.0
        found.add(row, content.tobytes())
    return found


def partly(parts: Sequence[Contents], items: str) -> str | None:
    """What is to be said when there was no time for all of them."""
    return looked_at(sum(part.looked_at for part in parts), sum(part.total for part in parts), items)


def repeated_share(train: Contents) -> float:
    """Share of the items looked at that repeat another one; of three equal ones two do."""
    return 1 - len(set(train.digests.values())) / train.looked_at if train.looked_at else 0.0


def repeats(train: Contents, items: str, *, natural: bool = False) -> list[Finding]:
    """``natural``: repetitions are to be expected, as among rows of a few categories."""
    share = repeated_share(train)
    if share < REPEATED:
        return []
    counts = Counter(train.digests.values())
    several = {digest for digest, count in counts.items() if count > 1}
    groups: dict[bytes, list[int]] = {}
    for row in sorted(train.digests):
        if (digest := train.digests[row]) in several:
            groups.setdefault(digest, []).append(row)
    pairs = [f"{train.name(rows[0])} = {train.name(rows[1])}" for rows in list(groups.values())[:NAMED]]
    again = train.looked_at - len(counts)
    return [
        finding(
            "duplicate_samples",
            "warning" if share >= MOSTLY_REPEATED and not natural else "note",
            {"share": share, "repeated": again, "looked_at": train.looked_at, "examples": pairs},
            f"{again:,} of {train.looked_at:,} training {items} ({percent(share)}) are exact copies of another one, such as "
            f"{listed(pairs)}. "
            "A copy weighs in the gradient as if it were seen that many times; otherwise it teaches nothing new.",
            "Remove the copies, unless they are there on purpose. Where some classes have too few samples, task.class_weights: "
            "balanced does that without copies.",
        )
    ]


def overlaps(train: Contents, held_out: Mapping[str, Contents], items: str, *, natural: bool = False) -> list[Finding]:
    """What is in the training part as well. ``held_out``: by name of the part, evaluation or test."""
    known = set(train.digests.values())
    first = {digest: row for row, digest in sorted(train.digests.items(), reverse=True)}
    found = []
    for part, contents in held_out.items():
        rows = sorted(row for row, digest in contents.digests.items() if digest in known)
        share = len(rows) / max(1, contents.looked_at)
        if not rows:
            continue
        pairs = [f"{contents.name(row)} = {train.name(first[contents.digests[row]])}" for row in rows[:NAMED]]
        whole = train.looked_at == train.total
        found.append(
            finding(
                "train_evaluation_overlap",
                "warning" if share >= LEAKED and not natural else "note",
                {"part": part, "share": share, "shared": len(rows), "looked_at": contents.looked_at, "examples": pairs},
                f"{'' if whole else 'At least '}{len(rows):,} of {contents.looked_at:,} {part} {items} ({percent(share)}) are in "
                f"the training part as well, such as {listed(pairs)}. "
                f"The model is asked in the {part} what it was told in training, so its figures look better than they would on new data.",
                "Remove them from one of the two parts; or split so that copies stay together, and remove copies before splitting.",
            )
        )
    return found


def contradictions(train: Contents, labels: Sequence[int], names: Sequence[str], items: str) -> list[Finding]:
    """Identical items of different classes."""
    classes: dict[bytes, set[int]] = {}
    for row, digest in train.digests.items():
        classes.setdefault(digest, set()).add(int(labels[row]))
    rows = sorted(row for row, digest in train.digests.items() if len(classes[digest]) > 1)
    share = len(rows) / max(1, train.looked_at)
    if share < REPEATED:
        return []
    shown = [f"{train.name(row)} ({names[labels[row]]})" for row in rows[:NAMED]]
    return [
        finding(
            "label_error",
            "warning" if share >= CONTRADICTED else "note",
            {"share": share, "rows": rows[:20], "looked_at": train.looked_at, "examples": shown},
            f"{len(rows):,} of {train.looked_at:,} training {items} ({percent(share)}) have an identical one with another label, "
            f"such as {listed(shown)}. "
            "One of the two labels must be wrong, and their gradients pull in opposite directions.",
            "Look at these samples and correct their labels, or remove them. task.label_smoothing softens what is left.",
        )
    ]
