"""The error of data that cannot be used; apart, so that readers without torch can raise it."""

from __future__ import annotations


class BadDataError(ValueError):
    """Data that cannot be trained on. ``field`` is the path in the job spec; the message names value and what is allowed."""

    def __init__(self, field: str, message: str) -> None:
        self.field, self.message = field, message
        super().__init__(f"{field}: {message}")

    def __reduce__(self) -> tuple[type[BadDataError], tuple[str, str]]:
        return type(self), (self.field, self.message)


class BadCodeError(BadDataError):
    """Code of the user's own that cannot be used; the message names its file and line."""
