"""Who asks: bearer keys on everything but the open pages, and the role that each route declares.

The key is checked outside the router, so that an address that does not exist is no way around it; the role is a dependency
of the route, and ``check_permissions`` refuses to start an application with a route that has none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated
from urllib.parse import parse_qsl

from anyio import to_thread
from fastapi import APIRouter, Depends
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from api.errors import render
from service.database import Store
from service.errors import Unauthorized
from service.keys import authenticate, require
from service.values import Caller, Role

OPEN_PATHS = frozenset({"/", "/docs", "/openapi.json", "/healthz", "/readyz"})
TOKEN = re.compile(r"[\x21-\x7e]{1,256}")
KEY_PARAMETERS = frozenset({"key", "api_key", "apikey", "api-key", "token", "access_token", "authorization", "bearer"})


class AuthenticationMiddleware:
    """Puts the caller into ``request.state.caller``, or answers 401."""

    def __init__(self, app: ASGIApp, store: Store) -> None:
        self.app, self.store = app, store

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not needs_key(scope["path"]):
            return await self.app(scope, receive, send)
        try:
            token = bearer_token(Headers(scope=scope), scope.get("query_string", b""))
            caller = await to_thread.run_sync(authenticate, self.store, token)
            if caller is None:
                raise Unauthorized("This key is not valid. It may be mistyped, expired or revoked.")
        except Exception as error:
            return await render(error, scope["state"]["request_id"])(scope, receive, send)
        scope["state"]["caller"] = caller
        return await self.app(scope, receive, send)


def needs_key(path: str) -> bool:
    return path == "/metrics" or path == "/v1" or path.startswith("/v1/")


def bearer_token(headers: Headers, query: bytes) -> str:
    named = {name.lower() for name, _ in parse_qsl(query.decode("latin-1"), keep_blank_values=True)}
    if named & KEY_PARAMETERS:
        raise Unauthorized(
            "Keys are not accepted in the address, where logs would keep them. Use the Authorization header."
        )
    given = headers.getlist("authorization")
    if not given:
        raise Unauthorized("No key. Send the header 'Authorization: Bearer <key>'.")
    if len(given) > 1:
        raise Unauthorized("More than one Authorization header.")
    scheme, _, token = given[0].strip().partition(" ")
    if scheme.lower() != "bearer" or not TOKEN.fullmatch(token.strip()):
        raise Unauthorized("The Authorization header must read 'Bearer <key>'.")
    return token.strip()


class Requires:
    """A route's permission: callers of this role, or of one above it."""

    def __init__(self, role: Role) -> None:
        self.role = role

    async def __call__(self, request: Request) -> Caller:
        caller: Caller = request.state.caller
        require(caller, self.role)
        return caller


Viewer = Annotated[Caller, Depends(Requires(Role.VIEWER))]
Member = Annotated[Caller, Depends(Requires(Role.MEMBER))]
Admin = Annotated[Caller, Depends(Requires(Role.ADMIN))]


def check_permissions(routers: Iterable[APIRouter]) -> None:
    """Every route is open by name, or sits behind the key check and declares its role."""
    for router in routers:
        for route in router.routes:
            assert isinstance(route, APIRoute), f"{route} is no plain route"
            if route.path not in OPEN_PATHS:
                assert needs_key(route.path), f"{route.path} is not behind the key check"
                assert _declares_role(route.dependant), f"{route.path} declares no role"


def _declares_role(dependant: Dependant) -> bool:
    return isinstance(dependant.call, Requires) or any(map(_declares_role, dependant.dependencies))
