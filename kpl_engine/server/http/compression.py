"""gzip and deflate: bodies unpacked within a bound, replies packed where the client takes it and it pays."""

from __future__ import annotations

import gzip
import zlib

from kpl_engine.errors import RequestError, TooLargeError

__all__ = ["choose_encoding", "deflate", "inflate"]

_MIN_REPLY_BYTES = 1024


def inflate(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """``body`` unpacked; never more than ``max_bytes`` + 1 bytes are made of it.

    Raises
    ------
    RequestError
        Another encoding than gzip, deflate (zlib, or bare as some clients send it), identity; damaged or cut off data.
    TooLargeError
        More than ``max_bytes``.
    """
    if encoding in ("", "identity"):
        return body
    if encoding in ("gzip", "x-gzip"):
        window = 31
    elif encoding == "deflate":
        is_zlib = len(body) > 1 and body[0] & 15 == 8 and (body[0] << 8 | body[1]) % 31 == 0
        window = zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS
    else:
        raise RequestError(f"Content-Encoding: expected gzip, deflate or none; got {encoding[:40]!r}")
    unpacker = zlib.decompressobj(window)
    try:
        found = unpacker.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise RequestError(f"body: expected {encoding} data, got: {error}") from error
    if len(found) > max_bytes:
        raise TooLargeError(f"body: expected at most {max_bytes} bytes unpacked, got more; send fewer images")
    if not unpacker.eof or unpacker.unused_data:
        fault = "bytes behind its end" if unpacker.eof else "it is cut off"
        raise RequestError(f"body: expected one whole {encoding} stream, got: {fault}")
    return found


def choose_encoding(accepted: str, num_bytes: int) -> str:
    """ "gzip", "deflate" or "": what of the client's Accept-Encoding a reply of this length is sent in."""
    if not accepted or num_bytes < _MIN_REPLY_BYTES:
        return ""
    offered = {}
    for part in accepted.lower().split(","):
        name, _, weight = part.partition(";")
        offered[name.strip()] = weight.replace(" ", "").rstrip("0.") != "q="  # q=0, q=0.000: not this one
    return next((name for name in ("gzip", "deflate") if offered.get(name)), "")


def deflate(body: bytes, encoding: str) -> bytes:
    """``body`` packed as `choose_encoding` says; the fastest level: floats gain little from more."""
    return gzip.compress(body, 1, mtime=0) if encoding == "gzip" else zlib.compress(body, 1)
