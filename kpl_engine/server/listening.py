"""Sockets to listen at, the limit of open files, and what systemd is told."""

from __future__ import annotations

import contextlib
import errno
import resource
import socket

from kpl_engine.errors import ConfigError

__all__ = ["address_of", "notify_systemd", "open_listener", "raise_open_files"]

_BACKLOG = 2048


def open_listener(host: str, port: int, setting: str) -> list[socket.socket]:
    """Listening sockets, one an address that ``host`` stands for, all at one port (0: any free one).

    Raises
    ------
    ConfigError
        The port is taken or not allowed, or the host is none of this machine; names ``setting``, as "http_port".
    """
    flag = "--" + setting.replace("_", "-")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(f"--host: {host!r} is no address of this machine: {error.strerror}") from None
    opened: list[socket.socket] = []
    refused: OSError | None = None
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            try:
                opened.append(_listen(family, (address[0], port, *address[2:])))
            except OSError as error:
                # A name may stand for an IPv6 address where that protocol is switched off.
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                refused = error
                continue
            port = opened[0].getsockname()[1]
        if not opened and refused is not None:
            raise refused
    except OSError as error:
        for each in opened:
            each.close()
        raise ConfigError(_refusal(error, host, port, flag)) from None
    return opened


def _listen(family: int, address: tuple[object, ...]) -> socket.socket:
    # The protocol by name: asyncio turns Nagle's algorithm off only where a socket says that it is TCP, and accepted
    # sockets inherit it. With it a reply in two writes waits 40 ms for the client's delayed acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        # A port that was just left may be taken again at once; one in use stays refused.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _refusal(error: OSError, host: str, port: int, flag: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} at {host} is taken by another program; stop it, or choose another with {flag}"
    if error.errno == errno.EACCES:
        return f"port {port} at {host} is not allowed to this user; choose one above 1023 with {flag}"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"--host: {host!r} is no address of this machine"
    return f"cannot listen at port {port} of {host} ({flag}): {error.strerror}"


def address_of(scheme: str, listener: socket.socket) -> str:
    """``http://127.0.0.1:8000``."""
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def raise_open_files() -> int:
    """Lift the soft limit of open files to the hard one; returns what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # a sandbox may forbid it
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return soft


def notify_systemd(address: str, state: str) -> None:
    """Tell systemd ``state`` ("READY=1") at the socket it named; nothing where it named none or has left."""
    if not address:
        return
    place = "\0" + address[1:] if address.startswith("@") else address
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.setblocking(False)
        out.sendto(state.encode(), place)
