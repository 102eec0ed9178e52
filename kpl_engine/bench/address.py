"""The address of a running server, and the token it asks for."""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from kpl_engine.errors import ConfigError

__all__ = ["Address", "read_token"]

_PORTS = {"http": 8000, "https": 443, "grpc": 8001, "grpcs": 443}
_MOST_TOKEN_BYTES = 1 << 20


@dataclass(frozen=True)
class Address:
    """``scheme://host:port/prefix``; ``prefix`` is "" or begins with a slash (HTTP behind a proxy)."""

    scheme: str
    host: str
    port: int
    prefix: str = ""

    @classmethod
    def parse(cls, url: str) -> Address:
        """`ConfigError` for anything but http, https, grpc or grpcs with a host."""
        expected = "expected http://host:8000, https://, grpc://host:8001 or grpcs://"
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"url: {expected}, got one that cannot be read: {error}") from None
        if "@" in parts.netloc:  # a password, which is not repeated
            raise ConfigError(f"url: {expected} without a user; give a bearer token by --token-file")
        if parts.scheme not in _PORTS or not parts.hostname or parts.query or parts.fragment:
            raise ConfigError(f"url: {expected}, got {url[:200]!r}")
        prefix = parts.path.rstrip("/")
        if prefix and parts.scheme.startswith("grpc"):
            raise ConfigError(f"url: expected no path behind the port of gRPC, got {url[:200]!r}")
        return cls(parts.scheme, parts.hostname, port or _PORTS[parts.scheme], prefix)

    @property
    def is_grpc(self) -> bool:
        """Else HTTP."""
        return self.scheme.startswith("grpc")

    @property
    def tls(self) -> ssl.SSLContext | None:
        """For https; OpenSSL's SSL_CERT_FILE names other authorities than the system's."""
        return ssl.create_default_context() if self.scheme == "https" else None

    @property
    def roots(self) -> bytes | None:
        """For grpcs the authorities that https would trust, PEM; None where OpenSSL has them in no one file."""
        file = ssl.get_default_verify_paths().cafile if self.scheme == "grpcs" else None
        return Path(file).read_bytes() if file else None

    @property
    def netloc(self) -> str:
        """``host:port``, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """The server shares this machine with the client."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}{self.prefix}"


def read_token(path: Path | None) -> str:
    """The first token of a file as ``kpl-engine serve --tokens-file`` takes it; "" without a file."""
    if path is None:
        return ""
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_TOKEN_BYTES).decode("ascii")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not ASCII text"
        raise ConfigError(f"token file: cannot read {str(path)!r}: {reason}") from None
    for line in text.splitlines():
        entry = line.partition("#")[0].strip()
        if entry:
            return entry.rpartition(":")[2].strip()  # "name:token", or the token alone, which has no colon
    raise ConfigError(f"token file: {str(path)!r} holds no token; expected one on a line")
