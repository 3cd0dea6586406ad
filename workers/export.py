"""The finished model: safetensors and JSON, in a folder that is an MLflow model too. Nothing in it is a pickle.

model.safetensors    weights
model.json           task specification, input shape, class names, preprocessing
code/                of a custom task: the user's own
MLmodel, python_env.yaml, requirements.txt    for mlflow.pyfunc.load_model and `mlflow models serve`
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import platform
import shutil
import time
import uuid
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import TypeAdapter
from torch import Tensor, nn

from workers.bundles import LEFT_OUT
from workers.spec import JobSpec, code_of
from workers.task_spec import Task as TaskSpec
from workers.tasks import FACTORIES
from workers.tasks.base import ModelFacts, Task, Writing

if TYPE_CHECKING:
    import pandas

WEIGHTS, FACTS, CODE, FORMAT = "model.safetensors", "model.json", "code", 1
REQUIREMENTS = ("torch", "numpy", "pandas", "pydantic", "safetensors", "transformers", "peft", "biotite", "mlflow")


def export_model(
    folder: Path,
    weights: Mapping[str, Tensor],
    task: Task,
    spec: JobSpec,
    patches: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Writes the model; a reader finds the whole folder or (for an instant, when an older one is replaced) none.

    ``weights``: all of them, from ``workers.weights.full_state_dict``, which all ranks call. One rank calls this. ``patches``: what repairs have
    changed of the task's model.
    """
    from safetensors.torch import save_file

    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if isinstance(task, Writing):
        task.write_model(partial, weights)
    else:
        save_file(_without_repetition(weights), str(partial / WEIGHTS))
    document = {
        "format": FORMAT,
        "name": spec.name,
        "task": spec.task.model_dump(mode="json"),
        "facts": dataclasses.asdict(task.facts()),
        **({"patches": [*patches], "seed": spec.training.seed} if patches else {}),
    }
    (partial / FACTS).write_text(json.dumps(document, indent=1), encoding="utf-8")
    code = getattr(task, "code", None)
    if code is not None:  # of the user's own: where MLflow's models have theirs
        shutil.copytree(code.folder, partial / CODE, ignore=shutil.ignore_patterns("*.pyc", *LEFT_OUT))
    for name, content in _mlflow_files(own_code=code is not None, more=_requirements(spec)).items():
        (partial / name).write_text(content, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _without_repetition(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A tensor that layers share once, under its first name; safetensors' reader knows which other names are left out."""
    names: dict[tuple[Any, ...], str] = {}
    for name, value in weights.items():
        names.setdefault((value.data_ptr(), value.shape, value.stride()) if value.numel() else (name,), name)
    return {name: weights[name].contiguous() for name in names.values()}


def _requirements(spec: JobSpec) -> list[str]:
    code = code_of(spec)
    return list(code.requirements) if code is not None else []


def _mlflow_files(own_code: bool, more: list[str]) -> dict[str, str]:
    """What MLflow's python_function flavor wants, without importing MLflow into the training process."""
    description = {
        "flavors": {
            "python_function": {
                "loader_module": "workers.export",
                "python_version": platform.python_version(),
                "env": {"virtualenv": "python_env.yaml"},
                **({"code": CODE} if own_code else {}),
            }
        },
        "mlflow_version": version("mlflow"),
        "model_uuid": uuid.uuid4().hex,
        "utc_time_created": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
    }
    packages = [f"{name}=={version(name).partition('+')[0]}" for name in REQUIREMENTS]
    packages += ["chainrule", *more]
    environment = {"python": platform.python_version(), "dependencies": ["-r requirements.txt"]}
    return {
        "MLmodel": yaml.safe_dump(description),
        "python_env.yaml": yaml.safe_dump(environment),
        "requirements.txt": "\n".join(packages) + "\n",
    }


class Predictor:
    """A finished model, ready to use. Loading reads safetensors and JSON only; that of a custom task also runs the code in its folder."""

    def __init__(self, folder: str | Path) -> None:
        from safetensors.torch import load_model as load_weights

        root = Path(folder)
        document = json.loads((root / FACTS).read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            raise ValueError(f"{root / FACTS} has format {document['format']}; this version reads {FORMAT}")
        self.name: str = document["name"]
        self._task_spec: Any = TypeAdapter(TaskSpec).validate_python(document["task"])
        known = document["facts"]
        self._facts = ModelFacts(tuple(known["input_shape"]), tuple(known["class_names"]), known["preprocessing"])
        self._module: Any = importlib.import_module(FACTORIES[self._task_spec.kind].partition(":")[0])
        if hasattr(self._module, "Exported"):  # what builds the model lies in the folder too
            self._module = self._module.Exported(self._task_spec, root)
        if hasattr(self._module, "open_model"):
            self._model: nn.Module = self._module.open_model(root, self._task_spec, self._facts)
        else:
            self._model = self._module.build_model(self._task_spec, self._facts)
            if document.get("patches"):
                from workers.repair.rebuilding import patched

                self._model = patched(self._model, document["patches"], document["seed"])
            load_weights(self._model, str(root / WEIGHTS))
        self._model.eval()

    def predict(self, inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Inputs in the units of the training data; what comes back is described at the task's ``predict``."""
        found: dict[str, NDArray[Any]] = self._module.predict(self._model, self._task_spec, self._facts, inputs)
        return found

    def feature_names(self) -> list[str]:
        names: Any = self._facts.preprocessing.get("features", [])
        return list(names)


def load_model(folder: str | Path) -> Predictor:
    return Predictor(folder)


class PyfuncModel:
    """What ``mlflow.pyfunc.load_model`` wraps. Gives a table with one row a sample."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> pandas.DataFrame:
        """``model_input``: an array, or a DataFrame whose columns are the features (or, for images, the pixels in order)."""
        import pandas

        if isinstance(model_input, pandas.DataFrame):
            names = self._predictor.feature_names()
            frame = model_input[names] if names and set(names) <= set(model_input.columns) else model_input
            model_input = frame.to_numpy()
        found = self._predictor.predict(np.asarray(model_input))
        columns: dict[str, Any] = {name: values for name, values in found.items() if values.ndim == 1}
        if "probabilities" in found:
            columns["probability"] = found["probabilities"].max(axis=1)
        return pandas.DataFrame(columns)


def _load_pyfunc(path: str) -> PyfuncModel:
    """Called by MLflow, which knows this module as the model's loader."""
    return PyfuncModel(Predictor(path))
