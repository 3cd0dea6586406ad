"""A quick look at the text of a job: without tokenizing it, and at no more than so much of it."""

from __future__ import annotations

from workers.kinds.language import DocumentData, LanguageModelTask, TextData, TokenData
from workers.sources import documents, text, token_files
from workers.sources.problems import BadDataError

MAX_BYTES = 64 << 20  # of text that is decoded; the worker reads all of it
MAX_DOCUMENTS = 10_000
MAX_TOKENS = 1 << 24


def training_samples(task: LanguageModelTask) -> int | None:
    """How many blocks there are to train on, at most: a token has at least one byte. Raises BadDataError for what cannot be used."""
    data, block = task.data, task.block_size
    if isinstance(data, TokenData):
        train, evaluation = token_files.read_tokens(data, MAX_TOKENS)
        need_block("token", len(train), len(evaluation), block)
        return len(train) // block
    if isinstance(data, DocumentData):
        for field, path in data_files(data):
            for _ in documents.documents_of(field, path, data.source, MAX_DOCUMENTS):
                pass
        return None  # how many documents share a block, only their tokens tell
    return _text_samples(task, data)


def _text_samples(task: LanguageModelTask, data: TextData) -> int:
    sizes, left = [], MAX_BYTES
    for field, path in data_files(data):
        files = text.text_files(field, path)
        sizes.append(sum(file.stat().st_size for file in files))
        for file in files:
            if file.stat().st_size <= left:
                text.read_text(file)
                left -= file.stat().st_size
    held_out = 0.0 if data.evaluation_path else data.holdout
    train = round(sizes[0] * (1 - held_out))
    need_block("byte", train, sizes[1] if data.evaluation_path else sizes[0] - train, task.block_size)
    return max(1, train // task.block_size)


def data_files(data: TextData | DocumentData) -> list[tuple[str, str]]:
    found = [("task.data.path", data.path)]
    return found + ([("task.data.evaluation_path", data.evaluation_path)] if data.evaluation_path else [])


def need_block(unit: str, train: int, evaluation: int, block_size: int) -> None:
    """Raises BadDataError where the training part is shorter than a block and the token after it, or nothing is held out."""
    if train < block_size + 1:
        raise BadDataError(
            "task.block_size",
            f"{block_size} is too long: the training part has {train:,} {unit}s; at most {max(0, train - 1):,} is allowed",
        )
    if evaluation < 2:
        raise BadDataError(
            "task.data.holdout", f"the held-out part has {evaluation} {unit}s; at least 2 are needed to predict one"
        )
