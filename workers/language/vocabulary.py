"""Tokenizers: built from the data, or loaded. All of them are transformers' own, so that the exported folder opens there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.kinds.language import BpeTokenizer, CharTokenizer, TokenizerModel
from workers.problems import first_line
from workers.sources.problems import BadDataError

END = "<|endoftext|>"
# For tokenizers that bring none: plain words, so that vocabularies of characters can spell it.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant: {% endif %}"
)
PART = 1 << 20  # characters that are tokenized at once


def build_tokenizer(spec: TokenizerModel, train: Sequence[str], evaluation: Sequence[str]) -> Any:
    """A tokenizer of the data; of bytes, unless ``spec`` says char or bpe. The same on every worker."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if isinstance(spec, CharTokenizer):
        # Of both parts: a character that occurs in the held-out part only must have a token too.
        characters = sorted(set().union(*map(set, (*train, *evaluation))))
        tokenizer = Tokenizer(models.BPE({c: index for index, c in enumerate(characters)}, merges=[]))
        tokenizer.decoder = decoders.Fuse()
        tokenizer.add_special_tokens([END])
        return wrapped(tokenizer)
    if isinstance(spec, BpeTokenizer):
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=spec.vocabulary_size,
            special_tokens=[END],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(_parts(train), trainer)
        return wrapped(tokenizer)
    tokenizer = Tokenizer(models.BPE({name: byte for byte, name in enumerate(_byte_names())}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    return wrapped(tokenizer)


def wrapped(tokenizer: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        bos_token=END,
        pad_token=END,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def load_tokenizer(path: str, field: str, *, local: bool) -> Any:
    """From a folder or a tokenizer.json (``local``), or the hub. Raises BadDataError."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if local and not os.path.exists(path):
        raise BadDataError(field, f"there is no file or folder {path}")
    try:
        if local and Path(path).is_file():
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=path)
        else:
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=local)
    except Exception as error:  # whatever the library raises for files that are none of its own
        raise BadDataError(field, f"there is no tokenizer at {path}: {first_line(error)}") from error
    if tokenizer.chat_template is None:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _byte_names() -> list[str]:
    """What byte-level tokenizers call the 256 bytes: printable ones by themselves, the others by 256, 257, ... (GPT-2)."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]


# --- texts into tokens ------------------------------------------------------------------------------------------------


def encode_texts(tokenizer: Any, texts: Sequence[str]) -> NDArray[Any]:
    """All texts one after the other; between two of them the end of a text, where the tokenizer has such a token."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    kind = token_type(tokenizer)
    arrays: list[NDArray[Any]] = []
    for index, text in enumerate(texts):
        if index:
            arrays.append(np.array(end, dtype=kind))
        for part in _parts([text]):
            arrays.append(np.array(encode(tokenizer, [part])[0], dtype=kind))
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype=kind)


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Without tokens for beginning and end, which belong to whole documents."""
    if not texts:
        return []
    found: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return found


def token_type(tokenizer: Any) -> type[np.unsignedinteger[Any]]:
    return np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32


def unknown_characters(tokenizer: Any, text: str) -> str:
    """The characters of ``text`` that a vocabulary of characters cannot spell and would silently leave out."""
    model = tokenizer.backend_tokenizer.model
    if type(model).__name__ != "BPE" or tokenizer.backend_tokenizer.pre_tokenizer is not None or model.unk_token:
        return ""
    known = tokenizer.get_vocab()
    return "".join(sorted({character for character in text if character not in known}))


def _parts(texts: Iterable[str]) -> Iterable[str]:
    """Pieces of about a million characters, which end with a line where they can."""
    for text in texts:
        start = 0
        while start < len(text):
            end = start + PART
            if end < len(text):
                newline = text.rfind("\n", start + PART // 2, end)
                end = newline + 1 if newline > 0 else end
            yield text[start:end]
            start = end
