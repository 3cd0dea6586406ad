"""Chainrule's own modules, imported under a name of their own: a script may have a package called ``workers``."""

from __future__ import annotations

import builtins
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from types import ModuleType
from typing import Any

OWN, PRIVATE = "workers", "_chainrule_workers"
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def private(name: str) -> ModuleType:
    """``workers.NAME``, with all that it imports of ``workers``, as another package. Nothing else stays in the import system."""
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        return importlib.import_module(f"{PRIVATE}.{name}")
    finally:
        sys.meta_path.remove(finder)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        package, *rest = name.split(".")
        if package != PRIVATE:
            return None
        place = os.path.join(ROOT, *rest)
        folder = os.path.isdir(place)
        file = os.path.join(place, "__init__.py") if folder else f"{place}.py"
        within = [place] if folder else None
        return importlib.util.spec_from_file_location(
            name, file, loader=_Loader(name, file), submodule_search_locations=within
        )


class _Loader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        # An import statement asks the builtins of the module in which it is.
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": _import}
        super().exec_module(module)


def _import(name: str, *arguments: Any, **named: Any) -> Any:
    package, dot, rest = name.partition(".")
    return builtins.__import__(f"{PRIVATE}{dot}{rest}" if package == OWN else name, *arguments, **named)
