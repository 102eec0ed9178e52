"""Requests that offer another protocol ("Upgrade: h2c", as Java's client does unasked) are read as what they are."""

from __future__ import annotations

from typing import Any

import httptools

__all__ = ["PlainParser"]

_OFFERS = (b"upgrade", b"http2-settings", b"connection")


class PlainParser:
    """httptools' request parser, for a server that follows no upgrade.

    httptools ends at the headers of a request with ``Upgrade``: its body would be lost, and read as the next request.
    Here such a request is read again without the offer (RFC 9110, 7.8: a server may ignore it).

    Parameters
    ----------
    protocol : object
        Takes the callbacks; keeps ``url`` and ``headers`` of the request being read, and passes over
        ``on_headers_complete`` and ``on_message_complete`` while `is_offer`.
    """

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol
        self._parser = httptools.HttpRequestParser(protocol)

    @property
    def is_offer(self) -> bool:
        """The headers that were just read offer an upgrade; they come once more without it. CONNECT asks for one."""
        return bool(self._parser.should_upgrade()) and self._parser.get_method() != b"CONNECT"

    def feed_data(self, data: bytes) -> None:
        """As httptools' own."""
        while True:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as error:
                if not self.is_offer:
                    raise
                head, rest = self._without_offer(), data[error.args[0] :]
                self._parser = httptools.HttpRequestParser(self._protocol)
                data = head + rest

    def should_upgrade(self) -> bool:
        """As httptools' own."""
        return bool(self._parser.should_upgrade())

    def should_keep_alive(self) -> bool:
        """As httptools' own."""
        return bool(self._parser.should_keep_alive())

    def get_method(self) -> bytes:
        """As httptools' own."""
        return bytes(self._parser.get_method())

    def get_http_version(self) -> str:
        """As httptools' own."""
        return str(self._parser.get_http_version())

    def _without_offer(self) -> bytes:
        given = self._protocol.headers
        options = [each.strip() for name, value in given if name == b"connection" for each in value.lower().split(b",")]
        kept = [(name, value) for name, value in given if name not in _OFFERS]
        kept += [(b"connection", each) for each in options if each in (b"close", b"keep-alive")]
        first = b"%s %s HTTP/%s" % (self.get_method(), self._protocol.url, self.get_http_version().encode())
        return b"\r\n".join([first, *(name + b": " + value for name, value in kept), b"", b""])
