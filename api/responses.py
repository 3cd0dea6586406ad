"""JSON on the wire: UTF-8, times in RFC 3339 with Z, non-finite numbers as the strings "NaN", "Infinity", "-Infinity"."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson
from pydantic import BaseModel
from starlette.responses import Response


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(encode(content), status, dict(headers or {}), media_type="application/json")


def encode(content: Any) -> bytes:
    return orjson.dumps(wire(content))


def arrays_response(content: Mapping[str, Any]) -> Response:
    """For arrays of numbers: orjson writes float32 with its own few digits. What is not finite it writes as null: words must be there already."""
    return Response(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


def wire(value: Any) -> Any:
    """``value`` in types that JSON has. orjson by itself would turn NaN and infinity into null without a word."""
    match value:
        case float():
            return value if math.isfinite(value) else nonfinite(value)
        case None | str() | bool() | int():
            return value
        case datetime():
            return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        case BaseModel():
            return {name: wire(getattr(value, name)) for name in type(value).model_fields}
        case Mapping():
            return {str(key): wire(item) for key, item in value.items()}
        case list() | tuple():
            return [wire(item) for item in value]
    raise TypeError(f"no wire form for {type(value).__name__}")


def nonfinite(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
