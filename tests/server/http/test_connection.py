"""Slow, rude and leaving clients, on bare sockets."""

import contextlib
import threading
from time import monotonic

import httpx
import pytest
from starlette.responses import Response
from starlette.routing import Route

from kpl_engine.server.settings import ServerSettings
from tests.server.doubles import EngineService
from tests.server.http.wire import connect, head, read_all, read_reply

INFER = "/v2/models/demo/infer"
QUICK = {"header_timeout_s": 0.2, "body_timeout_s": 0.3}


@pytest.fixture
def quick(serve, demo_engine):
    """A server that waits for nobody."""
    return serve(EngineService(demo_engine, settings=ServerSettings(**QUICK)))


def is_well(server):
    return httpx.get(server.url + "/v2/health/ready", timeout=20).status_code == 200


def ask_until(client, is_so):
    """Health stays quick meanwhile, and that long may it take."""
    end = monotonic() + 20
    while not is_so():
        assert client.get("/v2/health/live").status_code == 200
        assert monotonic() < end


def test_a_silent_connection_is_closed(quick):
    with connect(quick) as sock:
        assert read_all(sock) == b""
    assert is_well(quick)


@pytest.mark.parametrize("start", [b"G", b"GET /v2 HT", b"GET /v2 HTTP/1.1\r\nhost: x\r\n", b"\r\n"])
def test_headers_that_never_end(quick, start):
    with connect(quick) as sock:
        sock.sendall(start)
        assert read_all(sock).startswith(b"HTTP/1.1 408 ")


@contextlib.contextmanager
def dripping(sock):
    """A byte now and then, until the connection ends."""
    stop = threading.Event()

    def drip():
        while not stop.wait(0.02):
            try:
                sock.sendall(b"x")
            except OSError:
                return

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(20)


def test_headers_in_drops_are_timed_as_a_whole(quick):
    with connect(quick) as sock:
        sock.sendall(b"GET /v2 HTTP/1.1\r\nx: ")
        with dripping(sock):
            assert b" 408 " in read_all(sock)


def test_a_body_in_drops_is_timed_as_a_whole(quick):
    with connect(quick) as sock:
        sock.sendall(head("POST", INFER, [("content-length", 1 << 20)]))
        with dripping(sock):
            assert read_reply(sock)[0] == 408
            sock.settimeout(5)  # what follows the reply is dropped for body_timeout_s more, not for as long as it drips
            assert read_all(sock) == b""


def test_second_request_of_a_connection_is_timed_too(quick):
    with connect(quick) as sock:
        sock.sendall(head("GET", "/v2/health/live"))
        assert read_reply(sock)[0] == 200
        sock.sendall(b"GET /v2 HTTP")
        assert b" 408 " in read_all(sock)


def test_an_idle_connection_outlives_the_header_timeout(quick):
    with connect(quick) as sock, connect(quick) as other:
        sock.sendall(head("GET", "/v2/health/live"))
        assert read_reply(sock)[0] == 200
        assert read_all(other) == b""  # came later and was closed for its silence
        sock.sendall(head("GET", "/v2/health/live"))
        assert read_reply(sock)[0] == 200


def test_a_slow_body(quick):
    with connect(quick) as sock:
        sock.sendall(head("POST", INFER, [("content-length", 100)]) + b"{")
        code, _, body = read_reply(sock)
        assert (code, b"within 0.3 s" in body) == (408, True)
        assert read_all(sock) == b""  # the rest never comes: closed
    assert quick.service.inflight_bytes == 0
    assert quick.recorder.wait_for("http", "infer", "408")


@pytest.mark.parametrize(
    "content",
    [
        b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\n\r\n",
        head("GET", "/v2", [("x", "a" * 40_000)]),
        head("GET", "/v2", [("x" * 40_000, "a")]),
        head("GET", "/v2", [(f"x{i}", i) for i in range(200)]),
        b"GET /v2 HTTP/1.1\r\nx: " + b"a" * 400_000,
    ],
)
def test_large_headers(http_server, content):
    with connect(http_server) as sock:
        sock.sendall(content)
        assert read_all(sock).startswith(b"HTTP/1.1 431 ")
    assert is_well(http_server)


@pytest.mark.parametrize(
    "content",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50) + b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /v2 HTTP/9.9\r\n\r\n",
        head("POST", INFER, [("content-length", "-1")]),
        head("POST", INFER, [("content-length", "x")]),
        head("POST", INFER, [("content-length", 1), ("content-length", 2)]),
        head("POST", INFER, [("content-length", 1), ("transfer-encoding", "chunked")]),
        head("POST", INFER, [("transfer-encoding", "chunked")]) + b"zz\r\n",
    ],
)
def test_what_is_no_http(http_server, content):
    with connect(http_server) as sock:
        sock.sendall(content)
        assert read_all(sock).startswith(b"HTTP/1.1 400 ")
    assert is_well(http_server)


def test_trailers_add_nothing_to_a_request(http_server, service, pictures):
    given = [("transfer-encoding", "chunked"), ("content-type", "image/png")]
    body = b"%x\r\n%s\r\n0\r\nx-request-id: sneaked\r\n\r\n" % (len(pictures[0]), pictures[0])
    with connect(http_server) as sock:
        sock.sendall(head("POST", INFER, given) + body)
        code, headers, _ = read_reply(sock)
    assert code == 200
    assert headers["x-request-id"] != "sneaked"


def test_pipelined_requests_are_answered_in_order(http_server):
    with connect(http_server) as sock:
        sock.sendall(b"".join(head("GET", "/v2/health/live", [("x-request-id", i)]) for i in range(5)))
        data = b""
        while data.count(b'{"live":true}') < 5:
            part = sock.recv(65536)
            assert part
            data += part
    at = [data.index(b"x-request-id: %d\r\n" % i) for i in range(5)]
    assert at == sorted(at)


def test_refused_body_is_read_away_and_the_connection_lives(serve, demo_engine):
    server = serve(EngineService(demo_engine, settings=ServerSettings(max_body_bytes=1000)))
    with connect(server) as sock:
        sock.sendall(head("POST", INFER, [("content-length", 200_000)]))
        assert read_reply(sock)[0] == 413  # before any of it was sent
        sock.sendall(b"x" * 200_000 + head("GET", "/v2/health/live"))
        assert read_reply(sock)[0] == 200


def test_expect_is_answered_by_the_refusal(serve, demo_engine):
    server = serve(EngineService(demo_engine, settings=ServerSettings(max_body_bytes=1000)))
    with connect(server) as sock:
        sock.sendall(head("POST", INFER, [("content-length", 2000), ("expect", "100-continue")]))
        assert read_reply(sock)[0] == 413


def test_upgrades_are_not_followed(http_server):
    for kind in ("websocket", "h2c"):
        with connect(http_server) as sock:
            sock.sendall(head("GET", "/v2/health/live", [("connection", "upgrade"), ("upgrade", kind)]))
            assert read_reply(sock)[0] == 200


@pytest.mark.parametrize("is_split", [False, True])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_an_offer_of_http2_keeps_its_body(http_server, pictures, is_chunked, is_split):
    """Java's client offers h2c with the first request of each connection."""
    picture = pictures[0]
    length = ("transfer-encoding", "chunked") if is_chunked else ("content-length", len(picture))
    offer = [("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", "h2c"), ("HTTP2-Settings", "AAMAAABkAAQ")]
    start = head("POST", INFER, [*offer, ("content-type", "image/png"), ("x-request-id", "offered"), length])
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(picture), picture) if is_chunked else picture
    with connect(http_server) as sock:
        for part in [start, body[:100], body[100:]] if is_split else [start + body]:
            sock.sendall(part)
        code, headers, _ = read_reply(sock)
        assert (code, headers["x-request-id"]) == (200, "offered")
        sock.sendall(head("GET", "/v2/health/live"))  # the body was not taken for a request
        assert read_reply(sock)[0] == 200


def test_an_offer_of_http2_may_close_the_connection(http_server):
    with connect(http_server) as sock:
        sock.sendall(head("GET", "/v2/health/live", [("connection", "upgrade, close"), ("upgrade", "h2c")]))
        assert read_all(sock).startswith(b"HTTP/1.1 200 ")


def test_more_connections_than_allowed(serve, demo_engine):
    server = serve(EngineService(demo_engine, settings=ServerSettings(max_connections=3)))
    held = [connect(server) for _ in range(3)]
    socks = [each.__enter__() for each in held]
    for sock in socks:
        sock.sendall(head("GET", "/v2/health/live"))
        assert read_reply(sock)[0] == 200
    with connect(server) as sock:
        code, headers, body = read_reply(sock)
        assert (code, headers["retry-after"], b"3 connections" in body) == (503, "1", True)
        assert read_all(sock) == b""
    for each in held:
        each.__exit__(None, None, None)
    for sock in socks:
        assert sock.fileno() == -1


def test_a_client_that_leaves_while_it_sends(http_server, service):
    with connect(http_server) as sock:
        sock.sendall(head("POST", INFER, [("content-length", 1000)]) + b"{")
    assert http_server.recorder.wait_for("http", "infer", "499")
    assert (service.inflight_bytes, service.tickets) == (0, [])
    assert is_well(http_server)


def test_a_client_that_leaves_while_it_waits(http_server, service, pictures):
    service.hold = threading.Event()
    try:
        with connect(http_server) as sock:
            given = [("content-length", len(pictures[0])), ("content-type", "image/png"), ("expect", "100-continue")]
            sock.sendall(head("POST", INFER, given))
            assert sock.recv(100).startswith(b"HTTP/1.1 100 ")
            sock.sendall(pictures[0])
            with httpx.Client(base_url=http_server.url, timeout=20) as client:  # answered while the other waits
                ask_until(client, lambda: service.tickets)
        assert http_server.recorder.wait_for("http", "infer", "499")
    finally:
        service.hold.set()
    assert service.tickets[0].is_cancelled
    assert service.inflight_bytes == 0


def test_a_client_that_never_reads(serve, demo_engine):
    async def large(request):
        return Response(bytes(16 << 20))  # more than the buffers of a socket hold

    service = EngineService(demo_engine, settings=ServerSettings(body_timeout_s=0.3))
    server = serve(service, extra_routes=[Route("/large", large)])
    with connect(server, receive_bytes=4096) as sock:
        sock.sendall(head("GET", "/large"))
        assert server.recorder.wait_for("http", "other", "200")  # its task is over
        mine = sock.getsockname()
        with httpx.Client(base_url=server.url, timeout=20) as client:
            ask_until(client, lambda: all(each.client != mine for each in list(server.connections)))
        assert len(read_all(sock)) < 16 << 20


def test_a_client_that_stays_is_not_cancelled(http_server, service, pictures):
    kind = {"content-type": "image/png"}
    for _ in range(3):
        assert httpx.post(http_server.url + INFER, content=pictures[0], headers=kind, timeout=20).status_code == 200
    assert not any(ticket.is_cancelled for ticket in service.tickets)
