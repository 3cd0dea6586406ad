"""Files of token ids."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.data_checks import duplicates
from workers.data_checks.duplicates import Contents
from workers.data_checks.report import Clock, Report, counted, finding
from workers.kinds.language import LanguageModelTask, TokenData
from workers.sources import token_files
from workers.sources.language import need_block
from workers.watch.findings import Finding

MOST = 1 << 25  # tokens of a part that are looked at
PASSAGE = 64  # tokens that are compared at once; the same by coincidence only where next to nothing varies
AT_ONCE = 1 << 22


def check(task: LanguageModelTask, data: TokenData, clock: Clock) -> Report:
    """Raises BadDataError for what cannot be used."""
    train, evaluation = token_files.read_tokens(data, MOST)
    need_block("token", len(train), len(evaluation), task.block_size)
    distinct = _distinct(train[:MOST], data.vocabulary_size, clock.share(0.3))
    parts = {"training": train[:MOST], "evaluation": evaluation[:MOST]}
    contents = {part: _passages(part, tokens, clock.share(0.6)) for part, tokens in reversed(parts.items())}
    findings = [
        *duplicates.overlaps(
            contents["training"], {"evaluation": contents["evaluation"]}, f"passages of {PASSAGE} tokens"
        )
    ]
    if distinct == 1:
        findings.append(_constant(int(train[0])))
    summary = {
        "tokens": {"training": len(train), "evaluation": len(evaluation)},
        "distinct_tokens": distinct,
        "vocabulary_size": data.vocabulary_size,
    }
    partly = max(len(train), len(evaluation)) > MOST
    unchecked = f"only the first {MOST:,} tokens of a part were looked at" if partly else None
    said = f"Tokens: {len(train):,} for training, {len(evaluation):,} for evaluation; "
    said += f"{counted(distinct, 'different one')} of {data.vocabulary_size:,}."
    return Report(said, summary, findings, unchecked)


def _distinct(tokens: NDArray[Any], vocabulary: int, clock: Clock) -> int:
    seen = np.zeros(vocabulary, dtype=np.bool_)
    for start in range(0, len(tokens), AT_ONCE):
        seen[np.asarray(tokens[start : start + AT_ONCE])] = True
        if clock.over():
            break
    return int(seen.sum())


def _passages(part: str, tokens: NDArray[Any], clock: Clock) -> Contents:
    """At multiples of their length: copies of files and of whole pieces of them are found, not every repeated sentence."""
    count = len(tokens) // PASSAGE
    contents = Contents(count, lambda row: f"{part} token {row * PASSAGE:,}")
    for row in range(count):
        contents.add(row, tokens[row * PASSAGE : (row + 1) * PASSAGE].tobytes())
        if row % 1024 == 0 and clock.over():
            break
    return contents


def _constant(token: int) -> Finding:
    return finding(
        "constant_input",
        "critical",
        {"token": token},
        f"The training part is token {token}, again and again. The next one is always known, so there is nothing to learn.",
        "Check how the file was written, and its dtype (task.data.dtype).",
    )
