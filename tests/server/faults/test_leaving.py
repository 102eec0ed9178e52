"""Clients that leave at any stage: nothing of theirs is left in the server."""

import contextlib
import json
import random
import socket
import struct
import threading
import time

import pytest

from tests.server.faults.requests import INFER

pytestmark = pytest.mark.usefixtures("unharmed")
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends a reset instead of an orderly end


def _leave(connection, rudely):
    if rudely:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    connection.close()


def _wire(whole_requests, name):
    return next(each for each in whole_requests if each.name == name).wire()


@pytest.mark.parametrize("rudely", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("name", ["json", "binary image", "form", "gzip"])
def test_while_it_sends(server, whole_requests, name, rudely):
    data = _wire(whole_requests, name)
    head = data.index(b"\r\n\r\n") + 4
    places = [0, 1, head // 2, head - 2, head, head + 1, (head + len(data)) // 2, len(data) - 1]
    for length in places:
        connection = server.connect()
        connection.sendall(data[:length])
        _leave(connection, rudely)


@pytest.mark.parametrize("rudely", [False, True], ids=["closed", "reset"])
def test_while_it_is_decoded_waits_is_encoded_or_answered(server, pictures, seed, rudely):
    """Hundreds of requests beyond what the server can do at once, left after 0 to 60 ms: every stage is met."""
    rng = random.Random(seed)
    body = b"".join(struct.pack("<I", len(each)) + each for each in pictures[:4])
    sizes = {"binary_data_size": len(body)}
    tensor = {"name": "image", "datatype": "BYTES", "shape": [4], "parameters": sizes}
    head = json.dumps({"inputs": [tensor]}).encode()
    wire = (
        (
            f"POST {INFER} HTTP/1.1\r\nHost: a\r\nInference-Header-Content-Length: {len(head)}\r\n"
            f"Content-Length: {len(head) + len(body)}\r\n\r\n"
        ).encode()
        + head
        + body
    )

    def many():
        for _ in range(30):
            connection = server.connect()
            with contextlib.suppress(ConnectionError):
                connection.sendall(wire)
            time.sleep(rng.uniform(0.0, 0.06))
            _leave(connection, rudely)

    work = [threading.Thread(target=many) for _ in range(12)]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join(120)
    server.wait_idle()
    cancelled = sum(v for k, v in server.counters().items() if k.startswith("kpl_cancelled_total"))
    assert cancelled > 0


def test_while_the_reply_is_sent(server, whole_requests):
    data = _wire(whole_requests, "binary image")
    for _ in range(40):
        connection = server.connect()
        connection.sendall(data)
        connection.recv(1)
        _leave(connection, rudely=True)


def test_in_the_middle_of_a_pipeline(server, whole_requests):
    data = _wire(whole_requests, "json") * 20
    for _ in range(10):
        connection = server.connect()
        connection.sendall(data)
        connection.recv(100)
        _leave(connection, rudely=True)
