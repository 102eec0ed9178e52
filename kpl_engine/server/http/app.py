"""The ASGI application of the HTTP door: who may ask, which handler answers, how errors are told."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from math import ceil
from pathlib import Path
from time import perf_counter
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import BaseRoute, Router

from kpl_engine.errors import (
    OverloadedError,
    RequestError,
    UnauthorizedError,
    UnknownModelError,
    WrongVerbError,
)
from kpl_engine.server.http import classify
from kpl_engine.server.http.exchange import Exchange, Receive, Scope, Send, await_reply, read_body
from kpl_engine.server.http.origins import allowed_origin, cors_headers, preflight_headers
from kpl_engine.server.http.page import read_page, send_page_file
from kpl_engine.server.http.v2 import ProtocolV2
from kpl_engine.server.infer import clean_id
from kpl_engine.server.logs import note_request
from kpl_engine.server.observer import Observer
from kpl_engine.server.port import BytesLease, Service
from kpl_engine.server.requests import Reply, Ticket
from kpl_engine.server.settings import ServerSettings
from kpl_engine.server.status import message_of, status_of

__all__ = ["HttpDoor", "build_app"]

Auth = Callable[[Scope], object]
_PAGE = Path(__file__).parents[1] / "page"
_SECURITY = [(b"x-content-type-options", b"nosniff")]
_log = logging.getLogger("kpl_engine.server")


def build_app(
    service: Service, observer: Observer, auth: Auth | None = None, extra_routes: Sequence[BaseRoute] = ()
) -> HttpDoor:
    """The application, for any ASGI server.

    Parameters
    ----------
    service : Service
        What answers.
    observer : Observer
        Told of every reply.
    auth : callable(scope), optional
        Raises `UnauthorizedError`; asked for everything but /v2/health/*, the files of the page and CORS preflights.
    extra_routes : sequence of starlette routes
        Looked at when the address is none of protocol v2 or /v1. Their handlers may raise any error of
        `kpl_engine.errors`, and find the id of the request as ``request.state.request_id``.
    """
    return HttpDoor(service, observer, auth, extra_routes)


class HttpDoor:
    """See `build_app`."""

    def __init__(
        self, service: Service, observer: Observer, auth: Auth | None, extra_routes: Sequence[BaseRoute]
    ) -> None:
        self._observer, self._auth = observer, auth
        self._origins = service.settings.cors_origins
        self._protocol = ProtocolV2(service)
        self._page = read_page(_PAGE) if service.settings.page else {}
        own = classify.routes(service, *_helpers(service.settings))
        self._router = Router([*own, *extra_routes], redirect_slashes=False, default=_nothing_here)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection event of ASGI."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = perf_counter()
        exchange = Exchange(scope, receive, send, clean_id(_first(scope, b"x-request-id")))
        scope.setdefault("state", {})["request_id"] = exchange.request_id
        note_request(request_id=exchange.request_id, client=_client(scope))
        match, file = self._protocol.match(scope["path"]), self._page.get(scope["path"])
        operation = match.operation if match else "page" if file else _operation(scope["path"])
        try:
            origin = allowed_origin(scope, self._origins)
            exchange.add(_SECURITY + cors_headers(origin))
            if origin and scope["method"] == "OPTIONS" and _first(scope, b"access-control-request-method"):
                await exchange.respond(204, b"", preflight_headers())
                return
            if self._auth is not None and file is None and not scope["path"].startswith("/v2/health/"):
                self._auth(scope)
            if match is not None:
                await match.run(exchange)
            elif file is not None:
                if scope["method"] not in ("GET", "HEAD"):
                    raise WrongVerbError(f"expected GET or HEAD here, got {scope['method'][:20]}", ("GET", "HEAD"))
                await send_page_file(exchange, file)
            else:
                scope["app"] = self  # so that a wrong method raises
                await self._router(scope, receive, exchange.send)
        except Exception as error:  # whatever it is, the client gets an answer and the server goes on
            await _tell(exchange, _from_starlette(error))
        finally:
            self._observer.replied("http", operation, str(exchange.status or 499), perf_counter() - started)


def _first(scope: Scope, name: bytes) -> str:
    return next((value.decode("latin-1").strip() for key, value in scope["headers"] if key == name), "")


async def _tell(exchange: Exchange, error: Exception) -> None:
    status = status_of(error)
    if status.http == 500:
        _log.error("internal error", exc_info=error, extra={"request_id": exchange.request_id})
    if exchange.status:  # begun, and cannot be taken back: the server closes the connection
        raise error
    message = message_of(error)
    if exchange.scope["path"].startswith("/v1/"):
        told: Any = {"code": status.reason, "message": message, "request_id": exchange.request_id}
    else:
        told = message
    headers = []
    if isinstance(error, OverloadedError):
        headers.append((b"retry-after", str(max(1, ceil(error.retry_after_s))).encode()))
    elif isinstance(error, WrongVerbError):
        headers.append((b"allow", ", ".join(error.allowed).encode()))
    elif isinstance(error, UnauthorizedError):
        headers.append((b"www-authenticate", b"Bearer"))
    await exchange.respond_json({"error": told}, status.http, headers)


def _helpers(settings: ServerSettings) -> tuple[classify.ReadBody, classify.AwaitReply, Callable[[Request], str]]:
    """Body, reply and id of a request, for handlers that see Starlette's."""

    async def read(request: Request, lease: BytesLease) -> bytes:
        return await read_body(request.scope, request.receive, lease, settings)

    async def wait(request: Request, ticket: Ticket) -> Reply:
        return await await_reply(ticket, request.receive)

    def id_of(request: Request) -> str:
        return str(request.state.request_id)

    return read, wait, id_of


def _from_starlette(error: Exception) -> Exception:
    if not isinstance(error, HTTPException):
        return error
    if error.status_code == 405:
        allowed = tuple((error.headers or {}).get("Allow", "").replace(" ", "").split(","))
        return WrongVerbError(f"expected {' or '.join(allowed)} here", allowed)
    if error.status_code == 404:
        return UnknownModelError(str(error.detail))
    return RequestError(str(error.detail)) if error.status_code < 500 else error


async def _nothing_here(scope: Scope, receive: Receive, send: Send) -> None:
    raise UnknownModelError(f"nothing is at {scope['path'][:200]}; this server answers protocol v2 below /v2")


def _operation(path: str) -> str:
    """The label of an address outside protocol v2: a few fixed words, so that metrics stay few."""
    known = {"/v1/classify": "classify", "/v1/models": "models", "/openapi.json": "openapi"}
    return known.get(path, "other")


def _client(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else ""


async def _lifespan(receive: Receive, send: Send) -> None:
    while (message := await receive())["type"] != "lifespan.shutdown":
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
    await send({"type": "lifespan.shutdown.complete"})
