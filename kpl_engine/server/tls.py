"""Certificate and key for both doors: checked at the start, exchanged while running, TLS 1.2 or newer."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from kpl_engine.errors import ConfigError

__all__ = ["Certificate"]

_MAX_BYTES = 1 << 20


class Certificate:
    """A certificate chain with its key, both PEM files.

    Parameters
    ----------
    cert, key : Path
        The key without a pass phrase: a server that starts by itself has nobody to ask.

    Raises
    ------
    ConfigError
        A file that cannot be read, is no PEM, has a pass phrase, or a key of another certificate.
    """

    def __init__(self, cert: Path, key: Path) -> None:
        self._cert, self._key = cert, key
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["http/1.1"])
        self._load(self.context)
        self._pem = self._read()
        self._told = self._pem

    def reload(self) -> None:
        """Take the files as they are now, for new connections; `ConfigError` leaves the old pair in use."""
        self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        pem = self._read()
        self._load(self.context)
        self._pem = pem

    def grpc_credentials(self) -> Any:
        """`grpc.ServerCredentials` that follow `reload`."""
        import grpc

        first = grpc.ssl_server_certificate_configuration([self._pem])
        return grpc.dynamic_ssl_server_credentials(first, self._fetch)

    def _fetch(self) -> Any:
        """None where nothing changed since gRPC was told; called from its own threads for each connection."""
        import grpc

        if self._told is self._pem:
            return None
        self._told = self._pem
        return grpc.ssl_server_certificate_configuration([self._told])

    def _load(self, context: ssl.SSLContext) -> None:
        try:
            context.load_cert_chain(self._cert, self._key, password=_refuse_pass_phrase)
        except _PassPhraseError:
            raise ConfigError(
                f"tls_key: {str(self._key)!r} has a pass phrase; write it without: openssl pkey -in KEY -out NEW"
            ) from None
        except ssl.SSLError as error:
            what = "the key does not belong to the certificate" if "MISMATCH" in (error.reason or "") else "no PEM pair"
            raise ConfigError(
                f"tls_cert, tls_key: expected a certificate and its key as PEM, got {str(self._cert)!r} and "
                f"{str(self._key)!r}: {what} ({error.reason or error})"
            ) from None
        except OSError as error:
            raise ConfigError(
                f"tls_cert, tls_key: cannot read {str(self._cert)!r} or {str(self._key)!r}: {error.strerror}"
            ) from None

    def _read(self) -> tuple[bytes, bytes]:
        return self._key.read_bytes()[:_MAX_BYTES], self._cert.read_bytes()[:_MAX_BYTES]


class _PassPhraseError(Exception):
    pass


def _refuse_pass_phrase() -> str:
    raise _PassPhraseError
