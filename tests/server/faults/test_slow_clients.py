"""Clients that send slowly hold a connection and nothing else, and not for long."""

import contextlib
import socket
import time

import pytest

from tests.server.faults.process import Server
from tests.server.faults.requests import INFER

HEADER_S, BODY_S, KEEP_S = 1.0, 1.5, 2.0
SLACK_S = 8.0  # of a machine that is shared


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    options = ["--header-timeout", str(HEADER_S), "--body-timeout", str(BODY_S), "--keep-alive", str(KEEP_S)]
    with Server(tmp_path_factory.mktemp("server"), *options) as found:
        yield found


def _trickle(server, head, byte, seconds):
    """Send ``head`` and then ``byte`` ten times a second; the seconds until the server hung up, and what it said."""
    with server.connect() as connection:
        started = time.monotonic()
        connection.sendall(head)
        connection.settimeout(0.1)
        said = b""
        while (now := time.monotonic() - started) < seconds + SLACK_S:
            with contextlib.suppress(TimeoutError):
                try:
                    part = connection.recv(65536)
                except ConnectionError:
                    return now, said
                if not part:
                    return now, said
                said += part
            try:
                connection.sendall(byte)
            except OSError:
                return now, said
    raise AssertionError(f"still open after {now:.1f} s")


_GET = b"GET /v2 HTTP/1.1\r\nHost: a\r\n"
_POST = f"POST {INFER} HTTP/1.1\r\nHost: a\r\n".encode()
_FORM = b"POST /v1/classify HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=b\r\n"
_SLOW = {
    "first line": (b"GET /", b"a", HEADER_S),
    "header name": (_GET, b"X", HEADER_S),
    "header lines": (_GET, b"X: y\r\n", HEADER_S),
    "body": (_POST + b"Content-Length: 100000\r\n\r\n", b"{", BODY_S),
    "chunks": (_POST + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n{\r\n", BODY_S),
    "form": (_FORM + b"Content-Length: 100000\r\n\r\n--b\r\n", b"x", BODY_S),
}


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("where", list(_SLOW))
def test_trickling(server, where):
    head, byte, limit = _SLOW[where]
    seconds, said = _trickle(server, head, byte, limit)
    assert limit * 0.8 < seconds < limit + SLACK_S
    if said:
        assert said.split(b" ")[1] == b"408"


@pytest.mark.usefixtures("unharmed")
def test_connections_that_say_nothing_are_closed(server):
    with contextlib.ExitStack() as held:
        idle = [held.enter_context(server.connect(KEEP_S + HEADER_S + SLACK_S)) for _ in range(20)]
        used = held.enter_context(server.connect(KEEP_S + SLACK_S))
        used.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n")
        assert used.recv(65536).startswith(b"HTTP/1.1 200")
        for each in [*idle, used]:
            while each.recv(65536):
                pass


@pytest.mark.usefixtures("unharmed")
def test_two_hundred_slow_ones_keep_nobody_waiting(server, pictures):
    head = f"POST {INFER} HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n".encode()
    with contextlib.ExitStack() as held:
        for _ in range(200):
            held.enter_context(server.connect()).sendall(head + b"{" * 10)
        started = time.monotonic()
        assert server.classify(pictures[0])["label"]
        assert time.monotonic() - started < SLACK_S


@pytest.mark.usefixtures("unharmed")
def test_a_client_that_does_not_read_its_reply(server):
    with contextlib.ExitStack() as held:
        for _ in range(10):
            each = held.enter_context(socket.socket())
            each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            each.connect(("127.0.0.1", server.http))
            each.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                each.send(b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n" * 50)
        assert server.is_ready()
