"""One request and its reply over ASGI: the body read within its bounds, the answer awaited, the reply sent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, TypeVar

import msgspec

from kpl_engine.errors import RequestCancelledError, RequestError, SlowRequestError, TooLargeError
from kpl_engine.server.http.compression import inflate
from kpl_engine.server.port import BytesLease
from kpl_engine.server.requests import Reply, Ticket
from kpl_engine.server.settings import ServerSettings

__all__ = ["Exchange", "LongWork", "Receive", "Scope", "Send", "await_reply", "header_of", "read_body"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]
_T = TypeVar("_T")
_INLINE_BYTES = 64 << 10
_LONG_BYTES = 1 << 20


def header_of(scope: Scope, name: bytes) -> str:
    """The value of a header by its lower-case name, "" without; `RequestError` where it stands twice."""
    found = [value for key, value in scope["headers"] if key == name]
    if len(found) > 1:
        raise RequestError(f"header {name.decode()}: expected it once, got it {len(found)} times")
    return found[0].decode("latin-1").strip() if found else ""


class Exchange:
    """What a handler has in hand. ``status`` is that of the reply once it began, 0 before."""

    __slots__ = ("_added", "_send", "receive", "request_id", "scope", "status")

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        self.scope, self.receive, self._send = scope, receive, send
        self.request_id = request_id
        self.status = 0
        self._added = [(b"x-request-id", request_id.encode())]

    def header(self, name: bytes) -> str:
        """See `header_of`."""
        return header_of(self.scope, name)

    def adopt_id(self, request_id: str) -> None:
        """The id the body named: what the reply's header says from now on."""
        self.request_id = request_id
        self._added[0] = (b"x-request-id", request_id.encode())

    def add(self, headers: Headers) -> None:
        """Headers of whatever the reply will be."""
        self._added.extend(headers)

    async def send(self, message: Message) -> None:
        """ASGI send; every reply carries the request id and what the door adds."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            given = list(message.get("headers", ()))
            has_id = any(name == b"x-request-id" for name, _ in given)
            message["headers"] = given + self._added[has_id:]
        await self._send(message)

    async def respond(self, status: int, body: bytes, headers: Headers = (), kind: bytes = b"application/json") -> None:
        """A whole reply; none of the body for HEAD, whose content-length is the same."""
        length = str(len(body)).encode()
        head = [(b"content-type", kind), (b"content-length", length), *headers]
        await self.send({"type": "http.response.start", "status": status, "headers": head})
        if self.scope["method"] == "HEAD":
            body = b""
        await self.send({"type": "http.response.body", "body": body})

    async def respond_json(self, value: Any, status: int = 200, headers: Headers = ()) -> None:
        """A JSON reply; what JSON has no number for (NaN, infinities) is null."""
        try:
            body = msgspec.json.encode(value)
        except UnicodeEncodeError:  # half a surrogate pair, from an error that quotes the client
            body = json.dumps(value).encode()
        await self.respond(status, body, headers)


async def read_body(scope: Scope, receive: Receive, lease: BytesLease, settings: ServerSettings) -> bytes:
    """The whole body, counted against the lease while it arrives, then without its Content-Encoding.

    Raises
    ------
    RequestError
        See `compression.inflate`.
    TooLargeError
        Content-Length, or what came, packed or not, is over ``settings.max_body_bytes``.
    SlowRequestError
        Not all of it came within ``settings.body_timeout_s``.
    RequestCancelledError
        The client left.
    OverloadedError
        See `BytesLease.grow`.
    """
    declared = header_of(scope, b"content-length")
    if declared.isdecimal() and int(declared[:20]) > settings.max_body_bytes:
        raise TooLargeError(f"body: expected at most {settings.max_body_bytes} bytes, got {declared[:20]}; send less")
    encoding = header_of(scope, b"content-encoding").lower()
    body = await _within(settings.body_timeout_s, _collect(receive, lease))
    if encoding in ("", "identity"):
        return body
    unpacked = await asyncio.to_thread(inflate, body, encoding, settings.max_body_bytes)
    lease.grow(max(0, len(unpacked) - len(body)))
    return unpacked


async def _within(seconds: float, body: Awaitable[bytes]) -> bytes:
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    is_late = False

    def expire() -> None:
        nonlocal is_late
        is_late = True
        if task is not None:
            task.cancel()

    timer = loop.call_later(seconds, expire)  # asyncio.timeout begins with Python 3.11
    try:
        return await body
    except asyncio.CancelledError:
        if not is_late:
            raise
        getattr(task, "uncancel", int)()  # Python 3.11 counts cancellations; what was asked for here is dealt with
        raise SlowRequestError(f"body: expected all of it within {seconds:g} s; send less or faster") from None
    finally:
        timer.cancel()


async def _collect(receive: Receive, lease: BytesLease) -> bytes:
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RequestCancelledError("the client left while it sent the body")
        part = message.get("body", b"")
        if part:
            lease.grow(len(part))
            parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


async def await_reply(ticket: Ticket, receive: Receive) -> Reply:
    """The answer; a client that leaves meanwhile cancels its ticket, and so does the end of this task."""
    watch = asyncio.ensure_future(_until_gone(receive))
    watch.add_done_callback(lambda done: None if done.cancelled() or done.exception() else ticket.cancel())
    try:
        return await asyncio.wrap_future(ticket.future)
    except asyncio.CancelledError:
        ticket.cancel()
        raise
    finally:
        watch.cancel()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class LongWork:
    """Where a body is taken apart: in the loop where a thread would cost more, else in a thread, so that health stays
    quick; above 1 MiB one at a time, since a reader of JSON never lets go of the interpreter, and the loop would wait
    for each of several in turn."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def run(self, num_bytes: int, function: Callable[..., _T], *arguments: Any) -> _T:
        """``function(*arguments)``, which is the work of ``num_bytes``."""
        if num_bytes <= _INLINE_BYTES:
            return function(*arguments)
        if num_bytes <= _LONG_BYTES:
            return await asyncio.to_thread(function, *arguments)
        async with self._turn:
            return await asyncio.to_thread(function, *arguments)
