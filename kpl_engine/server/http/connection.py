"""What guards connections before the application sees a request: time and size of headers, number of connections."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from kpl_engine.server.http.upgrade import PlainParser
from kpl_engine.server.settings import ServerSettings

__all__ = ["guarded"]

_MAX_HEAD_BYTES = 32 << 10
_MAX_HEADERS = 128
_REASONS = {
    400: b"Bad Request",
    408: b"Request Timeout",
    431: b"Request Header Fields Too Large",
    503: b"Service Unavailable",
}


def guarded(settings: ServerSettings) -> type[HttpToolsProtocol]:
    """uvicorn's protocol with the bounds of ``settings``, for its option ``http``.

    A connection is closed when the headers of a request are not there ``header_timeout_s`` after the connection was
    made or their first byte came (408 where some came), when they are over 32 KiB or 128 in number (431), when the
    rest of a body that was answered early is not there after ``body_timeout_s``, when the client has not taken
    a reply within that, and at once when there are ``max_connections`` already (503).
    """
    return type("GuardedProtocol", (_Guarded,), {"settings": settings})


class _Guarded(HttpToolsProtocol):
    settings: ServerSettings

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._plain = PlainParser(self)
        self.parser = self._plain  # type: ignore[assignment]
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._awaits_headers = True
        self._in_head = self._in_body = False
        self._num_bytes = 0  # that came after those of the last request
        self._head_bytes = 0  # of the headers now being read
        self._fault = (400, "malformed HTTP request")

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.settings.max_connections:
            self._refuse(
                503, f"more than {self.settings.max_connections} connections; come again", b"retry-after: 1\r\n"
            )
        else:
            self._arm(self.settings.header_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._stop_write_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._num_bytes += len(data)
        super().data_received(data)
        if not self._awaits_headers or self.transport.is_closing():
            return
        if self._num_bytes > _MAX_HEAD_BYTES:
            self._refuse(431, f"expected at most {_MAX_HEAD_BYTES} bytes of headers, got more")
        elif self._timer is None and self._has_begun:
            self._arm(self.settings.header_timeout_s)

    @property
    def _has_begun(self) -> bool:
        """Some of the headers are here, or bytes that may become some; else the connection is idle."""
        return self._in_head or self._num_bytes > 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._check_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._awaits_headers:  # behind a chunked body: nothing may be added to a request that is under way
            return
        super().on_header(name, value)
        self._check_head()

    def _check_head(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers[-1:])
        self._head_bytes = size + (self._head_bytes if self.headers else 0)
        if self._head_bytes > _MAX_HEAD_BYTES or len(self.headers) > _MAX_HEADERS:
            self._fault = (431, f"expected at most {_MAX_HEADERS} headers of {_MAX_HEAD_BYTES} bytes in all, got more")
            raise ValueError("headers over the limit")  # the parser stops; `send_400_response` tells

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes, self._in_head = 0, True

    def on_headers_complete(self) -> None:
        if self._plain.is_offer:
            return
        self._disarm()
        self._awaits_headers, self._in_head, self._in_body = False, False, True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        if self._plain.is_offer:
            return
        self._awaits_headers, self._in_body, self._num_bytes = True, False, 0
        self._disarm()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_body and not self.transport.is_closing():
            self._arm(self.settings.body_timeout_s)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.settings.body_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_write_timer()
        super().resume_writing()

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def send_400_response(self, msg: str) -> None:
        self._refuse(*self._fault)

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, self._expire)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if self._awaits_headers and self._has_begun:
            self._refuse(408, f"expected all headers within {self.settings.header_timeout_s:g} s")
        else:
            self.transport.close()

    def _refuse(self, code: int, message: str, more: bytes = b"") -> None:
        self._disarm()
        cycle = self.cycle
        # In the middle of another reply, or before it, a second one would be taken for it.
        is_free = cycle is None or cycle.response_complete or (self._in_body and not cycle.response_started)
        if is_free:
            body = json.dumps({"error": message}).encode()
            head = (
                b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%sconnection: close\r\n\r\n"
            )
            self.transport.write(head % (code, _REASONS[code], len(body), more) + body)
        self.transport.close()
