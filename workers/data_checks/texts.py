"""Text files and documents, before they are tokenized."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import chain

from workers.data_checks import duplicates
from workers.data_checks.duplicates import Contents
from workers.data_checks.report import Clock, Report, counted, empty_samples, finding, percent
from workers.kinds.language import CharTokenizer, DocumentData, LanguageModelTask, TextData
from workers.sources import documents, text
from workers.sources.documents import Document
from workers.sources.language import data_files, need_block
from workers.watch.findings import Finding

MOST = 1 << 26  # characters of the training part that are looked at one by one
LONG_LINE = 80  # characters; shorter lines are the same by coincidence
LEAKED = 0.1  # share of the held-out characters that are in long lines of the training part as well
LEAKED_A_LITTLE = 0.01
MANGLED = 0.01  # share of characters that are no text
MANGLED_A_LITTLE = 1e-4
EMPTY = 0.01  # share of documents with nothing to learn, from which on it is a warning
CONTROLS = {code: None for code in range(32) if chr(code) not in "\t\n\r\f\v\x1b"}
NO_TEXT = CONTROLS | {0x7F: None, 0xFFFD: None}


def check_texts(task: LanguageModelTask, data: TextData, clock: Clock) -> Report:
    """Raises BadDataError for what cannot be used."""
    found = text.read_texts(data)
    train, evaluation = sum(map(len, found.train)), sum(map(len, found.evaluation))
    if isinstance(task.tokenizer, CharTokenizer):
        need_block("character", train, evaluation, task.block_size)
    shown = _beginning(found.train)
    findings = [*_mangled(shown), *_overlap(found.train, found.evaluation, clock)]
    distinct = len({character for part in shown for character in set(part)})
    if distinct == 1:
        findings.append(_constant())
    summary = {
        "characters": {"training": train, "evaluation": evaluation},
        "texts": {"training": len(found.train), "evaluation": len(found.evaluation)},
        "distinct_characters": distinct,
    }
    said = f"Text: {train:,} characters for training, {evaluation:,} for evaluation; {counted(distinct, 'different character')}."
    partly = f"of the training part, only the first {MOST:,} characters were looked at" if train > MOST else None
    return Report(said, summary, findings, partly)


def _beginning(texts: Sequence[str]) -> list[str]:
    left, found = MOST, []
    for part in texts:
        found.append(part[:left])
        left -= len(found[-1])
    return found


def _constant() -> Finding:
    return finding(
        "constant_input",
        "critical",
        {},
        "The training part is one character, again and again. The next one is always known, so there is nothing to learn.",
        "Check how the file was written.",
    )


def _mangled(texts: Sequence[str]) -> list[Finding]:
    total = sum(map(len, texts))
    lost = sum(len(part) - len(part.translate(NO_TEXT)) for part in texts)
    share = lost / max(1, total)
    if share < MANGLED_A_LITTLE:
        return []
    return [
        finding(
            "mangled_text",
            "warning" if share >= MANGLED else "note",
            {"share": share, "characters": lost},
            f"{lost:,} of {total:,} characters ({percent(share)}) are control characters or U+FFFD, which stands for bytes that "
            f"could not be decoded. "
            "The model learns to write them, too.",
            "Decode the source with its real encoding, take the text out of binary formats, and save it as UTF-8.",
        )
    ]


def _overlap(train: Sequence[str], evaluation: Sequence[str], clock: Clock) -> list[Finding]:
    """By lines that are too long to be equal by chance."""
    known: set[int] = set()
    for line in _long_lines(train):
        known.add(hash(line))
        if clock.over():
            break
    shared, example, total = 0, "", sum(map(len, evaluation))
    for line in _long_lines(evaluation):
        if hash(line) in known:
            shared += len(line)
            example = example or line
    share = shared / max(1, total)
    if share < LEAKED_A_LITTLE:
        return []
    return [
        finding(
            "train_evaluation_overlap",
            "warning" if share >= LEAKED else "note",
            {"part": "evaluation", "share": share, "characters": shared, "examples": [example[:200]]},
            f"{percent(share)} of the evaluation text are lines of at least {LONG_LINE} characters that the training part has as "
            f"well, such as {example[:60]!r}. "
            "The model can know them by heart, so its loss looks better than it would on new text.",
            "Remove repeated passages before splitting, or evaluate on other texts (task.data.evaluation_path).",
        )
    ]


def _long_lines(texts: Sequence[str]) -> Iterable[str]:
    return (line for line in chain.from_iterable(part.splitlines() for part in texts) if len(line.strip()) >= LONG_LINE)


# --- documents --------------------------------------------------------------------------------------------------------


def check_documents(data: DocumentData, clock: Clock) -> Report:
    """Raises BadDataError that names the line or row of what cannot be used."""
    parts, whole = {}, True
    for part, (field, path) in zip(("training", "evaluation"), data_files(data), strict=False):
        parts[part], complete = _read(field, path, data.source, clock.share(0.7))
        whole = whole and complete
    if "evaluation" not in parts and whole:
        split = documents.hold_out(parts["training"], data)
        parts = {"training": list(split.train), "evaluation": list(split.evaluation)}
    unchecked = (
        None
        if whole
        else f"only the first {sum(map(len, parts.values())):,} documents were looked at: the time for it was over"
    )
    contents = {part: _contents(part, found) for part, found in parts.items()}
    others = {part: found for part, found in contents.items() if part != "training"}
    findings = [
        *chain.from_iterable(_empty(part, found) for part, found in parts.items()),
        *duplicates.overlaps(contents["training"], others, "documents"),
        *_mangled([_learnt(document) for document in parts["training"]]),
        *duplicates.repeats(contents["training"], "documents"),
    ]
    characters = {part: sum(len(_learnt(document)) for document in found) for part, found in parts.items()}
    summary = {"documents": {part: len(found) for part, found in parts.items()}, "learnt_characters": characters}
    said = ", ".join(f"{counted(len(found), 'document')} for {part}" for part, found in parts.items())
    learnt = f"{characters['training']:,} characters to learn in the training part"
    return Report(f"Text: {said}; {learnt}.", summary, findings, unchecked)


def _read(field: str, path: str, source: str, clock: Clock) -> tuple[list[Document], bool]:
    found = []
    for document in documents.documents_of(field, path, source):
        found.append(document)
        if clock.over():
            return found, False
    return found, True


def _learnt(document: Document) -> str:
    if document.messages is None:
        return document.completion
    return "".join(message["content"] for message in document.messages if message["role"] == "assistant")


def _contents(part: str, found: Sequence[Document]) -> Contents:
    contents = Contents(
        len(found),
        lambda row: f"{part} document {row} ({found[row].where})" if found[row].where else f"{part} document {row}",
    )
    for row, document in enumerate(found):
        messages = json.dumps([dict(m) for m in document.messages]) if document.messages is not None else ""
        said = "\x00".join((document.prompt, document.completion, messages))
        contents.add(row, said.encode("utf-8", "surrogatepass"))
    return contents


def _empty(part: str, found: Sequence[Document]) -> list[Finding]:
    return empty_samples(
        part,
        [document.where for document in found if not _learnt(document).strip()],
        len(found),
        "documents",
        EMPTY,
        lack="have nothing but white space to learn",
        meaning="They teach the model to answer with nothing.",
        suggestion="Remove them, or check which field the answers were written to.",
    )
