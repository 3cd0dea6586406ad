"""Documents as tokens, with the part of each that is learnt."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from workers.language.blocks import TokenizedDocument
from workers.language.vocabulary import encode, token_type
from workers.sources.documents import Document
from workers.sources.problems import BadDataError

Segment = tuple[str, bool]  # text, whether it is learnt


def segments_of(document: Document, tokenizer: Any) -> list[Segment]:
    """A conversation is written with the tokenizer's chat template; what the assistant says is learnt, with what ends it."""
    if document.messages is None:
        return (
            [(document.prompt, False), (document.completion, True)]
            if document.prompt
            else [(document.completion, True)]
        )
    texts, learnt = [""], []
    for index, message in enumerate(document.messages):
        if message["role"] != "assistant":
            continue
        for count, prompted in ((index, True), (index + 1, False)):
            texts.append(_rendered(document, tokenizer, count, prompted))
            learnt.append(not prompted)
    for before, after in pairwise(texts):
        if not after.startswith(before):
            raise BadDataError(
                "task.tokenizer",
                f"{document.where}: the tokenizer's chat template writes earlier messages otherwise when later ones follow; "
                "use messages with one answer, or prompt and completion",
            )
    found = [(after[len(before) :], flag) for (before, after), flag in zip(pairwise(texts), learnt, strict=True)]
    return [segment for segment in found if segment[0]]


def _rendered(document: Document, tokenizer: Any, count: int, prompted: bool) -> str:
    messages = [dict(message) for message in (document.messages or ())[:count]]
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompted)
    except Exception as error:  # whatever a template raises, for an order of roles that it does not want for example
        raise BadDataError("task.data.path", f"{document.where} does not fit the chat template: {error}") from error
    return text


def tokenize(documents: Sequence[list[Segment]], tokenizer: Any) -> list[TokenizedDocument]:
    """Each segment by itself, as a prompt is when the model is asked later; then the end of the text, which is learnt too."""
    texts = [text for segments in documents for text, _ in segments]
    encoded = iter(encode(tokenizer, texts))
    begin, end, kind = beginning(tokenizer), tokenizer.eos_token_id, token_type(tokenizer)
    found = []
    for segments in documents:
        parts = [(next(encoded), learnt) for _, learnt in segments]
        if begin and parts[0][0][:1] != begin:
            parts.insert(0, (begin, False))
        if end is not None and end not in parts[-1][0][-3:]:  # templates may add a line after it
            parts.append(([end], True))
        tokens = np.array([token for part, _ in parts for token in part], dtype=kind)
        learnt = np.array([flag for part, flag in parts for _ in part], dtype=np.bool_)
        found.append(TokenizedDocument(tokens, learnt))
    return found


def beginning(tokenizer: Any) -> list[int]:
    """The token with which this tokenizer begins each text, if it has one."""
    if tokenizer.bos_token_id is None:
        return []
    first: list[int] = tokenizer("a")["input_ids"][:1]
    return first if first == [tokenizer.bos_token_id] else []
