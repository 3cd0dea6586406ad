"""The user's own task: made by the factory that the job names, and held to what the training loop relies on.

Every mistake in it is told by the name of the field or method, and the file and line of the user's code where there is one.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import default_collate

from workers.kinds.custom import CustomTask
from workers.sources.code import SEED, Parameters
from workers.sources.problems import BadCodeError
from workers.tasks.base import Batch, Dataset, Datasets, ModelFacts
from workers.user_code import UserCode

METHODS = ("datasets", "model", "loss", "evaluate")


class Custom:
    """``seed`` goes to a factory that has an argument of that name. Raises BadCodeError."""

    def __init__(self, spec: CustomTask, *, seed: int, code: UserCode) -> None:
        self._spec, self._code = spec, code
        self._task = build(spec, seed, code)
        if hasattr(self._task, "illustrate"):
            self.illustrate = self._task.illustrate

    @property
    def code(self) -> UserCode:
        return self._code

    def datasets(self) -> Datasets:
        found = self._task.datasets()
        if isinstance(found, tuple | list) and len(found) == 2:
            found = Datasets(*found)
        if not hasattr(found, "train") or not hasattr(found, "evaluation"):
            raise _wrong("datasets()", f"gave {_kind(found)}; it must give (training data, evaluation data or None)")
        train, evaluation = _dataset(found.train, "training"), None
        if found.evaluation is not None:
            evaluation = _dataset(found.evaluation, "evaluation")
        return Datasets(train, evaluation)

    def model(self) -> nn.Module:
        model = self._task.model()
        if not isinstance(model, nn.Module):
            raise _wrong("model()", f"gave {_kind(model)}; it must give a torch.nn.Module")
        return model

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        return _sum_and_count(self._task.loss(model, batch), "loss()", batch)

    def evaluate(self, model: nn.Module, batch: Batch) -> Mapping[str, tuple[Tensor, Tensor]]:
        found = self._task.evaluate(model, batch)
        if not isinstance(found, Mapping):
            raise _wrong("evaluate()", f"gave {_kind(found)}; it must give {{'loss': (sum, count), ...}}")
        if missing := [name for name in self._spec.metrics() if name not in found]:
            raise _wrong("evaluate()", f"gave {', '.join(map(str, found))}; {missing[0]} is missing (task.metrics)")
        return {str(name): _sum_and_count(pair, f"evaluate()[{name!r}]", batch) for name, pair in found.items()}

    def facts(self) -> ModelFacts:
        given = getattr(self._task, "facts", None)
        return given() if given is not None else ModelFacts(())


def build(spec: CustomTask, seed: int, code: UserCode) -> Any:
    """What the factory gives, which has the methods of a task."""
    code.make_importable()
    factory = _factory(spec, code)
    arguments = dict(spec.arguments)
    try:
        parameters = _parameters(factory)
    except (TypeError, ValueError):  # a class of a library written in C, say
        parameters = None
    if parameters is not None:
        parameters.check(arguments, spec.factory)
        if SEED in parameters.names:
            arguments.setdefault(SEED, seed)
    elif not callable(factory):
        raise BadCodeError("task.factory", f"{spec.factory} is {_kind(factory)}; it must be a function or a class")
    with code.blamed("task.factory", f"{spec.factory}({', '.join(arguments)})"):
        task = factory(**arguments)
    if missing := [name for name in METHODS if not callable(getattr(task, name, None))]:
        raise BadCodeError(
            "task.factory", f"{spec.factory} gave {_kind(task)}, which is no task: it has no {', '.join(missing)}"
        )
    return task


def _factory(spec: CustomTask, code: UserCode) -> Any:
    name, _, attribute = spec.factory.partition(":")
    with code.blamed("task.factory", f"import {name}"):
        module = importlib.import_module(name)
    where = getattr(module, "__file__", None)
    if where is None or not any(Path(where).is_relative_to(path) for path in code.search):
        raise BadCodeError(
            "task.factory",
            f"{name} is a module of this machine ({where or 'built in'}), which hides the one of the code; give yours another name",
        )
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            own = [each for each in vars(found) if not each.startswith("_")]
            raise BadCodeError("task.factory", f"{name} has no {part}; it has {', '.join(own[:12]) or 'nothing'}")
        found = getattr(found, part)
    return found


def _parameters(factory: Any) -> Parameters:
    every = inspect.signature(factory).parameters.values()
    named = [each for each in every if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    return Parameters(
        tuple(each.name for each in named),
        tuple(each.name for each in named if each.default is each.empty),
        any(each.kind is each.VAR_KEYWORD for each in every),
    )


# --- what the loop relies on ------------------------------------------------------------------------------------------


def _dataset(given: Any, which: str) -> Dataset:
    if not hasattr(given, "__len__") or not (hasattr(given, "batch") or hasattr(given, "__getitem__")):
        raise _wrong(
            "datasets()",
            f"gave {_kind(given)} as {which} data; it must have __len__, and batch(indices, seed=...) or __getitem__",
        )
    if len(given) == 0:
        raise _wrong("datasets()", f"gave no {which} data: its length is 0")
    return CheckedDataset(given, which)


class CheckedDataset:
    """The user's data. One sample after the other, as torch's own data sets give them, is put together to batches here: of pairs become
    ``inputs`` and ``targets``."""

    def __init__(self, given: Any, which: str) -> None:
        self._given, self._which = given, which

    def __len__(self) -> int:
        return len(self._given)

    def batch(self, indices: Sequence[int], *, seed: int) -> Batch:
        if hasattr(self._given, "batch"):
            batch, what = self._given.batch(indices, seed=seed), "batch()"
        else:
            batch, what = default_collate([self._given[int(index)] for index in indices]), "one sample"
        if isinstance(batch, tuple | list) and len(batch) == 2:
            batch = {"inputs": batch[0], "targets": batch[1]}
        if not isinstance(batch, Mapping) or not batch:
            wanted = "a dictionary of tensors, or a pair (inputs, targets)"
            raise _wrong(f"the {self._which} data", f"gave {_kind(batch)} as {what}; it must give {wanted}")
        for name, value in batch.items():
            if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != len(indices):
                shape = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else _kind(value)
                raise _wrong(
                    f"the {self._which} data",
                    f"gave {shape} as {name!r} of {len(indices)} samples; each must be a tensor of them all",
                )
        return batch


def _sum_and_count(given: Any, method: str, batch: Batch) -> tuple[Tensor, Tensor]:
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise _wrong(method, f"gave {_kind(given)}; it must give (sum over the samples, how many they are)")
    device = next(iter(batch.values())).device
    total, count = (value if isinstance(value, Tensor) else _number(value, method, device) for value in given)
    if total.numel() != 1 or count.numel() != 1:
        raise _wrong(method, f"gave shapes {tuple(total.shape)} and {tuple(count.shape)}; both must be single numbers")
    return total.reshape(()), count.reshape(())


def _number(value: Any, method: str, device: torch.device) -> Tensor:
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise _wrong(method, f"gave {_kind(value)}; it must give two numbers or tensors")
    return torch.tensor(value, device=device)


def _wrong(what: str, said: str) -> BadCodeError:
    return BadCodeError("task.factory", f"{what} {said}")


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__qualname__}"


# --- the model, also without its data ---------------------------------------------------------------------------------


class Exported:
    """A finished model's own code, in the folder of the model: what other kinds have in their modules."""

    def __init__(self, spec: CustomTask, folder: Path) -> None:
        top = (folder / "code").resolve()
        self._code = UserCode(top, (top, *(top / name for name in spec.code.python_path)))
        self._task = build(spec, 0, self._code)

    def build_model(self, spec: CustomTask, facts: ModelFacts) -> nn.Module:
        with self._code.blamed("task.factory", "model()"):
            model: nn.Module = self._task.model()
        return model

    def predict(self, model: nn.Module, spec: CustomTask, facts: ModelFacts, inputs: NDArray[Any]) -> dict[str, Any]:
        """What the task's own ``predict(model, inputs)`` gives: name -> array with one row a sample."""
        given = getattr(self._task, "predict", None)
        if given is None:
            raise BadCodeError("task.factory", f"{spec.factory} gives a task without predict(model, inputs)")
        with torch.no_grad():
            found = given(model, inputs)
        return dict(found) if isinstance(found, Mapping) else {"prediction": found}
