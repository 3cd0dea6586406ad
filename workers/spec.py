"""The job specification: what a user asks for, as one typed model.

The ground floor of the house: pydantic and the standard library only, so that the API, the scheduler, the client and
the workers can all import it in a few milliseconds.

Numbers are strict: ``"7"``, ``true`` and ``1.0`` are no integers, NaN and infinity are no numbers. A field whose feature
does not exist yet is refused with a message that says so; it is never accepted and ignored.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    StringConstraints,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

# No control characters: a name goes into logs, headers and terminals. (pydantic itself refuses lone surrogates.)
PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$"
Name = Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=PRINTABLE, strip_whitespace=True)]
ColumnName = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=PRINTABLE)]
PathText = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=PRINTABLE)]
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=PRINTABLE)]
MetadataValue = Annotated[str, StringConstraints(max_length=512, pattern=PRINTABLE)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(ge=1, le=2**31 - 1)]
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
Width = Annotated[int, Field(ge=1, le=1_000_000)]

Activation = Literal["relu", "leaky_relu", "gelu", "silu", "elu", "selu", "tanh", "sigmoid"]


class Model(BaseModel):
    """Base of every part: unknown keys refused, no coercion, finite numbers only."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True, protected_namespaces=())


def not_available(what: str, instead: str) -> PydanticCustomError:
    return PydanticCustomError(
        "not_available", "{what} is not available yet; {instead}", {"what": what, "instead": instead}
    )


class NotAvailableKind(Model):
    """A kind that the design names and this version cannot do: refused whatever its other fields are."""

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, value: Any) -> Any:
        key, allowed = cls._selector()
        raise not_available(f"{key} {value.get(key)!r}" if isinstance(value, Mapping) else key, f"use {allowed}")

    @classmethod
    def _selector(cls) -> tuple[str, str]:
        raise AssertionError("each subclass names its selector")


def _by(key: str, allowed: str, same: Mapping[str, str] | None = None, later: tuple[str, ...] = ()) -> Discriminator:
    """Chooses the member of a union by ``value[key]``; anything else is an error that names ``key`` and ``allowed``."""

    def tag(value: object) -> str | None:
        selected = value.get(key) if isinstance(value, Mapping) else getattr(value, key, None)
        if not isinstance(selected, str):
            return None
        return "later" if selected in later else (same or {}).get(selected, selected)

    return Discriminator(
        tag,
        custom_error_type="one_of",
        custom_error_message="{key} must be one of: {allowed}",
        custom_error_context={"key": key, "allowed": allowed},
    )


# --- data -------------------------------------------------------------------------------------------------------------


class DigitsData(Model):
    """scikit-learn's 1,797 handwritten digits, 8 x 8, grey; 360 of them are held out for evaluation."""

    source: Literal["digits"]


class NpzData(Model):
    """Arrays of one ``.npz`` file: images (N, H, W) or (N, H, W, C) of uint8 or float, labels (N,) or (N, 1) of integers."""

    source: Literal["npz"]
    path: PathText
    train_images: ColumnName = "x_train"
    train_labels: ColumnName = "y_train"
    evaluation_images: ColumnName | None = Field("x_test", description="null: hold out a part of the training images")
    evaluation_labels: ColumnName | None = "y_test"
    holdout: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.2, description="share held out when there are no evaluation images"
    )
    classes: Annotated[int, Field(ge=2, le=1_000_000)] | None = Field(
        None, description="number of classes; default: largest label + 1"
    )

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.evaluation_images is None) != (self.evaluation_labels is None):
            raise PydanticCustomError(
                "pair", "evaluation_images and evaluation_labels must both be given, or both be null"
            )
        return self


class IdxData(Model):
    """Files in the idx format of MNIST (also gzipped): images (N, H, W) of unsigned bytes, labels (N,)."""

    source: Literal["idx"]
    train_images: PathText
    train_labels: PathText
    evaluation_images: PathText | None = None
    evaluation_labels: PathText | None = None
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.2
    classes: Annotated[int, Field(ge=2, le=1_000_000)] | None = None

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.evaluation_images is None) != (self.evaluation_labels is None):
            raise PydanticCustomError(
                "pair", "evaluation_images and evaluation_labels must both be given, or both be null"
            )
        return self


class FolderData(Model):
    """A folder with one folder of image files a class; class names are the sorted folder names."""

    source: Literal["folder"]
    path: PathText
    evaluation_path: PathText | None = Field(None, description="null: hold out a part of the training images")
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.2
    image_size: Annotated[int, Field(ge=4, le=4096)] = Field(
        64, description="images are resized to this height and width, in pixels"
    )
    channels: Literal[1, 3] = 3


class UnavailableImageData(NotAvailableKind):
    source: str

    @classmethod
    def _selector(cls) -> tuple[str, str]:
        return "source", "digits, npz, idx or folder"


class BreastCancerData(Model):
    """scikit-learn's breast cancer data: 569 rows of 30 numbers, 2 classes; a fifth of the rows is held out."""

    source: Literal["breast_cancer"]


class TableData(Model):
    """Rows of a CSV or Parquet file. Features are numbers; they are standardised with the training rows' mean and deviation."""

    source: Literal["csv", "parquet"]
    path: PathText
    evaluation_path: PathText | None = None
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.2
    target: ColumnName
    features: Annotated[list[ColumnName], Field(min_length=1, max_length=100_000)] | None = Field(
        None, description="default: every column but the target"
    )


IMAGE_SOURCES_LATER = ("huggingface", "parquet")

ImageData = Annotated[
    Annotated[DigitsData, Tag("digits")]
    | Annotated[NpzData, Tag("npz")]
    | Annotated[IdxData, Tag("idx")]
    | Annotated[FolderData, Tag("folder")]
    | Annotated[UnavailableImageData, Tag("later")],
    _by("source", "digits, npz, idx or folder", later=IMAGE_SOURCES_LATER),
]
TabularData = Annotated[
    Annotated[BreastCancerData, Tag("breast_cancer")] | Annotated[TableData, Tag("table")],
    _by("source", "breast_cancer, csv or parquet", same={"csv": "table", "parquet": "table"}),
]


# --- models -----------------------------------------------------------------------------------------------------------


class MlpModel(Model):
    """Fully connected layers; images are flattened."""

    architecture: Literal["mlp"]
    hidden: Annotated[list[Width], Field(min_length=0, max_length=1000)] = [256, 128]
    activation: Activation = "relu"
    normalization: Literal["none", "batch", "layer"] = "none"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class CnnModel(Model):
    """3 x 3 convolutions, each block halving height and width, then one linear layer on the spatial mean."""

    architecture: Literal["cnn"]
    channels: Annotated[list[Width], Field(min_length=1, max_length=16)] = [32, 64]
    activation: Activation = "relu"
    normalization: Literal["none", "batch"] = "batch"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


TransformersArchitecture = Literal[
    "resnet", "vit", "convnext", "convnextv2", "regnet", "mobilenet_v1", "mobilenet_v2", "beit", "poolformer", "cvt",
    "dinov2",
]  # fmt: skip


class TransformersImageModel(Model):
    """An image classifier of the transformers library, built from its configuration with random weights."""

    architecture: TransformersArchitecture
    config: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="overrides of the architecture's configuration, for example {hidden_sizes: [32, 64], depths: [1, 1]}",
    )
    checkpoint: None = Field(None, description="fine-tuning from a checkpoint is not available yet")

    @field_validator("checkpoint", mode="before")
    @classmethod
    def _no_checkpoint(cls, value: Any) -> Any:
        if value is not None:
            raise not_available("fine-tuning from a checkpoint", "leave the field out")
        return value


ImageModel = Annotated[
    Annotated[MlpModel, Tag("mlp")]
    | Annotated[CnnModel, Tag("cnn")]
    | Annotated[TransformersImageModel, Tag("transformers")],
    _by(
        "architecture",
        "mlp, cnn, " + ", ".join(get_args(TransformersArchitecture)),
        same=dict.fromkeys(get_args(TransformersArchitecture), "transformers"),
    ),
]


# --- tasks ------------------------------------------------------------------------------------------------------------


class ImageClassificationTask(Model):
    kind: Literal["image_classification"]
    data: ImageData
    model: ImageModel = Field(default_factory=lambda: CnnModel(architecture="cnn"))


class TabularTask(Model):
    kind: Literal["tabular"]
    data: TabularData
    objective: Literal["classification", "regression"] = "classification"
    model: MlpModel = Field(default_factory=lambda: MlpModel(architecture="mlp", hidden=[64, 32]))

    @model_validator(mode="after")
    def _objective_fits(self) -> Self:
        if self.objective == "regression" and isinstance(self.data, BreastCancerData):
            raise PydanticCustomError(
                "objective", "objective 'regression' does not fit breast_cancer, whose target is a class"
            )
        return self


KINDS_LATER = ("language_model", "protein_structure", "custom", "script")


class UnavailableTask(NotAvailableKind):
    kind: str

    @classmethod
    def _selector(cls) -> tuple[str, str]:
        return "kind", "image_classification or tabular"


Task = Annotated[
    Annotated[ImageClassificationTask, Tag("image_classification")]
    | Annotated[TabularTask, Tag("tabular")]
    | Annotated[UnavailableTask, Tag("later")],
    _by("kind", "image_classification or tabular", later=KINDS_LATER),
]


# --- how it is trained ------------------------------------------------------------------------------------------------


class Training(Model):
    epochs: PositiveInt | None = Field(None, description="passes over the training data; give epochs or steps")
    steps: PositiveInt | None = Field(None, description="optimizer steps; give epochs or steps")
    batch_size: PositiveInt = Field(128, description="samples of one optimizer step, over all workers together")
    accumulate: Annotated[int, Field(ge=1, le=65536)] = Field(
        1, description="microbatches into which each worker splits its share of the batch, to save memory"
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16: autocast, weights stay fp32")
    clip_norm: Annotated[float, Field(gt=0)] | None = Field(None, description="largest global gradient norm")
    compile: bool = False
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @field_validator("precision", mode="before")
    @classmethod
    def _no_fp16(cls, value: Any) -> Any:
        if value == "fp16":
            raise not_available("precision 'fp16'", "use fp32 or bf16")
        return value

    @field_validator("compile")
    @classmethod
    def _no_compile(cls, value: bool) -> bool:
        if value:
            raise not_available("compile: true", "leave it false")
        return value

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise PydanticCustomError("length", "give epochs or steps, not both")
        return self

    @property
    def length(self) -> tuple[Literal["epochs", "steps"], int]:
        """How long to train; ten epochs when the job does not say."""
        return ("steps", self.steps) if self.steps is not None else ("epochs", self.epochs or 10)


OptimizerName = Literal[
    "sgd", "adam", "adamw", "nadam", "radam", "adamax", "rmsprop", "adagrad", "adadelta"
]  # torch.optim's, in lower case


class Optimizer(Model):
    name: OptimizerName = "adamw"
    learning_rate: Annotated[float, Field(ge=0, le=1e6)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = Field(None, description="sgd and rmsprop")
    nesterov: bool | None = Field(None, description="sgd with momentum")
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] | None = Field(
        None, description="the adam family"
    )
    epsilon: Annotated[float, Field(gt=0, le=1)] | None = Field(None, description="all but sgd")

    USES: ClassVar[Mapping[str, frozenset[str]]] = {
        "sgd": frozenset({"momentum", "nesterov"}),
        "rmsprop": frozenset({"momentum", "epsilon"}),
        "adagrad": frozenset({"epsilon"}),
        "adadelta": frozenset({"epsilon"}),
        **dict.fromkeys(("adam", "adamw", "nadam", "radam", "adamax"), frozenset({"betas", "epsilon"})),
    }

    @model_validator(mode="after")
    def _fields_of_this_optimizer(self) -> Self:
        for field in ("momentum", "nesterov", "betas", "epsilon"):
            if getattr(self, field) is not None and field not in self.USES[self.name]:
                raise PydanticCustomError(
                    "optimizer_field",
                    "{field} is not a setting of {name}, which has {allowed}",
                    {"field": field, "name": self.name, "allowed": ", ".join(sorted(self.USES[self.name]))},
                )
        if self.nesterov and not self.momentum:
            raise PydanticCustomError("optimizer_field", "nesterov needs momentum above 0")
        return self


class Schedule(Model):
    """Learning rate over the run: a pure function of the step."""

    name: Literal["constant", "cosine", "linear"] = "constant"
    warmup_steps: Count = Field(0, description="steps over which the rate climbs from 0 to learning_rate")
    final_factor: Fraction = Field(0.0, description="share of learning_rate at the last step (cosine, linear)")


class Workers(Model):
    count: Annotated[int, Field(ge=1, le=4096)] = 1
    min: None = None
    max: None = None
    cpus: Annotated[float, Field(gt=0, le=1024)] = Field(1, description="processors reserved a worker")
    gpus: Annotated[float, Field(ge=0, le=16)] = Field(0, description="accelerators reserved a worker")
    memory: Annotated[int, Field(ge=1)] | None = Field(None, description="bytes reserved a worker")
    threads: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None, description="threads of a worker's tensor operations; default: cpus, at least 1"
    )
    strategy: Literal["ddp"] = "ddp"

    @field_validator("min", "max", mode="before")
    @classmethod
    def _no_elastic(cls, value: Any) -> Any:
        if value is not None:
            raise not_available("an elastic number of workers (min, max)", "use count")
        return value

    @field_validator("strategy", mode="before")
    @classmethod
    def _no_fsdp(cls, value: Any) -> Any:
        if value == "fsdp":
            raise not_available("strategy 'fsdp'", "use ddp")
        return value

    @property
    def threads_per_worker(self) -> int:
        return self.threads or max(1, math.floor(self.cpus))


class Gradients(Model):
    every_steps: PositiveInt = Field(1, description="record the norm of every layer's gradient at each so many steps")
    overhead_budget: None = None

    @field_validator("overhead_budget", mode="before")
    @classmethod
    def _no_budget(cls, value: Any) -> Any:
        if value is not None:
            raise not_available("overhead_budget", "use every_steps")
        return value


class Health(Model):
    mode: Literal["observe", "advise"] = Field(
        "advise", description="observe: record; advise: explain and suggest. Neither changes the run."
    )
    allow: None = None
    budget: None = None
    preflight: Literal[False] = False
    on_critical: Literal["continue"] = "continue"

    @field_validator("mode", mode="before")
    @classmethod
    def _no_repair(cls, value: Any) -> Any:
        if value == "repair":
            raise not_available("mode 'repair'", "use observe or advise")
        return value

    @field_validator("allow", "budget", mode="before")
    @classmethod
    def _repairs_later(cls, value: Any) -> Any:
        if value is not None:
            raise not_available("repairing a running job", "leave the field out")
        return value

    @field_validator("preflight", mode="before")
    @classmethod
    def _no_preflight(cls, value: Any) -> Any:
        if value is True:
            raise not_available("preflight", "leave it false")
        return value

    @field_validator("on_critical", mode="before")
    @classmethod
    def _only_continue(cls, value: Any) -> Any:
        if value in ("pause", "stop"):
            raise not_available(f"on_critical {value!r}", "use continue")
        return value


class Checkpoint(Model):
    every_steps: PositiveInt | None = Field(None, description="default: only at the end and when the job is stopped")
    keep_last: Annotated[int, Field(ge=1, le=1000)] = 2
    keep_best: Annotated[int, Field(ge=0, le=1000)] = Field(
        1, description="kept besides, by the metric of evaluation.best"
    )


class EarlyStopping(Model):
    patience: PositiveInt = Field(description="evaluations without improvement after which training ends")
    min_delta: Annotated[float, Field(ge=0)] = Field(0.0, description="smaller changes are no improvement")


class Evaluation(Model):
    every_steps: PositiveInt | None = Field(None, description="default: after every epoch; always after the last step")
    batch_size: PositiveInt | None = Field(None, description="samples at once, over all workers; default: training's")
    best: Annotated[str, StringConstraints(pattern=r"^eval/[a-z0-9_]+$", max_length=100)] = Field(
        "eval/loss", description="the metric that says which checkpoint is best and when to stop early"
    )
    mode: Literal["min", "max"] = Field("min", description="whether a smaller or a larger value of it is better")
    early_stopping: EarlyStopping | None = None


class Retry(Model):
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 3


class JobSpec(Model):
    """A training job. The published JSON Schema of this model is at ``/v1/schema``."""

    name: Name
    task: Task
    training: Training = Field(default_factory=Training)
    optimizer: Optimizer = Field(default_factory=Optimizer)
    schedule: Schedule = Field(default_factory=Schedule)
    workers: Workers = Field(default_factory=Workers)
    gradients: Gradients = Field(default_factory=Gradients)
    health: Health = Field(default_factory=Health)
    checkpoint: Checkpoint = Field(default_factory=Checkpoint)
    evaluation: Evaluation = Field(default_factory=Evaluation)
    retry: Retry = Field(default_factory=Retry)
    queue: Literal["default"] = "default"
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    deadline_seconds: Annotated[float, Field(gt=0, le=10**9)] | None = Field(
        None, description="the job is stopped, with a checkpoint, so many seconds after it was created"
    )
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _share_for_everybody(self) -> Self:
        needed = self.workers.count * self.training.accumulate
        if self.training.batch_size < needed:
            raise PydanticCustomError(
                "batch_too_small",
                "training.batch_size {batch} is smaller than workers.count x training.accumulate = {needed}; "
                "each microbatch of each worker needs a sample",
                {"batch": self.training.batch_size, "needed": needed},
            )
        return self

    @model_validator(mode="after")
    def _best_is_measured(self) -> Self:
        task = self.task
        regression = isinstance(task, TabularTask) and task.objective == "regression"
        measured = ("eval/loss", "eval/mse", "eval/mae") if regression else ("eval/loss", "eval/accuracy")
        if self.evaluation.best not in measured:
            raise PydanticCustomError(
                "unknown_metric",
                "evaluation.best {best} is not measured by this task; allowed is {allowed}",
                {"best": self.evaluation.best, "allowed": ", ".join(measured)},
            )
        return self


def data_paths(spec: JobSpec) -> list[tuple[str, str]]:
    """Every file or folder that the job reads, as (path of the field, value)."""
    assert not isinstance(spec.task, UnavailableTask)  # no job has such a task
    data = spec.task.data
    fields = ("path", "evaluation_path") if not isinstance(data, IdxData) else _IDX_FIELDS
    found = ((f"task.data.{field}", getattr(data, field, None)) for field in fields)
    return [(field, value) for field, value in found if value is not None]


_IDX_FIELDS = ("train_images", "train_labels", "evaluation_images", "evaluation_labels")


# --- problems ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where, with which value (as short text), and what would be right."""

    path: str
    message: str
    value: str | None = None

    def __str__(self) -> str:
        where = self.path or "job"
        return f"{where}: {self.message}" + (f" (got {self.value})" if self.value is not None else "")


class SpecError(ValueError):
    """A job that cannot be accepted; ``problems`` has all of them at once."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(map(str, self.problems)))

    def __reduce__(self) -> tuple[type[SpecError], tuple[tuple[Problem, ...]]]:
        return SpecError, (self.problems,)


def parse_spec(document: object) -> JobSpec:
    """The job that ``document`` (parsed JSON or YAML) describes. Raises SpecError with every problem in it."""
    try:
        return JobSpec.model_validate(document)
    except ValidationError as error:
        raise SpecError(_problem(details, document) for details in error.errors(include_url=False)) from None


def _problem(details: ErrorDetails, document: object) -> Problem:
    path, value, present = _walk(details["loc"], document, missing=details["type"] == "missing")
    message = details["msg"].removeprefix("Value error, ")
    kind = details["type"]
    if kind == "extra_forbidden":
        message = "unknown field"
    elif kind == "missing":
        return Problem(path, "required, but missing")
    elif kind == "one_of":  # point at the key that chooses, not at the whole object
        key = details["ctx"]["key"]
        chosen = value.get(key) if isinstance(value, Mapping) else None
        return Problem(f"{path}.{key}", message, shorten(chosen) if chosen is not None else None)
    return Problem(path, message, shorten(value) if present else None)


def _walk(location: tuple[int | str, ...], document: object, *, missing: bool) -> tuple[str, object, bool]:
    """Path, value and whether it is there. Pydantic puts union tags into locations; they are no keys and are left out."""
    path: str = ""
    value, present = document, True
    for index, part in enumerate(location):
        if isinstance(part, int) and isinstance(value, list) and part < len(value):
            path, value = f"{path}[{part}]", value[part]
        elif isinstance(part, str) and isinstance(value, Mapping) and part in value:
            path, value = f"{path}.{part}" if path else part, value[part]
        elif missing and index == len(location) - 1:
            path, value, present = f"{path}.{part}" if path else str(part), None, False
    return path, value, present


def shorten(value: object, limit: int = 80) -> str:
    """``value`` as text that is safe to show: one line, at most ``limit`` characters, ASCII escapes for the rest."""
    if isinstance(value, Mapping | list) and len(value) > 8:
        return f"{'an object' if isinstance(value, Mapping) else 'a list'} of {len(value)} entries"
    if isinstance(value, str):
        text = ascii(value[: limit + 1])
    elif isinstance(value, int) and abs(value) > 10**30:  # printing a huge integer takes quadratic time, or is refused
        text = "an integer of more than 30 digits"
    else:
        text = ascii(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
