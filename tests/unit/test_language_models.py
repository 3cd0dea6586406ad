"""Tokenizers, what of a document is learnt, models of the library, the loss by chunks, samples."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from workers.compilation import compile_in_place
from workers.kinds.language import BpeTokenizer, ByteTokenizer, CausalArchitecture, CharTokenizer, NewModel, Samples
from workers.language import vocabulary
from workers.language.cross_entropy import cross_entropy
from workers.language.documents import segments_of, tokenize
from workers.language.sampling import drawn, generate
from workers.models import causal
from workers.sources.documents import Document
from workers.sources.problems import BadDataError

pytestmark = pytest.mark.unit

TEXT = "First Citizen:\nBefore we proceed any further, hear me speak. Élan, 日本, 🙂\n\n  two  spaces\r\n" * 20


# --- tokenizers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [CharTokenizer(kind="char"), ByteTokenizer(kind="byte"), BpeTokenizer(kind="bpe", vocabulary_size=300)],
    ids=lambda spec: spec.kind,
)
def test_tokenizers_give_back_what_they_were_given_and_open_in_transformers(tmp_path: Path, spec: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer = vocabulary.build_tokenizer(spec, [TEXT], [])
    tokens = vocabulary.encode_texts(tokenizer, [TEXT])
    assert tokens.dtype == np.uint16
    assert int(tokens.max()) < len(tokenizer)
    assert tokenizer.decode(tokens.tolist()) == TEXT
    tokenizer.save_pretrained(str(tmp_path))
    again = AutoTokenizer.from_pretrained(str(tmp_path))
    assert again(TEXT)["input_ids"] == tokens.tolist()
    assert again.eos_token_id == tokenizer.eos_token_id
    assert again.decode(tokens.tolist()) == TEXT
    two = vocabulary.encode_texts(tokenizer, ["ab", "cd"] if spec.kind == "byte" else ["me", "we"])
    assert two.tolist().count(tokenizer.eos_token_id) == 1
    if spec.kind == "byte":
        assert vocabulary.encode(tokenizer, [TEXT])[0] == list(TEXT.encode())
    if spec.kind == "char":
        assert len(tokenizer) == len(set(TEXT)) + 1
        assert vocabulary.unknown_characters(tokenizer, "we %x§") == "%x§"


def test_bpe_is_the_same_each_time_and_shorter() -> None:
    spec = BpeTokenizer(kind="bpe", vocabulary_size=320)
    first, second = (vocabulary.build_tokenizer(spec, [TEXT, TEXT[::-1]], []) for _ in range(2))
    assert first.get_vocab() == second.get_vocab()
    assert len(first) == 320
    assert len(vocabulary.encode_texts(first, [TEXT])) < 0.6 * len(TEXT.encode())


def test_long_texts_are_tokenized_in_parts_that_end_with_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "PART", 100)
    tokenizer = vocabulary.build_tokenizer(ByteTokenizer(kind="byte"), [], [])
    parts = list(vocabulary._parts([TEXT]))
    assert "".join(parts) == TEXT
    assert all(part.endswith("\n") for part in parts[:-1])
    assert vocabulary.encode_texts(tokenizer, [TEXT]).tolist() == list(TEXT.encode())


# --- what is learnt ---------------------------------------------------------------------------------------------------


def learnt(document: Document) -> tuple[str, str]:
    """(the whole text, the learnt part)"""
    tokenizer = vocabulary.build_tokenizer(ByteTokenizer(kind="byte"), [], [])
    (found,) = tokenize([segments_of(document, tokenizer)], tokenizer)
    return tokenizer.decode(found.tokens.tolist()), tokenizer.decode(found.tokens[found.learnt].tolist())


def test_only_completions_and_what_ends_them_are_learnt() -> None:
    end = vocabulary.END
    assert learnt(Document("x", completion="all of it")) == (f"all of it{end}", f"all of it{end}")
    assert learnt(Document("x", prompt="2+2=", completion="4")) == (f"2+2=4{end}", f"4{end}")
    messages = [("system", "s"), ("user", "hi"), ("assistant", "ho"), ("user", "more"), ("assistant", "no")]
    talk = tuple({"role": role, "content": content} for role, content in messages)
    whole, answers = learnt(Document("x", messages=talk))
    assert whole == f"System: s\n\nUser: hi\n\nAssistant: ho{end}\n\nUser: more\n\nAssistant: no{end}\n\n"
    assert answers == f"ho{end}\n\nno{end}\n\n"


def test_a_template_that_rewrites_what_was_said_is_refused() -> None:
    tokenizer = vocabulary.build_tokenizer(ByteTokenizer(kind="byte"), [], [])
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    talk = tuple({"role": role, "content": role} for role in ("user", "assistant"))
    with pytest.raises(BadDataError, match=r"line 7.*chat template"):
        segments_of(Document("line 7", messages=talk), tokenizer)


# --- models -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", get_args(CausalArchitecture))
def test_architectures(architecture: Any) -> None:
    """Its loss by chunks is the library's own, and it keeps packed documents apart."""
    torch.manual_seed(0)
    model = causal.new_model(NewModel(architecture=architecture, layers=2, heads=2, width=16), 33, 16, 32).eval()
    tokens = torch.randint(0, 33, (2, 12))
    labels = tokens.roll(-1, 1)
    labels[:, -1] = -100
    loss, right, count = model(tokens, labels)
    logits = model.network(input_ids=tokens).logits
    torch.testing.assert_close(
        loss, functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")
    )
    assert int(right) == int((logits[:, :-1].argmax(-1) == tokens[:, 1:]).sum())
    assert int(count) == 22
    assert model.by_chunks
    assert model.keeps_documents_apart
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) < 10_000


def test_it_is_compiled_whole_and_once_for_any_number_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches what the compiler cannot follow (each such place would cut the program in two) and a program for each batch size."""
    from torch._dynamo.testing import CompileCounter

    counter, compile = CompileCounter(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compile(function, backend=counter))
    model = causal.new_model(NewModel(architecture="gpt2", layers=1, heads=2, width=16), 33, 8, 32)
    compile_in_place([model])
    for count in (5, 3, 1):
        tokens = torch.randint(0, 33, (count, 8))
        model(tokens, tokens)[0].backward()
    assert counter.frame_count == 1


def test_settings_that_are_none() -> None:
    for config, says in (
        ({"n_lyer": 1}, "no such setting"),
        ({"vocab_size": 5}, "the data decides"),
        ({"n_head": 3}, "cannot be built"),
    ):
        with pytest.raises(BadDataError, match=f"task.model.config.*{says}"):
            causal.new_model(NewModel(architecture="gpt2", config=config), 33, 16, None)  # type: ignore[arg-type]


def test_the_loss_by_chunks_is_exact() -> None:
    """Catches a mean of means, an ignored label that counts, and gradients of a chunk that are lost."""
    torch.manual_seed(0)
    labels = torch.randint(0, 50, (37,))
    labels[::5] = -100
    found = []
    for elements in (10**9, 7 * 50):
        torch.manual_seed(1)
        head, hidden = nn.Linear(8, 50), torch.randn(37, 8, requires_grad=True)
        sums = cross_entropy(head, hidden, labels, elements, vocabulary=50)
        sums[0].backward()
        found.append((sums.detach(), hidden.grad, head.weight.grad, head.bias.grad))
    plain = functional.cross_entropy(head(hidden), labels, reduction="sum")
    torch.testing.assert_close(found[0][0][0], plain.detach())
    torch.testing.assert_close(found[0], found[1])
    assert int(found[0][0][2]) == 29


class Watch(TorchDispatchMode):
    """The elements of large tensors that are alive at once."""

    alive, most = 0, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple) else (result,):
            if isinstance(value, Tensor) and value._base is None and value.numel() >= 100 * 500:
                self._count(value.numel())
                weakref.finalize(value, self._count, -value.numel())
        return result

    def _count(self, elements: int) -> None:
        self.alive += elements
        self.most = max(self.most, self.alive)


def test_the_logits_never_stand_in_memory_whole() -> None:
    """Forward and backward: catches chunks that are kept for the backward pass."""
    peaks = []
    for elements in (10**9, 100 * 500):
        head, hidden, labels = (
            nn.Linear(4, 500),
            torch.randn(2000, 4, requires_grad=True),
            torch.randint(0, 500, (2000,)),
        )
        watch = Watch()  # type: ignore[no-untyped-call]
        with watch:
            cross_entropy(head, hidden, labels, elements, vocabulary=500)[0].backward()
        peaks.append(watch.most)
    assert peaks[0] >= 2000 * 500, "the whole logits, where they are one chunk"
    assert 0 < peaks[1] <= 6 * 100 * 500


# --- samples ----------------------------------------------------------------------------------------------------------


def test_sampling_beyond_the_context() -> None:
    torch.manual_seed(0)
    model = causal.new_model(NewModel(architecture="gpt2", layers=1, heads=2, width=16), 33, 8, 32).eval()
    spec = Samples(prompts=["x"], max_new_tokens=20, temperature=0)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.tensor([[1, 2, 3]])
    first = generate(model, tokens, spec, 8, generator)
    assert first.shape == (1, 20)
    with torch.no_grad():  # within the context: the likeliest next token each time
        for index in range(5):
            logits = model.network(input_ids=torch.cat([tokens, first[:, :index]], 1)).logits[:, -1]
            assert int(logits.argmax()) == int(first[0, index])


def test_drawing() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]]).repeat(2000, 1)
    generator = torch.Generator().manual_seed(0)

    def found(**settings: Any) -> Tensor:
        return drawn(logits, Samples(prompts=["x"], **settings), generator).flatten()

    assert set(found(top_k=2).tolist()) == {2, 3}
    assert set(found(temperature=0).tolist()) == {3}
    shares = torch.bincount(found(), minlength=4) / 2000
    torch.testing.assert_close(shares, logits[0].softmax(0), atol=0.04, rtol=0)
