"""Text, documents and token files: how they are read, what is said of bad ones, and how they become blocks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from workers.kinds.language import DocumentData, TextData, TokenData
from workers.language.blocks import PackedDocuments, TextBlocks, TokenizedDocument, pack
from workers.problems import SpecError
from workers.sources.documents import read_documents
from workers.sources.inspect import inspect_data
from workers.sources.problems import BadDataError
from workers.sources.text import read_texts, split
from workers.sources.token_files import read_tokens
from workers.spec import parse_spec

pytestmark = pytest.mark.unit


def look(data: dict[str, Any], **parts: Any) -> list[str]:
    task = {"kind": "language_model", "data": data, "block_size": 8, **parts}
    return [
        f"{p.path}: {p.message}"
        for p in inspect_data(parse_spec({"name": "x", "task": task, "training": {"batch_size": 2}}))
    ]


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"model": {"architecture": "gpt9"}}, "task.model.architecture: Input should be 'gpt2'"),
        ({"model": {"architecture": "gpt2", "checkpoint": "./x"}}, "task.model.architecture: unknown field"),
        ({"model": {"architecture": "gpt2", "heads": 3}}, "task.model: width 128 is not a multiple of heads 3"),
        ({"model": {"checkpoint": "./x"}, "tokenizer": {"kind": "char"}}, "task: a checkpoint has a tokenizer"),
        ({"tokenizer": {"kind": "word"}}, "task.tokenizer.kind: kind must be one of: default, char, byte"),
        (
            {"data": {"source": "tokens", "path": "x", "vocabulary_size": 9}, "samples": {"prompts": ["a"]}},
            "task: samples",
        ),
        ({"data": {"source": "csv"}}, "task.data.source: source must be one of: text, jsonl, parquet or tokens"),
        ({"samples": {"prompts": []}}, "task.samples.prompts: List should have at least 1 item"),
        ({"block_size": 0}, "task.block_size: Input should be greater than or equal to 1"),
    ],
    ids=str,
)
def test_jobs_that_do_not_fit_together(parts: dict[str, Any], says: str) -> None:
    task = {"kind": "language_model", "data": {"source": "text", "path": "x"}, **parts}
    with pytest.raises(SpecError) as caught:
        parse_spec({"name": "x", "task": task})
    assert str(caught.value.problems[0]).startswith(says)


# --- text -------------------------------------------------------------------------------------------------------------


def test_the_last_part_is_held_out_in_one_piece() -> None:
    texts = split(("abcdefgh", "ijkl", "mnopqrst"), 0.4)
    assert texts.train == ("abcdefgh", "ijkl")
    assert texts.evaluation == ("mnopqrst",)
    assert split(("abcdefghij",), 0.1).evaluation == ("j",)


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    for name, text in (("b.txt", "second"), ("a.md", "\ufefffirst"), ("c.bin", "none"), (".hidden.txt", "none")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_texts(TextData(source="text", path=str(tmp_path), holdout=0.01)).train == ("first", "secon")


def test_bad_text(tmp_path: Path) -> None:
    file = tmp_path / "latin.txt"
    file.write_bytes("Die Straße".encode("latin-1"))
    data = {"source": "text", "path": str(file)}
    with pytest.raises(BadDataError, match=r"latin\.txt is not UTF-8: byte 0xdf at offset 8"):
        read_texts(TextData.model_validate(data))
    assert "offset 8" in look(data)[0]
    file.write_text(" \n")
    assert "is empty" in look(data)[0]
    file.write_text("too short")
    assert look(data)[0].startswith("task.block_size: 8 is too long: the training part has 8 bytes")
    assert "there is no text file" in look({"source": "text", "path": str(_empty(tmp_path))})[0]
    assert "there is no file or folder" in look({"source": "text", "path": str(tmp_path / "none")})[0]
    (tmp_path / "empty" / "link.txt").symlink_to(file)
    assert "link to a place outside" in look({"source": "text", "path": str(tmp_path / "empty")})[0]
    file.write_text("long enough for a block, but not for two hundred of them")
    task = {"kind": "language_model", "data": data, "block_size": 8}
    (problem,) = inspect_data(parse_spec({"name": "x", "task": task, "training": {"batch_size": 200}}))
    assert problem.path == "training.batch_size"


def _empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


# --- documents --------------------------------------------------------------------------------------------------------

GOOD = [
    {"text": "a"},
    {"prompt": "q", "completion": "a"},
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
]


def jsonl(folder: Path, *rows: object) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_documents_of_all_shapes(tmp_path: Path) -> None:
    import pandas

    found = read_documents(DocumentData(source="jsonl", path=str(jsonl(tmp_path, *GOOD, "", GOOD[0]))))
    assert [document.completion for document in found.train] == ["a", "a", ""]
    assert found.train[2].messages is not None
    assert [document.where.partition(" of")[0] for document in found.evaluation] == ["line 5"]
    pandas.DataFrame({"text": ["a", "b"], "other": [1, 2]}).to_parquet(tmp_path / "data.parquet")
    rows = read_documents(DocumentData(source="parquet", path=str(tmp_path / "data.parquet")))
    assert [document.completion for document in rows.train + rows.evaluation] == ["a", "b"]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{broken", "line 3 of {file} is not JSON: Expecting property name enclosed in double quotes at column 2"),
        ("[1]", "line 3 of {file} is [1]; it must be an object"),
        ({"x": 1}, "line 3 of {file} has nothing to learn: it must have messages, or prompt and completion, or text; it has x"),
        ({"text": "a", "prompt": "b"}, "line 3 of {file} is ambiguous"),
        ({"prompt": "b"}, "line 3 of {file}: completion must be a text, and is None"),
        ({"text": 5}, "line 3 of {file}: text must be a text, and is 5"),
        ({"text": ""}, "line 3 of {file}: text is empty"),
        ({"messages": []}, "line 3 of {file}: messages must be a list of messages"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "line 3 of {file}: messages[0].role is 'bot'; allowed is system"),
        ({"messages": [{"role": "user", "content": None}]}, "line 3 of {file}: messages[0].content must be a text"),
        ({"messages": [{"role": "user", "content": "x"}]}, "line 3 of {file} has no message of the assistant"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_documents(tmp_path: Path, row: object, says: str) -> None:
    path = jsonl(tmp_path, GOOD[0], "", row)
    (problem,) = look({"source": "jsonl", "path": str(path)})
    assert says.replace("{file}", str(path)) in problem


def test_documents_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = jsonl(tmp_path)
    assert "has no documents" in look({"source": "jsonl", "path": str(path)})[0]
    path.write_bytes(b'{"text": "ok"}\n{"text": "\xff"}\n')
    assert "byte 0xff at offset 25" in look({"source": "jsonl", "path": str(path)})[0]
    monkeypatch.setattr("workers.sources.text.MAX_LINE", 20)
    path.write_text(json.dumps({"text": "x" * 20}))
    assert "line 1 of" in look({"source": "jsonl", "path": str(path)})[0]
    (tmp_path / "x.parquet").write_bytes(b"PAR1 nothing")
    assert "cannot be read as parquet" in look({"source": "parquet", "path": str(tmp_path / "x.parquet")})[0]
    with pytest.raises(BadDataError, match="at least 2 are needed"):
        read_documents(DocumentData(source="jsonl", path=str(jsonl(tmp_path, GOOD[0]))))


# --- token files ------------------------------------------------------------------------------------------------------


def test_token_files(tmp_path: Path) -> None:
    path = tmp_path / "tokens.bin"
    np.arange(100, dtype="<u2").tofile(path)
    data = {"source": "tokens", "path": str(path), "vocabulary_size": 100}
    train, evaluation = read_tokens(TokenData.model_validate(data))
    assert (len(train), evaluation.tolist()) == (90, list(range(90, 100)))
    assert isinstance(train, np.memmap)
    assert look(data) == []
    assert "token 99 is 99; with vocabulary_size 99 0 to 98 are allowed" in look(data | {"vocabulary_size": 99})[0]
    path.write_bytes(b"abc")
    assert "has 3 bytes; tokens of uint16 need a multiple of 2" in look(data)[0]


# --- blocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [9, 10, 16, 17, 23, 24, 25, 40])
def test_evaluation_predicts_every_token_but_the_first_once(length: int) -> None:
    blocks = TextBlocks(np.arange(length, dtype=np.uint16), 8, shifted=False)
    batch = blocks.batch(range(len(blocks)), seed=0)
    predicted = batch["labels"][batch["labels"] >= 0]
    assert sorted(predicted.tolist()) == list(range(1, length))
    assert torch.equal(batch["tokens"][batch["labels"] >= 0] + 1, predicted)


@pytest.mark.parametrize("length", [9, 17, 23, 24, 32, 41])
def test_training_blocks_are_whole_and_cut_elsewhere_in_every_epoch(length: int) -> None:
    blocks = TextBlocks(np.arange(length, dtype=np.uint16), 8, shifted=True)
    assert len(blocks) >= 1
    starts = set()
    for seed in range(40):
        batch = blocks.batch(range(len(blocks)), seed=seed)
        assert torch.equal(batch["labels"], batch["tokens"] + 1)
        assert int(batch["labels"].max()) < length
        starts.add(int(batch["tokens"][0, 0]))
    assert len(starts) == (8 if length > 16 else 1)


def test_packing_is_best_fit_decreasing() -> None:
    assert pack([3, 8, 5, 2, 4], 8) == [[1], [2, 0], [4, 3]]
    lengths = np.random.default_rng(0).integers(1, 65, 500).tolist()
    bins = pack(lengths, 64)
    assert sorted(piece for found in bins for piece in found) == list(range(500))
    assert max(sum(lengths[piece] for piece in found) for found in bins) <= 64
    assert len(bins) <= 1.08 * sum(lengths) / 64, "in the order of the documents it would be 1.3"


def test_packed_blocks_by_hand() -> None:
    """A prompt of two tokens and its answer beside a short text; what is learnt is labelled, and nothing across documents."""
    documents = [
        TokenizedDocument(np.array([10, 11, 12, 13]), np.array([False, False, True, True])),
        TokenizedDocument(np.array([20, 21, 22]), np.array([True, True, True])),
    ]
    packed = PackedDocuments(documents, 6)
    assert len(packed) == 1
    batch = {name: value[0].tolist() for name, value in packed.batch([0], seed=0).items()}
    assert batch == {
        "tokens": [10, 11, 12, 20, 21, 0],
        "labels": [-100, 12, 13, 21, 22, -100],
        "positions": [0, 1, 2, 0, 1, 0],
    }


def test_a_long_document_is_cut_and_pieces_without_anything_to_learn_are_left_out() -> None:
    learnt = np.array([False] * 6 + [True] * 4)
    packed = PackedDocuments([TokenizedDocument(np.arange(10), learnt)], 4)
    batch = packed.batch(range(len(packed)), seed=0)
    assert sorted(batch["labels"][batch["labels"] >= 0].tolist()) == [6, 7, 8, 9]
    assert all((row >= 0).any() for row in batch["labels"])
