"""Packed bodies in bounded memory, and which packing a client takes."""

import gzip
import tracemalloc
import zlib

import pytest

from kpl_engine.errors import TooLargeError
from kpl_engine.server.http.compression import choose_encoding, deflate, inflate

LIMIT = 1 << 20


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_bomb_is_not_unpacked(encoding, pack):
    bomb = pack(bytes(64 * LIMIT))
    tracemalloc.start()
    try:
        with pytest.raises(TooLargeError, match="unpacked"):
            inflate(bomb, encoding, LIMIT)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * LIMIT  # zlib's buffer grows by doubling, with the old one beside it; unbounded it is 64 limits


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_up_to_the_limit(encoding):
    body = bytes(LIMIT)
    assert inflate(deflate(body, encoding), encoding, LIMIT) == body
    with pytest.raises(TooLargeError):
        inflate(deflate(body + b"x", encoding), encoding, LIMIT)


@pytest.mark.parametrize(
    ("accepted", "want"),
    [
        ("gzip", "gzip"),
        ("GZIP", "gzip"),
        ("deflate, gzip", "gzip"),
        ("gzip;q=0, deflate", "deflate"),
        ("gzip; q=0.000", ""),
        ("gzip;q=0.5", "gzip"),
        ("br", ""),
        ("", ""),
    ],
)
def test_choice(accepted, want):
    assert choose_encoding(accepted, 5000) == want
    assert choose_encoding(accepted, 100) == ""
