"""The page at `/`: a few files read once at the start, so that no address ever becomes a path on the disk."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from kpl_engine.server.http.exchange import Exchange

__all__ = ["PageFile", "read_page", "send_page_file"]

_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".webmanifest": "application/manifest+json",
}
# Nothing from elsewhere, nothing inline; blob: and data: are previews of dropped pictures.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True)
class PageFile:
    """One file of the page as it is sent."""

    body: bytes
    kind: bytes
    tag: bytes


def read_page(folder: Path) -> dict[str, PageFile]:
    """Files of ``folder`` that a browser may have, by address; "/" is index.html. Empty where there is no folder."""
    found: dict[str, PageFile] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix in _KINDS and path.is_file():
            body = path.read_bytes()
            tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'.encode()
            found[f"/{path.name}"] = PageFile(body, _KINDS[path.suffix].encode(), tag)
    if "/index.html" in found:
        found["/"] = found["/index.html"]
    return found


async def send_page_file(exchange: Exchange, file: PageFile) -> None:
    """The file, or 304 where the browser has it."""
    headers = [
        (b"etag", file.tag),
        (b"cache-control", b"no-cache"),
        (b"content-security-policy", _POLICY.encode()),
        (b"referrer-policy", b"no-referrer"),
        (b"cross-origin-opener-policy", b"same-origin"),
    ]
    if exchange.header(b"if-none-match").encode() == file.tag:
        await exchange.send({"type": "http.response.start", "status": 304, "headers": headers})
        await exchange.send({"type": "http.response.body", "body": b""})
        return
    await exchange.respond(200, file.body, headers, file.kind)
