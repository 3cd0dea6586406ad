"""Job files: YAML or JSON text into a plain document, strictly. What the document means is decided by workers/spec.py."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 10 << 20


class JobFileError(ValueError):
    """Text that is no YAML or JSON document; ``str()`` says where (line and column) and what."""


def read_job_file(path: str | Path) -> object:
    """The document of a ``.yaml``, ``.yml`` or ``.json`` file. Raises JobFileError, also when there is no such file."""
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise JobFileError(f"{path}: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise JobFileError(f"{path}: {len(content)} bytes; a job file has at most {MAX_BYTES}")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise JobFileError(f"{path}: not UTF-8 (byte {error.start})") from error
    try:
        return parse_job_text(text, path.suffix)
    except JobFileError as error:
        raise JobFileError(f"{path}: {error}") from error.__cause__


def parse_job_text(text: str, suffix: str = ".yaml") -> object:
    """JSON for ``.json``, YAML for anything else. Duplicate keys are refused: the last of them would silently win."""
    return _parse_json(text) if suffix == ".json" else _parse_yaml(text)


def _parse_json(text: str) -> object:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            raise JobFileError(f"key {next(key for key in keys if keys.count(key) > 1)!r} is given twice")
        return found

    def no_constant(name: str) -> float:
        raise JobFileError(f"{name} is not allowed in JSON")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=no_constant)
    except json.JSONDecodeError as error:
        raise JobFileError(f"line {error.lineno}, column {error.colno}: {error.msg}") from error
    except RecursionError as error:
        raise JobFileError("nested too deeply") from error


def _parse_yaml(text: str) -> object:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise JobFileError(f"{where}{error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise JobFileError(str(error)) from error
    except RecursionError as error:
        raise JobFileError("nested too deeply") from error


class _Loader(yaml.SafeLoader):
    """PyYAML reads YAML 1.1, in which ``1e-3`` is a text and ``on`` is true. Numbers here are those of YAML 1.2 and JSON."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:float", "tag:yaml.org,2002:bool")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"),
    list("-+0123456789."),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def _mapping(loader: _Loader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not a text", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
# Dates would become objects that JSON does not have; a job has none.
_Loader.add_constructor("tag:yaml.org,2002:timestamp", lambda loader, node: str(node.value))
