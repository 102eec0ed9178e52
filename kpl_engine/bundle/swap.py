"""Putting a finished folder or file in its place in one step, whoever else is writing there."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

from kpl_engine.errors import BundleError

__all__ = ["Staging", "fsync_folder"]

_SUFFIX = ".kpl-tmp"
_LOCK_TIMEOUT_S = 60.0
_LOCK_POLL_S = 0.01
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


class Staging:
    """A private folder beside ``target`` to write in, and the step that swaps its content in.

    The private folder is locked with ``flock`` as long as its process lives, so what a killed process
    left is told from what another one is writing, and the next writer removes it. The folder around
    the target is locked only for the instants of starting and swapping.

    ``check`` is called with that lock held, at the start and again before the swap; it raises when
    whatever lies at ``target`` must not be replaced.
    """

    def __init__(self, target: Path, check: Callable[[], None]) -> None:
        self._target = target
        self._check = check
        self._lock = -1
        self._root = target.parent

    @property
    def folder(self) -> Path:
        """Where to write the new content when it is a folder."""
        return self._root / "new"

    @property
    def file(self) -> Path:
        """Where to write the new content when it is one file."""
        return self._root / "new.zip"

    def __enter__(self) -> Staging:
        if not self._target.parent.is_dir():
            raise BundleError(
                f"cannot write {self._target}: the folder {self._target.parent} does not exist; make it first"
            )
        with _locked(self._target.parent):
            _clean_stale(self._target)
            self._check()
            self._root = Path(
                tempfile.mkdtemp(prefix=f".{self._target.name}.", suffix=_SUFFIX, dir=self._target.parent)
            )
            self._lock = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            _try_lock(self._lock)
        self.folder.mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._root, ignore_errors=True)
        os.close(self._lock)

    def commit(self, content: Path) -> None:
        """Swap ``content`` (`folder` or `file`) in at the target; what was there is removed with the staging."""
        with _locked(self._target.parent):
            self._check()
            if os.path.lexists(self._target):
                _exchange(content, self._target, self._root / "old")
            else:
                os.rename(content, self._target)
            fsync_folder(self._target.parent)


def fsync_folder(folder: Path) -> None:
    """Make the names in ``folder`` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    try:
        while not _try_lock(handle):
            if time.monotonic() > deadline:
                raise BundleError(
                    f"another program has locked the folder {folder} for {_LOCK_TIMEOUT_S:.0f} s; try again later"
                )
            time.sleep(_LOCK_POLL_S)
        yield
    finally:
        os.close(handle)


def _try_lock(handle: int) -> bool:
    """Lock without waiting. True also where the file system has no locks: there the rename alone must do."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def _clean_stale(target: Path) -> None:
    """Remove what dead writers left beside ``target``; put back a bundle one had moved aside."""
    for left in sorted(target.parent.glob(f".{_escape(target.name)}.*{_SUFFIX}")):
        try:
            handle = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue  # not a folder of ours, or another user's
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue  # its writer lives, or this file system cannot tell
        else:
            if (left / "old").exists() and not os.path.lexists(target):
                os.rename(left / "old", target)
            shutil.rmtree(left, ignore_errors=True)
        finally:
            os.close(handle)


def _escape(name: str) -> str:
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)


def _exchange(new: Path, target: Path, aside: Path) -> None:
    """Swap two paths in one system call where there is one; else move the old aside and back on failure."""
    if _rename_exchange(new, target):
        return
    if new.is_file() and target.is_file():
        os.replace(new, target)
        return
    os.rename(target, aside)
    try:
        os.rename(new, target)
    except BaseException:
        os.rename(aside, target)
        raise


def _rename_exchange(first: Path, second: Path) -> bool:
    """Linux renameat2 with RENAME_EXCHANGE; False where kernel, libc or file system lacks it."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(second))
