"""Opening a bundle: nothing is handed out that the manifest does not vouch for."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy.typing as npt

from kpl_engine.bundle.manifest import MAX_MANIFEST_BYTES, FileEntry, file_entries, parse_manifest
from kpl_engine.bundle.names import MANIFEST
from kpl_engine.bundle.storage import FolderStore, Store, open_store
from kpl_engine.bundle.tensors import load_tensors
from kpl_engine.errors import BundleCorruptError, BundleError
from kpl_engine.strict_json import freeze

__all__ = ["Bundle"]

_CHUNK_BYTES = 1 << 20
_MAX_OPEN_TRIES = 20
_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class Bundle:
    """A bundle on disk, opened for reading.

    ``path`` is where it lies and ``manifest`` its content, deeply read-only. Make one with
    `Bundle.open`. It holds the place open, so close it (or use ``with``) when done.
    """

    path: Path
    manifest: Mapping[str, Any]

    def __init__(self, store: Store, manifest: Mapping[str, Any], entries: Mapping[str, FileEntry]) -> None:
        self.path = store.path
        self.manifest = freeze(manifest)
        self._store = store
        self._entries = dict(entries)
        self._verified: dict[str, tuple[int, ...]] = {}
        self._extracted: Path | None = None
        self._finalizer = weakref.finalize(self, store.close)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, verify: bool = True) -> Bundle:
        """Open the bundle at ``path``, a folder or a stored zip.

        Parameters
        ----------
        path : path
            A link here is followed; links inside the bundle are refused.
        verify : bool
            Hash every file now (default). Otherwise names and sizes are checked now and each file is
            hashed when it is first used.

        Raises
        ------
        BundleError
            Nothing readable at ``path``, or one of its three kinds: corrupt, version, path.
        """
        try:
            place = Path(os.path.realpath(path))
        except (TypeError, ValueError) as error:
            raise BundleError(f"expected the path of a bundle, got {path!r:.80}: {error}") from error
        for attempt in range(_MAX_OPEN_TRIES):
            store = open_store(place)
            try:
                return cls._load(store, verify)
            except BaseException as error:
                store.close()
                # A writer swaps in a new folder and then removes the old one: what looked damaged was on its way out.
                is_swapped = isinstance(error, (BundleError, OSError)) and not _is_same_place(place, store)
                if not is_swapped or attempt == _MAX_OPEN_TRIES - 1:
                    if isinstance(error, OSError):
                        raise BundleError(f"cannot read the bundle {place}: {error.strerror}") from error
                    raise
        raise BundleError(f"the bundle {place} was replaced {_MAX_OPEN_TRIES} times while it was opened; try again")

    @classmethod
    def _load(cls, store: Store, verify: bool) -> Bundle:
        where = str(store.path)
        sizes = store.sizes()
        if MANIFEST not in sizes:
            raise BundleCorruptError(f"{where} is not a bundle, or only half of one: it has no {MANIFEST}")
        if sizes[MANIFEST] > MAX_MANIFEST_BYTES:
            raise BundleCorruptError(f"{where}: {MANIFEST} has {sizes[MANIFEST]} bytes, more than {MAX_MANIFEST_BYTES}")
        with store.open(MANIFEST) as stream:
            data = stream.read(MAX_MANIFEST_BYTES + 1)
        manifest = parse_manifest(data, where)
        entries = file_entries(manifest, where)
        _check_listing(sizes, entries, where)
        bundle = cls(store, manifest, entries)
        if verify:
            for name in sorted(entries):
                bundle.verify(name)
        return bundle

    @property
    def names(self) -> tuple[str, ...]:
        """The files of the bundle, without the manifest, sorted."""
        return tuple(sorted(self._entries))

    def entry(self, name: str) -> FileEntry:
        """Checksum and size the manifest promises of ``name``."""
        if name not in self._entries:
            raise BundleError(f"{self.path}: no file {name!r} in this bundle; it has {list(self.names)}")
        return self._entries[name]

    def verify(self, name: str) -> None:
        """Hash one file and compare; raises `BundleCorruptError` naming it."""
        self.entry(name)
        digest, size = hashlib.sha256(), 0
        with self.stream(name) as stream:
            stamp = _stamp(stream.fileno()) if isinstance(self._store, FolderStore) else ()
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
        self.compare(name, FileEntry(digest.hexdigest(), size))
        self._verified[name] = stamp

    def read_bytes(self, name: str) -> bytes:
        """The bytes of one file, compared with the manifest."""
        entry = self.entry(name)
        with self.stream(name) as stream:
            data = stream.read(entry.num_bytes + 1)
        self.compare(name, FileEntry(hashlib.sha256(data).hexdigest(), len(data)))
        return data

    def tensors(self, name: str) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
        """Arrays and metadata of one safetensors file, compared with the manifest."""
        return load_tensors(self.read_bytes(name), f"{self.path}: {name}")

    def local_path(self, name: str) -> Path:
        """A verified real file for code that takes only paths.

        A folder gives its own file. A zip is extracted, all files of it (a graph finds its external data
        beside it), to a private folder that goes away at `close` or at exit.
        """
        self.entry(name)
        if not isinstance(self._store, FolderStore):
            try:
                return self._extract() / name
            except OSError as error:
                raise BundleError(
                    f"cannot unpack the bundle {self.path} to the folder for temporary files: {error.strerror}; "
                    "set TMPDIR to another one, or unzip the bundle and use the folder"
                ) from error
        if not _is_same_place(self.path, self._store):
            raise BundleError(f"{self.path} was replaced since it was opened; open it again")
        if self._verified.get(name) != self._current_stamp(name):
            self.verify(name)
        return self.path / name

    def close(self) -> None:
        """Let go of the files and remove what was extracted; idempotent."""
        self._finalizer()
        if self._extracted is not None:
            shutil.rmtree(self._extracted, ignore_errors=True)
            self._extracted = None

    def __enter__(self) -> Bundle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Bundle({str(self.path)!r}, {len(self._entries)} files)"

    @contextlib.contextmanager
    def stream(self, name: str) -> Iterator[BinaryIO]:
        """The bytes of one file as they are, for copying; follow with `compare`."""
        if not self._finalizer.alive:
            raise BundleError(f"{self.path} is closed; open it again")
        try:
            with self._store.open(name) as stream:
                yield stream
        except OSError as error:
            if error.errno in _WRITE_ERRORS:
                raise  # of the copy the caller makes; reading never runs out of space
            raise BundleError(f"{self.path}: cannot read {name!r}: {error.strerror}") from error
        except BundleError as error:
            if isinstance(self._store, FolderStore) and not _is_same_place(self.path, self._store):
                raise BundleError(f"{self.path} was replaced since it was opened; open it again") from error
            raise

    def compare(self, name: str, got: FileEntry) -> None:
        """Raise `BundleCorruptError` unless ``got`` is what the manifest promises of ``name``."""
        entry = self.entry(name)
        if got != entry:
            raise BundleCorruptError(
                f"{self.path}: the file {name!r} is damaged: expected {entry.num_bytes} bytes with SHA-256 "
                f"{entry.sha256[:12]}..., got other content. Build or copy the bundle again"
            )

    def _current_stamp(self, name: str) -> tuple[int, ...]:
        with self.stream(name) as stream:
            return _stamp(stream.fileno())

    def _extract(self) -> Path:
        if self._extracted is None:
            folder = Path(tempfile.mkdtemp(prefix="kpl-engine-"))
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            for name in self.names:
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with self.stream(name) as stream, open(target, "wb") as copy:
                    shutil.copyfileobj(stream, copy, _CHUNK_BYTES)
                self.verify(name)
            self._extracted = folder
        return self._extracted


def _stamp(handle: int) -> tuple[int, ...]:
    status = os.fstat(handle)
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _is_same_place(path: Path, store: Store) -> bool:
    try:
        status = os.stat(path)
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == store.identity


def _check_listing(sizes: Mapping[str, int], entries: Mapping[str, FileEntry], where: str) -> None:
    for name, entry in sorted(entries.items()):
        if name not in sizes:
            raise BundleCorruptError(f"{where}: the file {name!r} is missing. Build or copy the bundle again")
        if sizes[name] != entry.num_bytes:
            raise BundleCorruptError(
                f"{where}: the file {name!r} is damaged: expected {entry.num_bytes} bytes, got {sizes[name]}. "
                "Build or copy the bundle again"
            )
    extra = sorted(set(sizes) - set(entries) - {MANIFEST})
    if extra:
        raise BundleCorruptError(f"{where}: {extra[0]!r} is not listed in {MANIFEST}; move it out of the bundle")
