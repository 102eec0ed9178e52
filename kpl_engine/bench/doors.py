"""A server's two doors, as lean as they go: bytes made beforehand go out, bytes come back."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

from kpl_engine.bench.targets import BROKEN
from kpl_engine.errors import MissingExtraError

__all__ = ["Answer", "Door", "GrpcDoor", "HttpDoor", "import_grpc"]

_MOST_BYTES = 64 << 20


@dataclass(frozen=True)
class Answer:
    """``code`` is the HTTP status or the name of the gRPC one; "broken" when the connection was. ``header_bytes`` is
    the length of the JSON in front of binary tensors, None without. ``body`` of a gRPC error is its message."""

    code: str
    body: bytes = b""
    header_bytes: int | None = None


class Door(Protocol):
    """Sends one prepared request."""

    async def send(self, body: bytes, header_bytes: int | None) -> Answer:
        """The answer, or the code that says why there is none."""

    async def close(self) -> None:
        """Close every connection."""


class HttpDoor:
    """HTTP/1.1 with as many kept-alive connections as there are requests at a time: none waits for another."""

    def __init__(
        self, host: str, port: int, path: str, headers: tuple[str, ...] = (), tls: ssl.SSLContext | None = None
    ) -> None:
        self._address, self._tls = (host, port), tls
        named = f"[{host}]" if ":" in host else host
        self._lead = "\r\n".join((f"POST {path} HTTP/1.1", f"Host: {named}:{port}", *headers))
        self._idle: deque[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = deque()
        self._open: set[asyncio.StreamWriter] = set()

    async def send(self, body: bytes, header_bytes: int | None) -> Answer:
        head = f"{self._lead}\r\nContent-Type: application/octet-stream\r\nContent-Length: {len(body)}\r\n"
        if header_bytes is not None:
            head += f"Inference-Header-Content-Length: {header_bytes}\r\n"
        try:
            reader, writer = await self._connection()
        except OSError:
            return Answer(BROKEN)
        try:
            writer.write(head.encode() + b"\r\n" + body)
            answer, keeps = await _read_reply(reader)
        except (OSError, EOFError, ValueError):
            self._close(writer)
            return Answer(BROKEN)
        except BaseException:  # cancelled: the reply would be taken for the next one's
            self._close(writer)
            raise
        if keeps:
            self._idle.append((reader, writer))
        else:
            self._close(writer)
        return answer

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            reader, writer = self._idle.pop()  # the last used: the others may time out, and are then left
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer
            self._close(writer)
        reader, writer = await asyncio.open_connection(*self._address, limit=1 << 20, ssl=self._tls)
        self._open.add(writer)
        return reader, writer

    def _close(self, writer: asyncio.StreamWriter) -> None:
        self._open.discard(writer)
        writer.close()

    async def close(self) -> None:
        waiting = [*self._open]
        for writer in waiting:
            self._close(writer)
        for writer in waiting:
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _read_reply(reader: asyncio.StreamReader) -> tuple[Answer, bool]:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)}
    if "content-length" not in fields:
        raise ValueError("a reply without Content-Length")
    body = await reader.readexactly(int(fields["content-length"]))
    length = fields.get("inference-header-content-length")
    answer = Answer(lines[0].split(" ", 2)[1], body, None if length is None else int(length))
    return answer, fields.get("connection", "").lower() != "close"


def import_grpc() -> Any:
    """The module with its asyncio part; `MissingExtraError` without it."""
    try:
        import grpc
        import grpc.aio
    except ImportError:
        raise MissingExtraError("grpcio", "grpc", "asking a server through gRPC") from None
    return grpc


class GrpcDoor:
    """A unary call with messages serialised beforehand, over a few channels in turn; made inside the event loop.

    ``roots`` are the certificates of authorities, PEM; None leaves gRPC its own.
    """

    def __init__(
        self,
        host: str,
        port: int,
        channels: int = 4,
        *,
        is_secure: bool = False,
        roots: bytes | None = None,
        token: str = "",
        method: str = "ModelInfer",
    ) -> None:
        grpc = import_grpc()
        options = [
            ("grpc.max_receive_message_length", _MOST_BYTES),
            ("grpc.max_send_message_length", _MOST_BYTES),
            ("grpc.use_local_subchannel_pool", 1),  # or all channels would share one connection
        ]
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        if is_secure:
            secrets = grpc.ssl_channel_credentials(roots)
            self._channels = [grpc.aio.secure_channel(place, secrets, options=options) for _ in range(channels)]
        else:
            self._channels = [grpc.aio.insecure_channel(place, options=options) for _ in range(channels)]
        self._error: Any = grpc.aio.AioRpcError
        self._metadata = (("authorization", f"Bearer {token}"),) if token else None
        path = f"/inference.GRPCInferenceService/{method}"
        self._calls = deque(channel.unary_unary(path) for channel in self._channels)

    async def send(self, body: bytes, header_bytes: int | None) -> Answer:
        call = self._calls[0]
        self._calls.rotate()
        try:
            return Answer("OK", await call(body, metadata=self._metadata))
        except self._error as error:
            return Answer(error.code().name, (error.details() or "").encode())

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()
