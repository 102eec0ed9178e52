"""The folder of a server's stream snapshots: one checked file a stream, replaced whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import stat
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from kpl_engine.bundle.swap import fsync_folder
from kpl_engine.bundle.tensors import dump_tensors, load_tensors
from kpl_engine.errors import BundleCorruptError, BundleVersionError, ConfigError

__all__ = ["SnapshotFolder", "StreamKey", "decode_snapshot", "encode_snapshot"]

Tensors = Mapping[str, npt.NDArray[Any]]
_LOG = logging.getLogger(__name__)
_FORMAT = "kpl-engine-stream-1"
_SUFFIX, _TEMPORARY, _LOCK = ".safetensors", ".kpl-tmp", ".kpl-streams.lock"
_MAX_BYTES = 1 << 30  # d = 4096 with 1000 classes are 168 MB
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


@dataclass(frozen=True)
class StreamKey:
    """Whose state it is. ``fingerprint`` covers what the state was made with: knowledge, encoder, method's numbers."""

    model: str
    knowledge: str
    method: str
    fingerprint: str

    @property
    def slot(self) -> tuple[str, str, str]:
        """What a request names; one fingerprint of a slot is in use at a time."""
        return self.model, self.knowledge, self.method

    @property
    def file_name(self) -> str:
        """Readable, safe as a name, and another one for every key."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode("ascii")).hexdigest()
        words = ".".join(re.sub(r"[^A-Za-z0-9_-]", "_", part)[:64] for part in self.slot)
        return f"{words}.{digest[:16]}{_SUFFIX}"


def encode_snapshot(key: StreamKey, tensors: Tensors) -> bytes:
    """One safetensors file whose metadata hold the key and a SHA-256 of everything else in it."""
    content = {"format": _FORMAT, "key": json.dumps(asdict(key), sort_keys=True)}
    digest = hashlib.sha256(dump_tensors(tensors, content)).hexdigest()
    return dump_tensors(tensors, {**content, "sha256": digest})


def decode_snapshot(data: bytes, where: str) -> tuple[StreamKey, dict[str, npt.NDArray[Any]]]:
    """Key and tensors of `encode_snapshot`.

    Raises `BundleVersionError` for another format, and `BundleCorruptError` unless writing what was read gives the
    same bytes again: no byte of the file is without effect, so none can differ unseen.
    """
    tensors, metadata = load_tensors(data, where)
    if metadata.get("format") != _FORMAT:
        raise BundleVersionError(f"{where}: expected the format {_FORMAT!r}, got {metadata.get('format')!r}")
    try:
        key = StreamKey(**json.loads(metadata.get("key", "")))
        again = encode_snapshot(key, tensors)
    except (ValueError, TypeError, AttributeError) as error:
        raise BundleCorruptError(f"{where}: it does not say whose stream it is: {error}") from error
    if again != data:
        raise BundleCorruptError(f"{where}: its bytes differ from those that were written; the disk damaged it")
    return key, tensors


class SnapshotFolder:
    """The snapshots in one folder, which one server owns by ``flock`` as long as it lives.

    What cannot be used is renamed to ``<name>.aside-<n>`` and told once; nothing but the server's own temporary files
    is ever deleted. All methods are safe from any thread.

    Raises `ConfigError` if another server has the folder, or there is none and it cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._guard = threading.Lock()
        self._known: dict[StreamKey, Path] = {}
        self._distrusted: set[Path] = set()  # must be set aside before anything may take their names
        try:
            folder.mkdir(parents=True, mode=0o700)
        except FileExistsError:
            pass
        except OSError as error:
            raise ConfigError(f"state_dir: cannot make the folder {folder}: {error.strerror}") from error
        if not folder.is_dir():
            raise ConfigError(f"state_dir: expected a folder, got a file at {folder}; name another")
        self._lock, is_alone = -1, False
        try:
            is_alone = self._take_lock()
        except OSError as error:
            _LOG.error("streams cannot be kept until %s can be written: %s", folder, error.strerror)
        try:
            self._read_all(is_alone)
        except BaseException:
            self.close()
            raise

    def keys(self, slot: tuple[str, str, str]) -> list[StreamKey]:
        """Those of ``slot`` that have a snapshot."""
        with self._guard:
            return [key for key in self._known if key.slot == slot]

    def path(self, key: StreamKey) -> Path:
        """Where the snapshot of ``key`` is, or would be."""
        return self.folder / key.file_name

    def load(self, key: StreamKey) -> dict[str, npt.NDArray[Any]] | None:
        """Its tensors, checked once more; None where there is no snapshot that can be used."""
        with self._guard:
            path = self._known.get(key)
        if path is None:
            return None
        try:
            found, tensors = decode_snapshot(_read(path), path.name)
            if found != key:
                raise BundleCorruptError(f"{path.name}: it is the snapshot of another stream")
        except (BundleCorruptError, BundleVersionError, OSError) as error:
            self.set_aside(key, str(error))
            return None
        return tensors

    def save(self, key: StreamKey, tensors: Tensors) -> None:
        """Replace the snapshot of ``key`` in one step, on the disk when this returns. `OSError`: the old one stands."""
        data, path = encode_snapshot(key, tensors), self.path(key)
        with self._guard:
            self._take_lock()
            if path in self._distrusted:
                self._rename_aside(path)
        temporary = path.with_name(f".{path.name}{_TEMPORARY}")
        try:
            _write(temporary, data)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)  # on a full disk the rest of it would keep others from writing
            raise
        with self._guard:
            self._known[key] = path
        fsync_folder(self.folder)

    def set_aside(self, key: StreamKey, reason: str) -> None:
        """Rename the snapshot of ``key``, if there is one."""
        with self._guard:
            path = self._known.pop(key, None)
            if path is not None:
                self._distrust(path, reason)

    def close(self) -> None:
        """Let go of the folder; idempotent."""
        handle, self._lock = self._lock, -1
        if handle >= 0:
            os.close(handle)

    def _take_lock(self) -> bool:
        """Whether nobody else can write here; False where the file system has no locks. `OSError`: it is read-only."""
        if self._lock >= 0:
            return True
        handle = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise ConfigError(
                f"state_dir: another server uses {self.folder}; stop it, or give each server a folder of its own"
            ) from None
        except OSError as error:
            if error.errno in _NO_LOCKS:
                self._lock = handle
                return False
            os.close(handle)
            raise
        self._lock = handle
        return True

    def _read_all(self, is_alone: bool) -> None:
        for path in sorted(self.folder.iterdir()):
            if path.name.endswith(_SUFFIX + _TEMPORARY) and path.name.startswith(".") and is_alone:
                with contextlib.suppress(OSError):  # of a server that died while it wrote
                    os.unlink(path)
            if not path.name.endswith(_SUFFIX):
                continue
            try:
                key, _ = decode_snapshot(_read(path), path.name)
                if path.name != key.file_name:
                    raise BundleCorruptError(f"{path.name}: expected under the name {key.file_name}; rename it back")
            except (BundleCorruptError, BundleVersionError, OSError) as error:
                self._distrust(path, str(error))
            else:
                self._known[key] = path

    def _distrust(self, path: Path, reason: str) -> None:
        self._distrusted.add(path)
        try:
            aside = self._rename_aside(path)
            _LOG.warning("the stream snapshot %s was set aside as %s: %s", path, aside.name, reason)
        except OSError as error:
            _LOG.warning("the stream snapshot %s cannot be used nor set aside (%s): %s", path, error.strerror, reason)

    def _rename_aside(self, path: Path) -> Path:
        aside, count = path, 0
        while os.path.lexists(aside):
            count += 1
            aside = path.with_name(f"{path.name}.aside-{count}")
        if aside != path:
            os.rename(path, aside)
        self._distrusted.discard(path)
        return aside


def _read(path: Path) -> bytes:
    """All bytes of a plain file; a pipe must not hang the reader, nor a link lead it elsewhere."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_BYTES:
            raise BundleCorruptError(f"{path.name}: expected a plain file of at most {_MAX_BYTES} bytes")
        with os.fdopen(handle, "rb", closefd=False) as stream:
            return stream.read(_MAX_BYTES)
    finally:
        os.close(handle)


def _write(path: Path, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
