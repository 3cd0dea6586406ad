"""Reading a request's body: which content types, and JSON without the lenience of the usual parsers.

A key given twice, NaN, a number too large for a float, a lone surrogate, or nesting beyond any job are mistakes that most
parsers let through or crash on; here each is refused with a sentence that says where.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Any, NoReturn

from starlette.requests import Request

from api.errors import ApiError
from workers.jobfile import JobFileError, parse_job_text
from workers.problems import shorten

MAX_DEPTH = 32
MAX_NODES = 1_000_000
MAX_YAML_BYTES = 1 << 20  # its parser takes a second for each
JSON_TYPE, YAML_TYPES = "application/json", ("application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml")
BYTE_ORDER_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")


def media_type(request: Request) -> str:
    """The body's type in lower case. Raises 415 for everything that cannot be a job."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "unsupported_encoding", "Compressed bodies are not accepted; send the body as it is.")
    kind, _, rest = request.headers.get("content-type", "").partition(";")
    kind = kind.strip().lower()
    charset = re.search(r"charset\s*=\s*\"?([^\s;\"]+)", rest, re.IGNORECASE)
    if kind not in (JSON_TYPE, *YAML_TYPES):
        got = f"got {shorten(kind)}" if kind else "there was none"
        raise ApiError(
            415, "unsupported_media_type", f"Content-Type must be application/json or application/yaml; {got}.",
            param="Content-Type",
        )  # fmt: skip
    if charset and charset[1].lower() not in ("utf-8", "utf8", "us-ascii"):
        raise ApiError(415, "unsupported_charset", "The body must be UTF-8.", param="Content-Type")
    return kind


def parse_document(body: bytes, kind: str) -> object:
    """The document in ``body``. Raises a 400 that says what is broken, and where."""
    if kind != JSON_TYPE and len(body) > MAX_YAML_BYTES:
        raise ApiError(413, "body_too_large", f"YAML may have {MAX_YAML_BYTES >> 20} MiB at most; send JSON instead.")
    text = _text(body)
    document = _json(text) if kind == JSON_TYPE else _yaml(text)
    _check_tree(document)
    if "\\" in text:  # only an escape can make half of a surrogate pair
        _check_surrogates(document)
    return document


def digest(document: object) -> str:
    """Of the document's meaning: white space and the order of keys do not count."""
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _text(body: bytes) -> str:
    if not body.strip():
        raise _broken("the body is empty; it must hold JSON or YAML")
    if body.startswith(BYTE_ORDER_MARKS) or b"\x00" in body[:4]:
        raise _broken("the body must be UTF-8 without byte order mark")
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _broken(f"the body is not valid UTF-8 (byte {error.start})") from None


def _json(text: str) -> Any:
    try:
        return json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_integer,
        )
    except json.JSONDecodeError as error:
        raise _broken(f"not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise _broken(f"nested deeper than {MAX_DEPTH} levels") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _broken(f"the key {shorten(twice)} is given twice in one object")
    return members


def _no_constant(name: str) -> NoReturn:
    raise _broken(f"{name} is not a number in JSON; numbers must be finite")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _broken(f"the number {shorten(text, 30)} is too large; numbers must be finite")
    return number


def _integer(text: str) -> int:
    if len(text) > 100:
        raise _broken(f"an integer of {len(text)} digits is too large")
    return int(text)


def _yaml(text: str) -> object:
    try:
        return parse_job_text(text, ".yaml")
    except JobFileError as error:
        raise _broken(f"not valid YAML: {shorten(str(error), 300)[1:-1]}") from None
    except ValueError:  # of int(): thousands of digits
        raise _broken("not valid YAML: a number has too many digits") from None
    except RecursionError:
        raise _broken(f"nested deeper than {MAX_DEPTH} levels") from None


def _check_tree(document: object) -> None:
    """Bounds depth and the number of values (YAML aliases can make a small text into a huge tree, or into a circle), and
    refuses what JSON does not have."""
    level: list[object] = [document]
    nodes = 0
    for _ in range(MAX_DEPTH + 1):
        nodes += len(level)
        below: list[object] = []
        for value in level:
            if isinstance(value, dict):
                below.extend(value.values())
            elif isinstance(value, list):
                below.extend(value)
            elif not isinstance(value, str | int | float | None):
                raise _broken(f"it holds a {type(value).__name__}, which a job cannot have")
            if nodes + len(below) > MAX_NODES:
                raise _broken(f"more than {MAX_NODES} values")
        if not below:
            return
        level = below
    raise _broken(f"nested deeper than {MAX_DEPTH} levels")


def _check_surrogates(document: object) -> None:
    try:
        json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise _broken("a text has half of a surrogate pair, which is no character") from None


def _broken(what: str) -> ApiError:
    return ApiError(400, "invalid_body", f"The body cannot be read: {what}.")
