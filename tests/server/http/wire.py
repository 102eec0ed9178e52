"""Bytes on a socket, for what no proper client would send."""

import contextlib
import socket


def connect(server, receive_bytes=None):
    """A connection; ``receive_bytes`` bounds what the kernel takes for a client that does not read."""
    sock = socket.socket()
    sock.settimeout(20)
    if receive_bytes is not None:  # before connecting: afterwards the window has been told
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    sock.connect(("127.0.0.1", server.port))
    return contextlib.closing(sock)


def head(method, path, headers=()):
    lines = [f"{method} {path} HTTP/1.1", "host: x", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def read_all(sock):
    """Everything up to the end of the connection."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := sock.recv(65536):
            parts.append(part)
    return b"".join(parts)


def read_reply(sock):
    """One reply with a content-length: (status, headers, body)."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = sock.recv(65536)
        assert part, f"the connection ended after {data!r}"
        data += part
    first, _, rest = data.partition(b"\r\n\r\n")
    lines = first.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
    while len(rest) < int(headers.get("content-length", 0)):
        part = sock.recv(65536)
        assert part
        rest += part
    return int(lines[0].split()[1]), headers, rest
