"""The HTTP side of the process: one application of all its parts, and the server it runs in."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import uvicorn
from starlette.requests import Request
from starlette.routing import BaseRoute

from kpl_engine.server.http.app import build_app
from kpl_engine.server.http.classify import routes
from kpl_engine.server.http.connection import guarded
from kpl_engine.server.http.exchange import Receive, Scope, Send, await_reply, read_body
from kpl_engine.server.observer import Observer
from kpl_engine.server.port import BytesLease, Service
from kpl_engine.server.requests import Reply, Ticket
from kpl_engine.server.settings import ServerSettings
from kpl_engine.server.tls import Certificate

__all__ = ["HttpServer", "LeavingApp", "http_app", "http_server", "metrics_server"]

_BODY_HEADERS = frozenset({b"content-length", b"transfer-encoding"})


def http_app(service: Service, observer: Observer, auth: Callable[[Scope], object] | None = None) -> Any:
    """Protocol v2, `/v1` and the page as one ASGI application."""
    settings = service.settings

    async def read(request: Request, lease: BytesLease) -> bytes:
        return await read_body(request.scope, request.receive, lease, settings)

    async def answer(request: Request, ticket: Ticket) -> Reply:
        return await await_reply(ticket, request.receive)

    def id_of(request: Request) -> str:
        found: str = request.state.request_id
        return found

    extra: list[BaseRoute] = [*routes(service, read, answer, id_of)]
    return build_app(service, observer, auth, extra)


class LeavingApp:
    """An application whose replies close their connections while ``is_leaving``.

    A client then opens its next connection elsewhere, and none is cut off between two requests. A reply that came
    before its request's body ended does not: a client that is still sending would see a broken connection instead.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self.is_leaving = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection event of ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_whole = not any(key in _BODY_HEADERS and value != b"0" for key, value in scope["headers"])

        async def watching() -> Any:
            nonlocal is_whole
            message = await receive()
            is_whole = is_whole or not message.get("more_body", False)
            return message

        async def closing(message: Any) -> None:
            if self.is_leaving and is_whole and message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        await self._app(scope, watching, closing)


class HttpServer(uvicorn.Server):
    """uvicorn's server without its signal handlers: signals are the process's business."""

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        """Nothing is captured."""
        return nullcontext()

    async def stop(self, linger_s: float, timeout_s: float) -> None:
        """Accept no more connections, give those that are open ``linger_s`` to send and be answered, then close.

        What is not done ``timeout_s`` later (a client that does not read what it asked for) is cut off.
        """
        for listener in self.servers if self.started else ():
            listener.close()
        end = time.monotonic() + linger_s
        while self.server_state.connections and time.monotonic() < end:
            await asyncio.sleep(0.01)
        self.should_exit = True
        done, _ = await asyncio.wait({self.task}, timeout=timeout_s)
        if not done:
            self.force_exit = True
            self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task

    def begin(self, listeners: list[socket.socket]) -> None:
        """Accept connections, in a task of the running loop."""
        self.task = asyncio.get_running_loop().create_task(self.serve(sockets=listeners))


def http_server(app: Any, settings: ServerSettings, certificate: Certificate | None) -> HttpServer:
    """The server of the HTTP door."""
    context = None if certificate is None else certificate.context
    return HttpServer(
        uvicorn.Config(
            app,
            http=guarded(settings),
            ssl_context_factory=None if context is None else lambda _config, _default: context,
            timeout_keep_alive=max(1, round(settings.keep_alive_s)),
            **_PLAIN,
        )
    )


def metrics_server(app: Any, settings: ServerSettings) -> HttpServer:
    """The server of the metrics' own port."""
    return HttpServer(uvicorn.Config(app, http=guarded(settings), **_PLAIN))


# Addresses that a client sends in X-Forwarded-For are not believed; uvicorn's own lines and banner are not wanted.
_PLAIN: dict[str, Any] = {
    "loop": "none",
    "ws": "none",
    "lifespan": "off",
    "log_config": None,
    "access_log": False,
    "server_header": False,
    "proxy_headers": False,
}
