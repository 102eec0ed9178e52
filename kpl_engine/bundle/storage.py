"""Where the bytes of a bundle lie: a folder or a stored zip, both read without trusting a single name in them."""

from __future__ import annotations

import contextlib
import os
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from kpl_engine.bundle.names import check_file_name, parent_folders
from kpl_engine.errors import BundleCorruptError, BundleError, BundlePathError

__all__ = ["FolderStore", "Identity", "Store", "ZipStore", "open_store"]

Identity = tuple[int, int]
_MAX_ENTRIES = 100_000
_ZIP_ERRORS = (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError, OverflowError, IndexError)


class Store(Protocol):
    """The three questions a bundle asks of its place."""

    path: Path
    identity: Identity

    def sizes(self) -> dict[str, int]:
        """Every file in the store and its size; raises when anything but plain files and folders is there."""
        ...

    def open(self, name: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """A stream of one file's bytes."""
        ...

    def close(self) -> None:
        """Let go of the place."""
        ...


class FolderStore:
    """A folder, held by a descriptor: a folder swapped in at the same path meanwhile is not mixed in."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        status = os.fstat(self._root)
        self.identity: Identity = (status.st_dev, status.st_ino)

    def close(self) -> None:
        """Close the descriptor; idempotent."""
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    def sizes(self) -> dict[str, int]:
        """Walk the folder without following links; empty folders are refused like unlisted files."""
        found: dict[str, int] = {}
        self._walk(self._root, "", found)
        return found

    def _walk(self, folder: int, prefix: str, found: dict[str, int]) -> None:
        with os.scandir(folder) as entries:
            children = sorted(entries, key=lambda entry: entry.name)
        if prefix and not children:
            raise BundleCorruptError(
                f"{self.path}: the folder {prefix[:-1]!r} is empty and not in the manifest; remove it"
            )
        for child in children:
            name = prefix + child.name
            mode = child.stat(follow_symlinks=False).st_mode
            if stat.S_ISLNK(mode):
                raise BundlePathError(f"{self.path}: {name!r} is a symbolic link; a bundle holds only real files")
            if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                raise BundlePathError(f"{self.path}: {name!r} is neither a file nor a folder; remove it")
            check_file_name(name, str(self.path))
            if len(found) >= _MAX_ENTRIES:
                raise BundleCorruptError(f"{self.path}: more than {_MAX_ENTRIES} files; this is no bundle")
            if stat.S_ISREG(mode):
                found[name] = child.stat(follow_symlinks=False).st_size
                continue
            inner = os.open(child.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            try:
                self._walk(inner, name + "/", found)
            finally:
                os.close(inner)

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """Open one file, refusing a link in any part of its name."""
        check_file_name(name, str(self.path))
        *folders, last = name.split("/")
        with contextlib.ExitStack() as held:
            folder = self._root
            for part in folders:
                folder = self._descend(part, name, folder, os.O_DIRECTORY)
                held.callback(os.close, folder)
            # O_NONBLOCK: a named pipe put in the file's place must not hang the reader
            handle = self._descend(last, name, folder, os.O_NONBLOCK)
            stream = held.enter_context(os.fdopen(handle, "rb"))
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise BundlePathError(f"{self.path}: {name!r} is not a plain file")
            yield stream

    def _descend(self, part: str, name: str, folder: int, flags: int) -> int:
        try:
            return os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags, dir_fd=folder)
        except FileNotFoundError as error:
            raise BundleCorruptError(f"{self.path}: the file {name!r} is missing") from error
        except OSError as error:
            mode = os.stat(part, dir_fd=folder, follow_symlinks=False).st_mode
            if stat.S_ISLNK(mode):
                raise BundlePathError(f"{self.path}: {name!r} passes through a symbolic link") from error
            raise BundleError(f"{self.path}: cannot read {name!r}: {error.strerror}") from error


class ZipStore:
    """A zip whose entries are stored, not compressed; one descriptor, so a replaced file is not mixed in."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # O_NONBLOCK: a named pipe must not hang the reader
        self._file = open(path, "rb", opener=lambda p, flags: os.open(p, flags | os.O_NONBLOCK))  # noqa: SIM115
        status = os.fstat(self._file.fileno())
        if not stat.S_ISREG(status.st_mode):
            self._file.close()
            raise BundleError(f"cannot open the bundle {path}: expected a folder or a zip file, got something else")
        self.identity: Identity = (status.st_dev, status.st_ino)
        self._size = status.st_size
        try:
            self._zip = zipfile.ZipFile(self._file)
            self._entries = self._read_entries()
        except _ZIP_ERRORS as error:
            self._file.close()
            raise BundleCorruptError(f"{path}: neither a bundle folder nor a readable zip: {error}") from error
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Close the file; idempotent."""
        self._zip.close()
        self._file.close()

    def sizes(self) -> dict[str, int]:
        """Names and sizes by the central directory, checked when the zip was opened."""
        return {name: info.file_size for name, info in self._entries.items()}

    def _read_entries(self) -> dict[str, zipfile.ZipInfo]:
        found: dict[str, zipfile.ZipInfo] = {}
        folders: set[str] = set()
        for info in self._zip.infolist():
            name = info.orig_filename  # as written: zipfile cuts `filename` at a NUL
            check_file_name(name.removesuffix("/"), str(self.path))
            self._check_entry(info, name)
            if name.endswith("/"):
                folders.add(name.removesuffix("/"))
            elif name in found:
                raise BundleCorruptError(f"{self.path}: the entry {name!r} stands twice in the zip")
            else:
                found[name] = info
        if sum(info.file_size for info in found.values()) > self._size:
            raise BundleCorruptError(f"{self.path}: the zip promises more bytes than it has; entries overlap")
        unused = folders - {folder for name in found for folder in parent_folders(name)}
        if unused:
            raise BundleCorruptError(f"{self.path}: the folder {min(unused)!r} is empty and not in the manifest")
        return found

    def _check_entry(self, info: zipfile.ZipInfo, name: str) -> None:
        if stat.S_ISLNK(info.external_attr >> 16):
            raise BundlePathError(f"{self.path}: {name!r} is a symbolic link; a bundle holds only real files")
        if info.flag_bits & 0x1:
            raise BundleCorruptError(f"{self.path}: {name!r} is encrypted; make the zip without a password")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise BundleCorruptError(f"{self.path}: {name!r} is compressed; zip a bundle without compression (zip -0)")
        if name.endswith("/") and info.file_size:
            raise BundleCorruptError(f"{self.path}: the folder entry {name!r} has content")

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """Open one entry; the zip's own CRC is checked on the way, before the manifest's SHA-256."""
        info = self._entries.get(name)
        if info is None:
            raise BundleCorruptError(f"{self.path}: the file {name!r} is missing")
        try:
            with self._zip.open(info) as stream:
                yield stream  # type: ignore[misc]  # ZipExtFile reads like a BinaryIO
        except _ZIP_ERRORS as error:
            raise BundleCorruptError(f"{self.path}: the file {name!r} is damaged in the zip: {error}") from error


def open_store(path: Path) -> Store:
    """Open the folder or zip at ``path``; a link at the path itself is the user's own and is followed."""
    try:
        return FolderStore(path) if path.is_dir() else ZipStore(path)
    except FileNotFoundError as error:
        raise BundleError(f"no bundle at {path}: there is no such file or folder") from error
    except OSError as error:
        raise BundleError(f"cannot open the bundle {path}: {error.strerror}") from error
