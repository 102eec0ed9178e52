"""HTTP/1.1 by hand: requests that no client library would send, and their replies."""

import asyncio
import contextlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict
    body: bytes


async def read_reply(reader, is_head=False):
    """One reply, or None where the server closed the connection instead. Interim replies (100) are passed over."""
    while True:
        line = await reader.readline()
        if not line:
            return None
        version, status, _ = line.split(b" ", 2)
        assert version == b"HTTP/1.1", line
        headers = {}
        while (line := await reader.readline()) not in (b"\r\n", b""):
            name, _, text = line.partition(b":")
            headers[name.strip().lower().decode()] = text.strip().decode()
        if status != b"100":
            break
    return Reply(int(status), headers, b"" if is_head else await _read_body(reader, headers))


async def _read_body(reader, headers):
    if "content-length" in headers:
        return await reader.readexactly(int(headers["content-length"]))
    if headers.get("transfer-encoding") != "chunked":
        return b""
    parts = []
    while size := int(await reader.readline(), 16):
        parts.append(await reader.readexactly(size))
        await reader.readline()
    await reader.readline()
    return b"".join(parts)


class Line:
    """A connection that is kept as long as the server keeps it."""

    def __init__(self, port):
        self._port = port
        self._reader = self._writer = None

    async def ask(self, data, seconds, is_head=False):
        """The reply to ``data``; None when there was none within ``seconds`` or the server hung up."""
        try:
            return await self._ask(data, seconds, is_head)
        except (ConnectionError, asyncio.IncompleteReadError):
            await self.close()
            return None

    async def _ask(self, data, seconds, is_head):
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writer.write(data)
        await self._writer.drain()
        try:
            found = await asyncio.wait_for(read_reply(self._reader, is_head), seconds)
        except (TimeoutError, asyncio.TimeoutError):
            found = None
        if found is None or found.headers.get("connection") == "close":
            await self.close()
        return found

    async def close(self):
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
