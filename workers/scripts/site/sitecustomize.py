"""Imported by Python itself when a script of a job starts. Puts the observer in place once the script imports torch; a script that never does
pays nothing. Whatever goes wrong here, the script runs as if this file were not there.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Mapping
from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))


class _After(importlib.abc.MetaPathFinder):
    """Calls the observer when the modules that it watches have been imported."""

    WATCHED: Mapping[str, str] = {
        "torch.nn.modules.module": "modules",
        "torch.optim.optimizer": "optimizers",
        "torch.amp.grad_scaler": "scalers",
    }

    def __init__(self) -> None:
        self._observer: Any = None
        self._left = dict(self.WATCHED)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        method = self._left.pop(name, None)
        if method is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            try:
                getattr(self._observing(), method)(module)
            except Exception as error:
                print(f"chainrule: this script is not observed: {error!r}", file=sys.stderr)
            if not self._left and self in sys.meta_path:
                sys.meta_path.remove(self)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec

    def _observing(self) -> Any:
        if self._observer is None:
            part, aside = _load("chainrule_layers").Part, _load("chainrule_aside").Aside
            repairing = _load("chainrule_repairing").Repairing
            self._observer = _load("chainrule_observer").Observer.from_environment(part, aside, repairing)
        return self._observer


def _load(name: str) -> Any:
    """By its place, not by its name, which the script's own modules may have. Those that come later find it as ``_NAME``."""
    spec = importlib.util.spec_from_file_location(f"_{name}", os.path.join(HERE, f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _run_the_next_one() -> None:
    """Another sitecustomize, of a distribution or of the user, which this one stands before."""
    others = [entry for entry in sys.path if os.path.abspath(entry or ".") != HERE]
    sys.path[:] = others  # nobody can import from here by accident
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


if os.environ.get("CHAINRULE_OBSERVER"):
    sys.meta_path.insert(0, _After())
_run_the_next_one()
