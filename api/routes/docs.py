"""The API's description: OpenAPI for programs, one page for people. The page needs nothing from the internet."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from api.docs_page import render_page
from api.responses import json_response

router = APIRouter(include_in_schema=False)

CONTENT_SECURITY_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'"


@router.get("/openapi.json")
def openapi_json(request: Request) -> Response:
    return json_response(request.app.openapi())


@router.get("/docs")
def docs(request: Request) -> Response:
    headers = {"content-security-policy": CONTENT_SECURITY_POLICY, "referrer-policy": "no-referrer"}
    return HTMLResponse(render_page(request.app.openapi()), headers=headers)
