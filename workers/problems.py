"""What is wrong with a job: all of it at once, each with its path, its value and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pydantic_core import ErrorDetails


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


def problem_of(details: ErrorDetails, document: object) -> Problem:
    """What pydantic found wrong in ``document``, for people."""
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
    elif kind == "unused_part":  # point at the part, not at the whole job
        return Problem(details["ctx"]["parts"][0], message)
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


def first_line(error: BaseException) -> str:
    """What a library says of a problem, without the paragraphs that may follow."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


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
