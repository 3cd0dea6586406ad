"""Files of token ids, by memory map."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.kinds.language import TokenData
from workers.sources.problems import BadDataError

CHECKED_AT_ONCE = 1 << 24  # tokens


def read_tokens(data: TokenData, check: int | None = None) -> tuple[NDArray[Any], NDArray[Any]]:
    """(training part, held-out part), both read when they are used. ``check``: of how many tokens the range is checked; None: all."""
    train = _mapped("task.data.path", data.path, data, check)
    if data.evaluation_path is not None:
        return train, _mapped("task.data.evaluation_path", data.evaluation_path, data, check)
    left = math.floor(len(train) * (1 - data.holdout))
    return train[:left], train[left:]


def _mapped(field: str, path: str, data: TokenData, check: int | None) -> NDArray[Any]:
    kind = np.dtype(data.dtype).newbyteorder("<")
    if not Path(path).is_file():
        raise BadDataError(field, f"there is no file {path}")
    size = Path(path).stat().st_size
    if size == 0 or size % kind.itemsize:
        raise BadDataError(
            field, f"{path} has {size} bytes; tokens of {data.dtype} need a multiple of {kind.itemsize}, above 0"
        )
    tokens: NDArray[Any] = np.memmap(path, dtype=kind, mode="r")
    for start in range(0, len(tokens) if check is None else min(check, len(tokens)), CHECKED_AT_ONCE):
        part = tokens[start : start + CHECKED_AT_ONCE]
        if int(part.max()) >= data.vocabulary_size:
            at = int((part >= data.vocabulary_size).argmax())
            raise BadDataError(
                field,
                f"{path}: token {start + at} is {part[at]}; with vocabulary_size {data.vocabulary_size} "
                f"0 to {data.vocabulary_size - 1} are allowed",
            )
    return tokens
