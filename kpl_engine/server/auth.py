"""Bearer tokens: read from a file, kept as digests, compared in constant time, never told again."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kpl_engine.errors import ConfigError, UnauthorizedError

__all__ = ["TokenGuard"]

_MIN_LENGTH = 16
_MAX_FILE_BYTES = 1 << 20
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750, section 2.1: no colon, so `name:token` has one reading
_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,64}")
_HOW = "send the header 'Authorization: Bearer TOKEN'"


class TokenGuard:
    """The tokens of one file.

    One token a line, ``name:`` before it where a log should tell who asked, ``#`` begins a comment. A token has
    at least 16 characters of ``A-Z a-z 0-9 - . _ ~ + /`` and may end in ``=``.

    The file is read again by `reload`; a file that cannot be used then leaves the tokens as they are.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._names: Mapping[bytes, str] = _read(path)

    def __len__(self) -> int:
        return len(self._names)

    @property
    def is_exposed(self) -> bool:
        """Whether others than the file's owner and group can read it."""
        return bool(self._path.stat().st_mode & 0o004)

    def reload(self) -> int:
        """Read the file again; returns the number of tokens, raises `ConfigError` and changes nothing if it is bad."""
        self._names = _read(self._path)
        return len(self._names)

    def check(self, authorization: str) -> str:
        """The name of the token in an ``Authorization`` value ("" for one without name); else `UnauthorizedError`."""
        scheme, _, token = authorization.strip().partition(" ")
        if not authorization:
            raise UnauthorizedError(f"this server needs a token: {_HOW}")
        if scheme.lower() != "bearer":
            raise UnauthorizedError(f"expected a bearer token, got another kind of authorization; {_HOW}")
        given = _digest(token.strip())
        found: str | None = None
        # All of them, whichever fits: the time tells neither the place nor a common beginning.
        for digest, name in self._names.items():
            if hmac.compare_digest(digest, given):
                found = name
        if found is None:
            raise UnauthorizedError(f"the token is not one of this server's; {_HOW}")
        return found

    def check_scope(self, scope: Mapping[str, Any]) -> str:
        """As `check`, of an ASGI scope."""
        return self.check(_only([value for key, value in scope["headers"] if key.lower() == b"authorization"]))

    def check_metadata(self, metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
        """As `check`, of the metadata of a gRPC call."""
        return self.check(_only([value for key, value in metadata or () if key.lower() == "authorization"]))


def _only(values: list[str | bytes]) -> str:
    if len(values) > 1:
        raise UnauthorizedError(f"expected one authorization header, got {len(values)}; {_HOW}")
    value = values[0] if values else ""
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _read(path: Path) -> dict[bytes, str]:
    try:
        data = path.read_bytes()[: _MAX_FILE_BYTES + 1]
        text = data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"tokens_file: cannot read {str(path)!r}: {reason}") from None
    if len(data) > _MAX_FILE_BYTES:
        raise ConfigError(f"tokens_file: expected at most {_MAX_FILE_BYTES} bytes, got more: {str(path)!r}")
    names: dict[bytes, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        entry = line.partition("#")[0].strip()
        if entry:
            name, token = _split(entry, f"tokens_file: {str(path)!r}, line {number}")
            names[_digest(token)] = name
    if not names:
        raise ConfigError(f"tokens_file: {str(path)!r} holds no token, so nobody could be let in; add one a line")
    return names


def _split(entry: str, place: str) -> tuple[str, str]:
    """Name and token of a line; errors tell the line's number, never what stands there."""
    name, colon, token = entry.rpartition(":")
    name, token = name.strip(), token.strip()
    if _TOKEN.fullmatch(token) is None:
        raise ConfigError(
            f"{place}: expected a token of A-Z a-z 0-9 - . _ ~ + / and = at the end, got other characters"
        )
    if len(token) < _MIN_LENGTH:
        raise ConfigError(
            f"{place}: expected at least {_MIN_LENGTH} characters, got {len(token)}: openssl rand -hex 32"
        )
    if colon and _NAME.fullmatch(name) is None:
        raise ConfigError(f"{place}: expected a name of letters, digits, '_', '.', '@', '-' before the colon")
    return name, token
