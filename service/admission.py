"""Whether a job that is written correctly can be accepted: its paths, its data, its size."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from service.cluster import Capacity, Resources
from service.errors import InvalidRequest
from service.placement import Gang, fits, too_small
from service.settings import Settings
from workers.problems import Problem, shorten
from workers.sources.inspect import inspect_data
from workers.spec import JobSpec, code_of, data_paths

MAX_LINKS_LOOKED_FOR = 20_000  # entries of a folder of data; workers read through links, so they are checked as well


def check(spec: JobSpec, settings: Settings, capacity: Capacity | None, bundle: Path | None = None) -> None:
    """Raises InvalidRequest with all problems at once: paths outside the allowed roots, data or code that is missing or does not
    fit the job, more workers than the cluster can ever have (``capacity`` None or without nodes: not known yet).
    ``bundle``: the uploaded file with its code."""
    problems = [*_code_problems(spec, settings), *_path_problems(spec, settings), *_size_problems(spec, capacity)]
    if not any(problem.path.startswith(("task.data", "task.code")) for problem in problems):
        problems += inspect_data(spec, bundle)  # reads nothing that the roots do not allow
    if problems:
        raise InvalidRequest(problems)


def gang(spec: JobSpec) -> Gang:
    workers = spec.workers
    return Gang(workers.fewest, Resources(cpus=workers.cpus, gpus=workers.gpus, memory=workers.memory or 0))


def _code_problems(spec: JobSpec, settings: Settings) -> Iterator[Problem]:
    code = code_of(spec)
    if code is None:
        return
    if not settings.code_allowed:
        message = "jobs with code of their own are not allowed here; whoever runs the service may allow them (CHAINRULE_ALLOW_CODE)"
        yield Problem("task.code", message)
    if code.git is not None:
        message = "is cloned and uploaded by `chainrule submit`; over HTTP, upload a bundle (POST /v1/files) and give its id as file"
        yield Problem("task.code.git", message, shorten(code.git))


def _path_problems(spec: JobSpec, settings: Settings) -> Iterator[Problem]:
    roots = [os.path.realpath(root) for root in settings.data_roots]
    code = code_of(spec)
    for field, value in [*data_paths(spec), *(code.local_requirements() if code is not None else [])]:
        if (problem := _path_problem(value, roots, settings)) is not None:
            yield Problem(field, problem, shorten(value))


def _path_problem(value: str, roots: Sequence[str], settings: Settings) -> str | None:
    if not os.path.isabs(value):
        return "must be an absolute path on the machines of the service"
    if not roots:
        if settings.on_loopback:
            return None
        return "jobs cannot read local paths here, because the service has no data roots (CHAINRULE_DATA_ROOTS)"
    try:
        real = os.path.realpath(value)
        inside = _is_within(real, roots) and all(_is_within(target, roots) for target in _links(Path(real)))
    except (OSError, ValueError) as error:  # a name longer than the file system allows, a loop of links
        return f"is no usable path: {getattr(error, 'strerror', None) or error}"
    return None if inside else f"is outside the allowed data roots: {', '.join(map(str, settings.data_roots))}"


def _is_within(path: str, roots: Sequence[str]) -> bool:
    return any(os.path.commonpath((root, path)) == root for root in roots)


def _links(folder: Path) -> Iterator[str]:
    """Where the symbolic links below ``folder`` lead; the first so many entries are looked at."""
    seen = 0
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            seen += 1
            if seen > MAX_LINKS_LOOKED_FOR:
                return
            if os.path.islink(path := os.path.join(parent, name)):
                yield os.path.realpath(path)


def _size_problems(spec: JobSpec, capacity: Capacity | None) -> Iterator[Problem]:
    if capacity is not None and capacity.nodes and not fits(capacity, gang(spec)):
        yield Problem("workers", too_small(capacity, gang(spec)), str(spec.workers.fewest))
