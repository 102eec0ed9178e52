"""Compiled kernels on disk, shared by processes: looked up, and built once where they are missing."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["KernelCache", "default_folder"]

_MAGIC = b"KPLKERN1"
_DIGEST_BYTES = 32
_MAX_BYTES = 64 << 20  # about a thousand kernels; the least recently used go first


def default_folder() -> Path:
    """``kpl-engine/kernels`` where this user's caches are: $XDG_CACHE_HOME, or ~/.cache."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(given) if os.path.isabs(given) else Path.home() / ".cache"  # the XDG rules ignore a relative one
    return root / "kpl-engine" / "kernels"


class KernelCache:
    """A folder of blobs by key. Whatever goes wrong with it costs a compilation and is told in `notes`, never raised.

    Parameters
    ----------
    folder : Path or None
        Made when it is missing; None keeps nothing.
    max_bytes : int
        Above it the least recently used go.
    """

    def __init__(self, folder: Path | None, max_bytes: int = _MAX_BYTES) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self.notes: list[str] = []

    def get(self, key: str, build: Callable[[], bytes]) -> tuple[bytes, bool]:
        """What is kept under ``key``, or what ``build`` makes, kept from now on; and whether it was there."""
        kept = self._read(key)
        if kept is not None:
            return kept, True
        with self._lock():
            kept = self._read(key)  # another process may have built it while this one waited
            if kept is not None:
                return kept, True
            made = build()
            self._write(key, made)
            return made, False

    def has(self, key: str) -> bool:
        """Whether a whole entry is there."""
        return self._read(key) is not None

    def _read(self, key: str) -> bytes | None:
        if self._folder is None:
            return None
        path = self._folder / key
        try:
            blob = path.read_bytes()
        except OSError:
            return None
        start = len(_MAGIC) + _DIGEST_BYTES
        if blob[: len(_MAGIC)] != _MAGIC or hashlib.sha256(blob[start:]).digest() != blob[len(_MAGIC) : start]:
            self.note(f"{path} is damaged and is made again")
            return None
        with contextlib.suppress(OSError):  # a cache that others own may be readable only
            os.utime(path)
        return blob[start:]

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        if self._folder is None:
            yield
            return
        with contextlib.ExitStack() as stack:
            try:
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                if self._folder.stat().st_mode & 0o002:
                    raise PermissionError("everyone may write there, and what is kept there is run")
                file = stack.enter_context((self._folder / ".lock").open("w"))
                fcntl.flock(file, fcntl.LOCK_EX)  # given back by the system when this process ends, however it ends
            except OSError as error:
                self._give_up(error)
            yield

    def _write(self, key: str, payload: bytes) -> None:
        if self._folder is None:
            return
        temporary = ""
        try:
            handle, temporary = tempfile.mkstemp(dir=self._folder, prefix=".new-")
            with os.fdopen(handle, "wb") as file:
                file.write(_MAGIC + hashlib.sha256(payload).digest() + payload)
            os.replace(temporary, self._folder / key)
            self._shrink(key)
        except OSError as error:
            with contextlib.suppress(OSError):
                if temporary:
                    Path(temporary).unlink(missing_ok=True)
            self._give_up(error)

    def _shrink(self, newest: str) -> None:
        """Called with the lock held, so leftovers of other writers are of dead ones."""
        if self._folder is None:
            return
        for leftover in self._folder.glob(".new-*"):
            leftover.unlink(missing_ok=True)
        found = [(path.stat(), path) for path in self._folder.iterdir() if not path.name.startswith(".")]
        total = sum(status.st_size for status, _ in found)
        for status, path in sorted(found, key=lambda item: item[0].st_mtime_ns):
            if total <= self._max_bytes:
                return
            if path.name != newest:
                path.unlink(missing_ok=True)
                total -= status.st_size

    def _give_up(self, error: OSError) -> None:
        self.note(f"kernels are compiled at each start, since {self._folder} cannot keep them: {error}")
        self._folder = None

    def note(self, text: str) -> None:
        """Keep a sentence for `notes`, once."""
        if text not in self.notes:
            self.notes.append(text)
