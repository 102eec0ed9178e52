"""Writing a bundle: beside the old one, down to the disk, and then swapped in with one system call."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

from kpl_engine.bundle.manifest import FORMAT, MAX_MANIFEST_BYTES, FileEntry, seal
from kpl_engine.bundle.names import MANIFEST, check_file_names
from kpl_engine.bundle.reader import Bundle
from kpl_engine.bundle.storage import open_store
from kpl_engine.bundle.swap import Staging, fsync_folder
from kpl_engine.errors import BundleChangedError, BundleCorruptError, BundleError, BundlePathError
from kpl_engine.strict_json import StrictJsonError, parse_strict

__all__ = ["Source", "pack", "write_bundle"]

Source = Path | bytes | Bundle

_CHUNK_BYTES = 1 << 20
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # the oldest date a zip can hold: equal content gives equal bytes


def write_bundle(
    path: str | os.PathLike[str],
    manifest: Mapping[str, Any],
    files: Mapping[str, Source],
    *,
    overwrite: bool = False,
    expected_sha256: str | None = None,
) -> Bundle:
    """Write a bundle atomically: afterwards ``path`` holds all of the new one, or what it held before.

    Parameters
    ----------
    path : path
        A new folder, or an existing bundle when ``overwrite``. A bundle that is a zip stays a zip.
        Anything else at ``path`` is refused and left alone.
    manifest : mapping
        Fields of manifest.json. Format, version, file table and checksums are filled in here.
    files : mapping
        Content by name in the bundle: bytes, a file to copy, or an open `Bundle` that has a file of
        the same name (copied and compared with that bundle's own checksum).
    overwrite : bool
        Replace an existing bundle.
    expected_sha256 : str, optional
        ``manifest_sha256`` of the bundle this one was made from; when another lies there by the time
        of the swap, `BundleChangedError` is raised, so that no other writer's work is lost.

    Returns
    -------
    Bundle
        The bundle at ``path``, opened.

    Raises
    ------
    BundleError
        ``path`` is taken, a file cannot be read, the disk is full, the manifest breaks the schema.
    """
    target = Path(os.path.realpath(path))
    check_file_names(files, str(target))
    if any(name.casefold() == MANIFEST for name in files):
        raise BundlePathError(f"{target}: {MANIFEST} is written by write_bundle and cannot be one of the files")
    check = partial(_check_replaceable, target, overwrite, expected_sha256)
    try:
        with Staging(target, check) as staging:
            entries = {name: _store_file(staging.folder, name, files[name]) for name in sorted(files)}
            _write_synced(staging.folder / MANIFEST, seal(manifest, entries, _created_with()))
            for folder, _, _ in os.walk(staging.folder):
                fsync_folder(Path(folder))
            if target.is_file():
                with Bundle.open(staging.folder, verify=False) as written:
                    _write_zip(written, staging.file)
                staging.commit(staging.file)
            else:
                staging.commit(staging.folder)
    except OSError as error:
        raise BundleError(
            f"could not write the bundle {target}: {error.strerror or error}; nothing was changed"
        ) from error
    return Bundle.open(target, verify=False)


def pack(bundle_path: str | os.PathLike[str], zip_path: str | os.PathLike[str]) -> Path:
    """Write a bundle as one stored (uncompressed) zip; equal bundles give equal bytes.

    Raises `BundleError` when ``zip_path`` exists, `BundleCorruptError` when the bundle is damaged.
    """
    target = Path(os.path.realpath(zip_path))
    with Bundle.open(bundle_path) as bundle:
        try:
            with Staging(target, partial(_check_replaceable, target, False, None)) as staging:
                _write_zip(bundle, staging.file)
                staging.commit(staging.file)
        except OSError as error:
            raise BundleError(f"could not write {target}: {error.strerror or error}; nothing was changed") from error
    return target


def _check_replaceable(target: Path, overwrite: bool, expected_sha256: str | None) -> None:
    """Raise unless ``target`` is free, or is a bundle that may be replaced without losing anything else."""
    if not os.path.lexists(target):
        if expected_sha256 is not None:
            raise BundleChangedError(f"{target} was removed by another program meanwhile; run the command again")
        return
    if not overwrite:
        raise BundleError(f"{target} exists; choose another name, or ask to overwrite it")
    try:
        manifest = _read_replaceable(target)
    except (BundleError, StrictJsonError, OSError) as error:
        raise BundleError(
            f"{target} is not replaced, because it is not clearly a bundle: {error}. "
            "Move it away, or choose another name"
        ) from error
    if expected_sha256 is not None and manifest.get("manifest_sha256") != expected_sha256:
        raise BundleChangedError(f"{target} was changed by another program meanwhile; run the command again")


def _read_replaceable(target: Path) -> dict[str, Any]:
    """The manifest of a bundle, perhaps a damaged one, that holds nothing but its own files."""
    store = open_store(target)
    try:
        sizes = store.sizes()
        if sizes.get(MANIFEST, MAX_MANIFEST_BYTES + 1) > MAX_MANIFEST_BYTES:
            raise BundleCorruptError(f"it has no {MANIFEST} of a bundle")
        with store.open(MANIFEST) as stream:
            manifest = parse_strict(stream.read(), MAX_MANIFEST_BYTES)
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise BundleCorruptError(f"its {MANIFEST} is not of a bundle")
        unlisted = sorted(set(sizes) - set(manifest.get("files") or ()) - {MANIFEST})
        if unlisted:
            raise BundleCorruptError(f"it holds {unlisted[0]!r}, which is not part of the bundle")
        return manifest
    finally:
        store.close()


def _created_with() -> str:
    # The installed metadata, because importing the package root for its version would import every room.
    try:
        return f"kpl-engine {version('kpl-engine')}"
    except PackageNotFoundError:
        return "kpl-engine (not installed)"


@contextmanager
def _open_source(name: str, source: Source) -> Iterator[BinaryIO]:
    if isinstance(source, bytes):
        yield io.BytesIO(source)
    elif isinstance(source, Bundle):
        with source.stream(name) as stream:
            yield stream
    else:
        with ExitStack() as held:
            try:
                stream = held.enter_context(open(source, "rb"))
            except OSError as error:
                raise BundleError(f"cannot read {source} for {name!r} in the bundle: {error.strerror}") from error
            yield stream


def _store_file(folder: Path, name: str, source: Source) -> FileEntry:
    """Copy one file to the disk; what is hashed is what was written, not what was read before."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with _open_source(name, source) as stream, open(path, "xb") as copy:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += copy.write(chunk)
        _sync(copy)
    entry = FileEntry(digest.hexdigest(), size)
    if isinstance(source, Bundle):
        source.compare(name, entry)
    return entry


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "xb") as stream:
        stream.write(data)
        _sync(stream)


def _sync(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _write_zip(bundle: Bundle, path: Path) -> None:
    with open(path, "xb") as out:
        with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
            for name in [*bundle.names, MANIFEST]:
                info = zipfile.ZipInfo(name, _ZIP_DATE)
                info.create_system = 3  # Unix, wherever this runs
                info.external_attr = 0o644 << 16
                with (
                    bundle.stream(name) as stream,
                    archive.open(info, "w", force_zip64=_is_large(bundle, name)) as copy,
                ):
                    shutil.copyfileobj(stream, copy, _CHUNK_BYTES)
        _sync(out)


def _is_large(bundle: Bundle, name: str) -> bool:
    return name != MANIFEST and bundle.entry(name).num_bytes >= zipfile.ZIP64_LIMIT // 2
