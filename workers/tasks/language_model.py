"""Predicting the next token."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from workers import flops
from workers.kinds.hub import is_folder
from workers.kinds.language import (
    ByteTokenizer,
    CheckpointModel,
    DocumentData,
    FileTokenizer,
    LanguageModelTask,
    Samples,
    TextData,
    TokenData,
)
from workers.language import vocabulary
from workers.language.blocks import PackedDocuments, TextBlocks
from workers.language.documents import segments_of, tokenize
from workers.models import causal
from workers.sources import documents, text, token_files
from workers.sources.language import need_block
from workers.sources.problems import BadDataError
from workers.tasks.base import Batch, Datasets, ModelFacts


class LanguageModelling:
    terms = "tokens"  # what its loss counts: reported as train/tokens_per_second

    def __init__(self, spec: LanguageModelTask, *, seed: int) -> None:
        self._spec = spec
        self._tokenizer: Any = None
        self._facts: ModelFacts | None = None
        self._model: causal.LanguageModel | None = None  # the newest one

    def datasets(self) -> Datasets:
        data = self._spec.data
        if isinstance(data, DocumentData):
            datasets = self._packed(data)
        else:
            train, evaluation = self._tokens(data)
            size = self._spec.block_size
            need_block("token", len(train), len(evaluation), size)
            datasets = Datasets(TextBlocks(train, size, shifted=True), TextBlocks(evaluation, size, shifted=False))
        known = data.vocabulary_size if isinstance(data, TokenData) else len(self._tokenizer)
        self._facts = ModelFacts((self._spec.block_size,), (), {"vocabulary_size": known})
        self._check_prompts()
        return datasets

    def _tokens(self, data: TextData | TokenData) -> tuple[NDArray[Any], NDArray[Any]]:
        if isinstance(data, TokenData):
            self._tokenizer = self._loaded_tokenizer()
            return token_files.read_tokens(data)
        texts = text.read_texts(data)
        self._tokenizer = self._loaded_tokenizer() or vocabulary.build_tokenizer(
            self._spec.tokenizer, texts.train, texts.evaluation
        )
        train, evaluation = (vocabulary.encode_texts(self._tokenizer, part) for part in (texts.train, texts.evaluation))
        return train, evaluation

    def _packed(self, data: DocumentData) -> Datasets:
        found = documents.read_documents(data)
        given = self._loaded_tokenizer()
        # Only the chat template of this one is used; those that are built here have the same.
        template = given or vocabulary.build_tokenizer(ByteTokenizer(kind="byte"), (), ())
        parts = [[segments_of(document, template) for document in part] for part in (found.train, found.evaluation)]
        texts = [[piece for segments in part for piece, _ in segments] for part in parts]
        self._tokenizer = given or vocabulary.build_tokenizer(self._spec.tokenizer, *texts)
        train, evaluation = (PackedDocuments(tokenize(part, self._tokenizer), self._spec.block_size) for part in parts)
        for field, part in (("path", train), ("evaluation_path" if data.evaluation_path else "holdout", evaluation)):
            if len(part) == 0:
                raise BadDataError(f"task.data.{field}", "no document has a token that another one comes before")
        return Datasets(train, evaluation)

    def _loaded_tokenizer(self) -> Any:
        """One that is there already; None when it is built from the data."""
        spec = self._spec
        if isinstance(spec.tokenizer, FileTokenizer):
            return vocabulary.load_tokenizer(
                spec.tokenizer.path, "task.tokenizer.path", local=is_folder(spec.tokenizer.path)
            )
        if isinstance(spec.model, CheckpointModel):
            return vocabulary.load_tokenizer(
                spec.model.checkpoint, "task.model.checkpoint", local=is_folder(spec.model.checkpoint)
            )
        return None

    def _check_prompts(self) -> None:
        for index, prompt in enumerate(self._spec.samples.prompts if self._spec.samples else ()):
            unknown = vocabulary.unknown_characters(self._tokenizer, prompt)
            if unknown:
                raise BadDataError(
                    f"task.samples.prompts[{index}]",
                    f"{unknown!r} occurs nowhere in the data, so that there is no token for it",
                )

    def model(self) -> nn.Module:
        self._model = _new(self._spec, self.facts(), self._tokenizer)
        if isinstance(self._spec.data, DocumentData) and not self._model.keeps_documents_apart:
            raise BadDataError(
                "task.model", "this architecture cannot tell documents in one block apart; choose another one"
            )
        return self._model

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        sums = model(batch["tokens"], batch["labels"], batch.get("positions"))
        return sums[0], sums[2].detach()

    def evaluate(self, model: nn.Module, batch: Batch) -> Mapping[str, tuple[Tensor, Tensor]]:
        loss, right, count = model(batch["tokens"], batch["labels"], batch.get("positions"))
        return {"loss": (loss, count), "accuracy": (right, count)}

    def derived(self, metrics: Mapping[str, float]) -> Mapping[str, float]:
        return {"perplexity": perplexity(metrics["loss"])}

    def flops_per_sample(self, model: nn.Module) -> float:
        return flops.of_language_sample(cast(causal.LanguageModel, model).network, self._spec.block_size)

    def illustrate(self, model: nn.Module, device: torch.device) -> Mapping[str, bytes]:
        """``samples.txt``: what the model writes now."""
        spec = self._spec.samples
        if spec is None:
            return {}
        from workers.language.sampling import complete

        completions = complete(model, self._tokenizer, spec.prompts, spec, self._spec.block_size, device)
        return {"samples.txt": _page(spec.prompts, completions).encode()}

    def facts(self) -> ModelFacts:
        assert self._facts is not None, "datasets() comes first"
        return self._facts

    def write_model(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """As the libraries write it: ``from_pretrained`` of transformers opens the folder, that of peft where there are adapters."""
        assert self._model is not None
        own = {name.removeprefix("network."): value for name, value in weights.items()}
        network: Any = self._model.network
        keyword = {"save_embedding_layers": False} if hasattr(network, "peft_config") else {}
        network.save_pretrained(str(folder), state_dict=own, **keyword)
        if self._tokenizer is not None:
            self._tokenizer.model_max_length = self._spec.block_size
            self._tokenizer.save_pretrained(str(folder))


def perplexity(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf  # beyond the range of a float


def _page(prompts: Sequence[str], completions: Sequence[Sequence[str]]) -> str:
    parts = [
        f"=== prompt {number}, sample {count} ===\n{prompt}{completion}\n"
        for number, (prompt, found) in enumerate(zip(prompts, completions, strict=True), 1)
        for count, completion in enumerate(found, 1)
    ]
    return "\n".join(parts)


def _new(spec: LanguageModelTask, facts: ModelFacts, tokenizer: Any) -> causal.LanguageModel:
    size = cast(int, facts.preprocessing["vocabulary_size"])
    if isinstance(spec.model, CheckpointModel):
        return causal.load_model(spec.model, size, spec.block_size)
    return causal.new_model(spec.model, size, spec.block_size, tokenizer.eos_token_id if tokenizer else None)


# --- the model, also without its data ---------------------------------------------------------------------------------


def open_model(folder: Path, spec: LanguageModelTask, facts: ModelFacts) -> nn.Module:
    """A model that ``write_model`` has written, with its tokenizer beside it."""
    from transformers import AutoModelForCausalLM

    model = causal.LanguageModel(AutoModelForCausalLM.from_pretrained(str(folder), use_safetensors=True))
    model.tokenizer = vocabulary.load_tokenizer(str(folder), "model", local=True)
    return model


def predict(model: nn.Module, spec: LanguageModelTask, facts: ModelFacts, inputs: NDArray[Any]) -> dict[str, Any]:
    """``inputs``: prompts, (N,) or (N, 1) texts. Gives a completion of each, as ``samples`` of the job says."""
    from workers.language.sampling import complete

    prompts = [str(prompt) for prompt in np.asarray(inputs).reshape(-1)]
    settings = (spec.samples or Samples(prompts=["x"])).model_copy(update={"count": 1})
    found = complete(model, model.tokenizer, prompts, settings, spec.block_size, torch.device("cpu"))
    return {"completion": np.array([completions[0] for completions in found], dtype=object)}
