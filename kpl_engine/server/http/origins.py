"""Requests that a web page of another host makes: refused where they change something, unless the settings allow it."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from kpl_engine.errors import ForbiddenError, RequestError
from kpl_engine.server.http.exchange import Scope, header_of

__all__ = ["allowed_origin", "cors_headers", "preflight_headers"]

_SAFE = ("GET", "HEAD", "OPTIONS")
_EXPOSED = b"x-request-id, inference-header-content-length, retry-after"
_METHODS = b"GET, HEAD, POST, OPTIONS"
_REQUEST_HEADERS = (
    b"authorization, content-type, content-encoding, inference-header-content-length, traceparent, x-request-id"
)


def allowed_origin(scope: Scope, origins: Collection[str]) -> str:
    """The Origin the settings allow, "" where there is none or it needs no leave.

    `ForbiddenError` for a request that changes something (not GET, HEAD, OPTIONS) from a page of another host.
    """
    origin = header_of(scope, b"origin")
    if not origin:
        return ""
    if origin in origins or "*" in origins:
        return origin
    if scope["method"] not in _SAFE and not _is_own(origin, scope):
        raise ForbiddenError(
            f"requests from pages of {origin[:100]} are not allowed; the operator can allow them with cors_origins"
        )
    return ""


def _is_own(origin: str, scope: Scope) -> bool:
    # Only the host: behind a proxy that ends TLS the scheme here is not the browser's.
    try:
        return bool(urlsplit(origin).netloc) and urlsplit(origin).netloc.lower() == header_of(scope, b"host").lower()
    except (ValueError, RequestError):
        return False


def cors_headers(origin: str) -> list[tuple[bytes, bytes]]:
    """What lets the page of an allowed origin read a reply; none for ""."""
    if not origin:
        return []
    return [
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-expose-headers", _EXPOSED),
        (b"vary", b"Origin"),
    ]


def preflight_headers() -> list[tuple[bytes, bytes]]:
    """What an allowed page may send, besides `cors_headers`."""
    return [
        (b"access-control-allow-methods", _METHODS),
        (b"access-control-allow-headers", _REQUEST_HEADERS),
        (b"access-control-max-age", b"600"),
    ]
