"""Files that arrive as multipart/form-data: written to storage while they arrive, never held in memory or anywhere else."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from anyio import to_thread
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from api.errors import ApiError
from service.errors import InvalidRequest
from service.files import Upload
from workers.problems import Problem, shorten

FIELDS = ("file", "purpose")
MAX_FIELD_BYTES = 1000
MAX_HEADER_BYTES = 8192
FORM_BYTES = 1 << 20  # of an upload's body besides the file
NO_NAME = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


async def receive(request: Request, partial: Path, max_bytes: int) -> Upload:
    """Writes the form's ``file`` to ``partial``. Raises ApiError or InvalidRequest, and then leaves no file."""
    boundary = _boundary(request)
    try:
        with partial.open("xb") as stream:
            form = _Form(boundary, stream, max_bytes)
            async for chunk in request.stream():
                await to_thread.run_sync(form.write, chunk)
            return form.upload(partial)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data":
        raise ApiError(
            415, "unsupported_media_type", "Content-Type must be multipart/form-data, with the fields file and purpose.",
            param="Content-Type",
        )  # fmt: skip
    if not options.get(b"boundary"):
        raise _broken("its Content-Type names no boundary")
    return options[b"boundary"]


class _Form:
    """Fed with pieces of the body; what it finds out by and by is put together in ``upload``."""

    def __init__(self, boundary: bytes, stream: BinaryIO, max_bytes: int) -> None:
        self._stream, self._max_bytes = stream, max_bytes
        self._digest, self._size = hashlib.sha256(), 0
        self._fields: dict[str, bytes] = {}
        self._filename: str | None = None
        self._part = ""
        self._header, self._value, self._headers = b"", b"", dict[str, bytes]()
        self._complete = False
        on: dict[str, Callable[..., None]] = {
            "on_part_begin": self._part_begins,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_ends,
            "on_headers_finished": self._headers_end,
            "on_part_data": self._data,
            "on_end": self._ends,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks=on)  # type: ignore[arg-type]  # a dictionary of some of them
        except (FormParserError, ValueError) as error:
            raise _broken(str(error)) from None

    def write(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise _broken(str(error)) from None

    def upload(self, partial: Path) -> Upload:
        if not self._complete:
            raise _broken("it ends before its last boundary")
        missing = [name for name in FIELDS if name not in self._fields]
        if missing:
            raise InvalidRequest([Problem(name, "required, but missing") for name in missing])
        assert self._filename is not None
        self._stream.flush()
        purpose = self._fields["purpose"].decode("utf-8", "replace")
        return Upload(partial, self._filename, purpose, self._size, self._digest.hexdigest())

    # --- called by the parser -----------------------------------------------------------------------------------------

    def _part_begins(self) -> None:
        self._headers, self._header, self._value, self._part = {}, b"", b"", ""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]
        self._bound_headers()

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._bound_headers()

    def _bound_headers(self) -> None:
        if len(self._header) + len(self._value) > MAX_HEADER_BYTES:
            raise _broken("a part has a header that is too long")

    def _header_ends(self) -> None:
        self._headers[self._header.decode("latin-1").lower()] = self._value
        self._header, self._value = b"", b""

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._headers.get("content-disposition", b""))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name not in FIELDS:
            raise InvalidRequest([Problem(shorten(name)[1:-1], f"unknown field; allowed are {' and '.join(FIELDS)}")])
        if name in self._fields:
            raise InvalidRequest([Problem(name, "is given twice")])
        self._part, self._fields[name] = name, b""
        if name == "file":
            self._filename = _safe_filename(options.get(b"filename", b"").decode("utf-8", "replace"))

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._part == "file":
            self._size += end - start
            if self._size > self._max_bytes:
                raise too_large(self._max_bytes)
            self._digest.update(data[start:end])
            self._stream.write(data[start:end])
            return
        self._fields[self._part] += data[start:end]
        if len(self._fields[self._part]) > MAX_FIELD_BYTES:
            raise InvalidRequest([Problem(self._part, f"is longer than {MAX_FIELD_BYTES} bytes")])

    def _ends(self) -> None:
        self._complete = True


def too_large(max_bytes: int) -> ApiError:
    message = f"The file is larger than {max_bytes} bytes, which is the most that this service takes (CHAINRULE_MAX_FILE_BYTES)."
    return ApiError(413, "file_too_large", message, param="file", headers={"connection": "close"})


def _safe_filename(given: str) -> str:
    """The last part of what the client calls it. It is shown and sent back, and never used as a path here."""
    name = re.split(r"[/\\]", given)[-1].strip()
    if not name or len(name) > 255 or NO_NAME.search(name):
        raise InvalidRequest([Problem("file", "needs a file name of 1 to 255 printable characters", shorten(given))])
    return name


def _broken(what: str) -> ApiError:
    return ApiError(400, "invalid_body", f"The body is no multipart/form-data: {shorten(what, 200)[1:-1]}.")
