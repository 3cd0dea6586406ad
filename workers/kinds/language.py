"""Language models: which text, which tokenizer, which causal model, trained from scratch or fine-tuned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, JsonValue, StringConstraints, Tag, model_validator
from pydantic_core import PydanticCustomError

from workers.kinds.hub import FolderOrRepository, is_folder
from workers.spec_base import ColumnName, Model, PathText, PositiveInt, TaskModel, chosen_by, filled

Prompt = Annotated[str, StringConstraints(min_length=1, max_length=100_000)]


class HeldOut(Model):
    evaluation_path: PathText | None = Field(None, description="null: hold out the last part of the training data")
    holdout: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="share held out when there is no evaluation_path: the last part, in one piece"
    )


class TextData(HeldOut):
    """A UTF-8 text file, or a folder of ``.txt`` and ``.md`` files, read in the order of their names."""

    source: Literal["text"]
    path: PathText


class DocumentData(HeldOut):
    """One document a line (JSONL) or row (Parquet): ``messages``, or ``prompt`` and ``completion``, or ``text``."""

    source: Literal["jsonl", "parquet"]
    path: PathText


class TokenData(HeldOut):
    """Token ids in a flat little-endian file, read by memory map."""

    source: Literal["tokens"]
    path: PathText
    dtype: Literal["uint16", "uint32"] = "uint16"
    vocabulary_size: Annotated[int, Field(ge=2, le=2**31 - 1)]


LanguageData = Annotated[
    Annotated[TextData, Tag("text")] | Annotated[DocumentData, Tag("documents")] | Annotated[TokenData, Tag("tokens")],
    chosen_by("source", "text, jsonl, parquet or tokens", same=dict.fromkeys(("jsonl", "parquet"), "documents")),
]


# --- tokenizers -------------------------------------------------------------------------------------------------------


class DefaultTokenizer(Model):
    """The checkpoint's own; without a checkpoint as byte. Token files need none, but without one nothing can be sampled."""

    kind: Literal["default"]


class CharTokenizer(Model):
    """One token a character that occurs in the data."""

    kind: Literal["char"]


class ByteTokenizer(Model):
    """One token a byte of the UTF-8 text: 256 of them, and the end of a text."""

    kind: Literal["byte"]


class BpeTokenizer(Model):
    """Byte-level byte-pair encoding, trained on the training part of the data."""

    kind: Literal["bpe"]
    vocabulary_size: Annotated[int, Field(ge=257, le=1_000_000)] = 4096


class FileTokenizer(Model):
    """A tokenizer that is there already: a folder or a tokenizer.json that begins with / or ./, or a repository of the hub."""

    kind: Literal["file"]
    path: FolderOrRepository


TokenizerModel = Annotated[
    Annotated[DefaultTokenizer, Tag("default")]
    | Annotated[CharTokenizer, Tag("char")]
    | Annotated[ByteTokenizer, Tag("byte")]
    | Annotated[BpeTokenizer, Tag("bpe")]
    | Annotated[FileTokenizer, Tag("file")],
    chosen_by("kind", "default, char, byte, bpe or file"),
]


# --- models -----------------------------------------------------------------------------------------------------------

CausalArchitecture = Literal[
    "gpt2", "gpt_neox", "phi", "llama", "mistral", "qwen2", "qwen3", "gemma", "olmo2", "smollm3", "stablelm", "granite",
]  # fmt: skip
Attention = Literal["sdpa", "eager", "flash_attention_2"]


class NewModel(Model):
    """A causal language model of the transformers library, built from its configuration with random weights."""

    architecture: CausalArchitecture
    layers: Annotated[int, Field(ge=1, le=1000)] = 4
    heads: Annotated[int, Field(ge=1, le=1024)] = 4
    width: Annotated[int, Field(ge=1, le=1_000_000)] = 128
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    config: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="overrides of the architecture's configuration, for example {intermediate_size: 512}",
    )
    attention: Attention = "sdpa"

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.width % self.heads:
            raise PydanticCustomError(
                "heads", "width {width} is not a multiple of heads {heads}", {"width": self.width, "heads": self.heads}
            )
        return self


class Lora(Model):
    """Low-rank adapters (Hu et al. 2021), by the peft library: all other weights stay as they are."""

    rank: Annotated[int, Field(ge=1, le=4096)] = 8
    alpha: Annotated[float, Field(gt=0, le=1e6)] = Field(16.0, description="the update is scaled by alpha / rank")
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: Annotated[list[ColumnName], Field(min_length=1, max_length=100)] | None = Field(
        None, description="names of the linear layers that get adapters; default: all but the output layer"
    )


class CheckpointModel(Model):
    """A model that is there already: the folder of an earlier job's model, any of transformers, or a repository of the hub."""

    checkpoint: FolderOrRepository
    lora: Lora | None = Field(None, description="null: all weights are trained")
    attention: Attention = "sdpa"


def _by_checkpoint(value: object) -> str:
    given = "checkpoint" in value if isinstance(value, Mapping) else isinstance(value, CheckpointModel)
    return "from_checkpoint" if given else "from_config"  # no names of fields: problems are found by their path


CausalModel = Annotated[
    Annotated[CheckpointModel, Tag("from_checkpoint")] | Annotated[NewModel, Tag("from_config")],
    Discriminator(_by_checkpoint),
]


# --- the task ---------------------------------------------------------------------------------------------------------


class Samples(Model):
    """What the model is asked to write after each evaluation."""

    prompts: Annotated[list[Prompt], Field(min_length=1, max_length=64)]
    count: Annotated[int, Field(ge=1, le=64)] = Field(1, description="completions of each prompt")
    max_new_tokens: Annotated[int, Field(ge=1, le=100_000)] = 200
    temperature: Annotated[float, Field(ge=0, le=100)] = Field(1.0, description="0: always the likeliest token")
    top_k: PositiveInt | None = Field(None, description="draw from the so many likeliest tokens only")


class LanguageModelTask(TaskModel):
    kind: Literal["language_model"]
    data: LanguageData
    tokenizer: TokenizerModel = Field(default_factory=lambda: DefaultTokenizer(kind="default"))
    model: CausalModel = Field(default_factory=lambda: NewModel(architecture="gpt2"))
    block_size: Annotated[int, Field(ge=1, le=2**24)] = Field(256, description="tokens that the model sees at once")
    samples: Samples | None = None

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        built = isinstance(self.tokenizer, CharTokenizer | ByteTokenizer | BpeTokenizer)
        if isinstance(self.data, TokenData) and built:
            raise PydanticCustomError(
                "tokenizer", "token files are tokenized already: use tokenizer kind file, or none"
            )
        if isinstance(self.model, CheckpointModel) and built:
            raise PydanticCustomError(
                "tokenizer", "a checkpoint has a tokenizer: leave the field out, or use kind file"
            )
        if self.samples is not None and not self.has_tokenizer:
            raise PydanticCustomError("samples", "samples of a model of token files need a tokenizer of kind file")
        return self

    @property
    def has_tokenizer(self) -> bool:
        loaded = isinstance(self.tokenizer, FileTokenizer) or isinstance(self.model, CheckpointModel)
        return loaded or not isinstance(self.data, TokenData)

    def metrics(self) -> tuple[str, ...]:
        return ("loss", "perplexity", "accuracy")

    def paths(self) -> list[tuple[str, str]]:
        named = filled(self.model, ("checkpoint",), "task.model") + filled(self.tokenizer, ("path",), "task.tokenizer")
        folders = [(field, value) for field, value in named if is_folder(value)]
        return filled(self.data, ("path", "evaluation_path")) + folders
