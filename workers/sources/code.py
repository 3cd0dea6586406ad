"""A look at the user's own code without running any of it: is the factory there, and does it take the arguments?"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from workers.bundles import BundleError, read_texts
from workers.kinds.code import Code
from workers.kinds.custom import CustomTask
from workers.problems import shorten
from workers.sources.problems import BadCodeError

MAX_SOURCE_BYTES = 1 << 20
SHOWN = 12
SEED = "seed"  # an argument that the service gives when the job does not


def look_at_factory(task: CustomTask, bundle: Path | None) -> None:
    """Raises BadCodeError when the module is not there or is no Python, or has no such function, or that takes other arguments.
    What cannot be known without running it is left to the worker."""
    module, _, name = task.factory.partition(":")
    found = find_module(task.code, bundle, module)
    if found is None:
        return
    path, tree = found
    parameters = _parameters(tree, name, path)
    if parameters is not None:
        parameters.check(task.arguments, f"{path} {name}")


@dataclass(frozen=True)
class Parameters:
    """Of a function: names of those that can be given by name, those of them that must be, and whether it takes any other."""

    names: tuple[str, ...]
    required: tuple[str, ...]
    any_other: bool

    def check(self, arguments: Mapping[str, object], function: str) -> None:
        """Raises BadCodeError that names the argument."""
        shown = ", ".join(self.names) or "none"
        for name in arguments:
            if name not in self.names and not self.any_other:
                raise BadCodeError(f"task.arguments.{name}", f"{function} has no such argument; it takes {shown}")
        for name in self.required:
            if name not in arguments and name != SEED:
                raise BadCodeError(f"task.arguments.{name}", f"{function} needs it; it takes {shown}")


def find_module(code: Code, bundle: Path | None, module: str) -> tuple[str, ast.Module] | None:
    """(path within the code, syntax tree) of a module. None: it may be in what the job requires. Raises BadCodeError."""
    tops = [PurePosixPath(top) for top in ("", *code.python_path)]
    inner = PurePosixPath(*module.split("."))
    wanted = [str(top / path) for top in tops for path in (inner.with_suffix(".py"), inner / "__init__.py")]
    files = files_of(code, bundle, wanted)
    path = next((path for path in wanted if path in files), None)
    if path is None and code.requirements:
        return None
    if path is None:
        raise missing("task.factory", wanted[0], files)
    return path, parsed(path, files[path]())


def missing(field: str, wanted: str, files: Collection[str]) -> BadCodeError:
    """Says what is there instead. ``files``: their names."""
    there = sorted({name.partition("/")[0] + ("/" if "/" in name else "") for name in files})
    more = f" and {len(there) - SHOWN} more" if len(there) > SHOWN else ""
    named = ", ".join(map(shorten, there[:SHOWN])) or "no files"
    return BadCodeError(field, f"the code has no {wanted}; at its top are {named}{more}")


def files_of(code: Code, bundle: Path | None, wanted: Collection[str]) -> Mapping[str, Callable[[], bytes]]:
    """Names of files, with what reads them; of a folder, those at its top and those that are wanted."""
    if code.path is not None:
        folder = Path(code.path)
        if not folder.is_dir():
            raise BadCodeError("task.code.path", f"there is no folder {code.path}")
        named = {str(path.relative_to(folder)): path for path in _shallow(folder)}
        named |= {name: folder / name for name in wanted if (folder / name).is_file()}
        return {name: lambda path=path: _beginning(path) for name, path in named.items()}  # type: ignore[misc]
    assert bundle is not None, "a job's code is a folder or an uploaded bundle"
    try:
        texts = read_texts(bundle, lambda name: name in wanted, MAX_SOURCE_BYTES + 1)
    except BundleError as error:
        raise BadCodeError("task.code.file", f"the bundle {error}") from None
    return {name: lambda text=text: text for name, text in texts.items()}  # type: ignore[misc]


def _shallow(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        yield path / "..." if path.is_dir() else path


def _beginning(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_SOURCE_BYTES + 1)
    except OSError as error:
        raise BadCodeError("task.code.path", f"{path} cannot be read: {error.strerror}") from None


def parsed(path: str, source: bytes, field: str = "task.factory") -> ast.Module:
    """Raises BadCodeError of ``field`` that names the line."""
    if len(source) > MAX_SOURCE_BYTES:
        raise BadCodeError(field, f"{path} has more than {MAX_SOURCE_BYTES >> 20} MiB")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the compiler thinks of its style is its own matter
            return ast.parse(source, filename=path)
    except SyntaxError as error:
        raise BadCodeError(field, f"{path}{f' line {error.lineno}' if error.lineno else ''}: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:  # NUL bytes, nesting beyond the parser
        raise BadCodeError(field, f"{path} is no Python: {error}") from None


def _parameters(tree: ast.Module, name: str, path: str) -> Parameters | None:
    """Of the function ``name``; None where that is not plain to see. Raises BadCodeError when there is surely none."""
    first, _, rest = name.partition(".")
    names = {each: node for node in ast.walk(tree) for each in _defined(node)}
    if first not in names:
        if "*" in names or "__getattr__" in names:
            return None
        own = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        raise BadCodeError(
            "task.factory", f"{path} has no {first}; it defines {', '.join(own[:SHOWN]) or 'no function'}"
        )
    plain = [node for node in tree.body if first in _defined(node)]
    node = plain[-1] if plain else None
    if isinstance(node, ast.FunctionDef) and not rest and not node.decorator_list:
        return _of_function(node, skip=0)
    if isinstance(node, ast.ClassDef) and not rest and not node.decorator_list:
        starts = [each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"]
        return _of_function(starts[-1], skip=1) if starts and not node.keywords else None
    return None


def _of_function(node: ast.FunctionDef, skip: int) -> Parameters:
    given = node.args
    positional = [argument.arg for argument in given.posonlyargs + given.args][skip:]
    only = len(given.posonlyargs) - skip if given.posonlyargs else 0
    needed = positional[: len(positional) - len(given.defaults)] if given.defaults else positional
    named = [argument.arg for argument in given.kwonlyargs]
    needed_named = [
        arg.arg for arg, default in zip(given.kwonlyargs, given.kw_defaults, strict=True) if default is None
    ]
    return Parameters(
        (*positional[max(0, only) :], *named), (*needed[max(0, only) :], *needed_named), given.kwarg is not None
    )


def _defined(node: ast.AST) -> Iterator[str]:
    """Names that a statement may bind in its module."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Import | ast.ImportFrom):
        yield from ((alias.asname or alias.name).partition(".")[0] for alias in node.names)
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from (target.id for target in targets if isinstance(target, ast.Name))
