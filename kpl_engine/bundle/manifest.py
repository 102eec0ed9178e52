"""manifest.json: one canonical form, so that any changed byte of it shows."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kpl_engine.bundle.names import MANIFEST, check_file_names
from kpl_engine.bundle.schema import check_schema
from kpl_engine.errors import BundleCorruptError, BundleError, BundleVersionError
from kpl_engine.strict_json import StrictJsonError, dump_canonical, parse_strict, thaw

__all__ = ["FORMAT", "FORMAT_VERSION", "MAX_MANIFEST_BYTES", "FileEntry", "file_entries", "parse_manifest", "seal"]

FORMAT = "kpl-engine-bundle"
FORMAT_VERSION = 1
MAX_MANIFEST_BYTES = 64 * 1024 * 1024
_SEAL = "manifest_sha256"
_WRITTEN_HERE = ("format", "format_version", "created_with", "files", _SEAL)
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FileEntry:
    """What the manifest promises of one file."""

    sha256: str
    num_bytes: int


def seal(manifest: Mapping[str, Any], files: Mapping[str, FileEntry], created_with: str) -> bytes:
    """The bytes of manifest.json for ``manifest`` (its own bookkeeping fields are replaced) and ``files``.

    ``manifest_sha256`` is the SHA-256 of the canonical form without that field.
    """
    try:
        content: dict[str, Any] = {k: v for k, v in thaw(manifest).items() if k not in _WRITTEN_HERE}
        content["format"] = FORMAT
        content["format_version"] = FORMAT_VERSION
        content["created_with"] = created_with
        content["files"] = {name: {"sha256": e.sha256, "bytes": e.num_bytes} for name, e in files.items()}
        check_schema(content, "the new manifest", BundleError)
        content[_SEAL] = hashlib.sha256(dump_canonical(content)).hexdigest()
        data = dump_canonical(content)
    except StrictJsonError as error:
        raise BundleError(f"the new manifest {error}") from error
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(f"the new manifest has {len(data)} bytes; at most {MAX_MANIFEST_BYTES} are read back")
    return data


def parse_manifest(data: bytes, where: str) -> dict[str, Any]:
    """Parse and check the bytes of a manifest; ``where`` names the bundle in messages.

    Raises `BundleVersionError` for a format version this engine does not read, else `BundleCorruptError`
    when any byte differs from what was written, or `BundlePathError` for a file name that leaves the bundle.
    """
    title = f"{where}: {MANIFEST}"
    try:
        content = parse_strict(data, MAX_MANIFEST_BYTES)
    except StrictJsonError as error:
        raise BundleCorruptError(f"{title} is damaged: {error}. Build or copy the bundle again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise BundleCorruptError(f"{title} is damaged or not of kpl-engine: expected 'format': {FORMAT!r}")
    version = content.get("format_version")
    promised = content.get(_SEAL)
    rest = {key: value for key, value in content.items() if key != _SEAL}
    is_whole = promised == hashlib.sha256(dump_canonical(rest)).hexdigest() and data == dump_canonical(content)
    if type(version) is int and version > FORMAT_VERSION:
        note = "" if is_whole else " (or the manifest is damaged)"
        raise BundleVersionError(
            f"{title} has format version {version}{note}; this kpl-engine reads version {FORMAT_VERSION}. "
            "Upgrade kpl-engine, or build the bundle again with this version"
        )
    if not is_whole:
        raise BundleCorruptError(
            f"{title} is damaged: its content does not match its own checksum. Build or copy the bundle again"
        )
    if version != FORMAT_VERSION or type(version) is not int:
        raise BundleVersionError(
            f"{title} has format version {version!r}; this kpl-engine reads version {FORMAT_VERSION}. "
            "Build the bundle again with this version"
        )
    check_schema(content, title, BundleCorruptError)
    return content


def file_entries(manifest: Mapping[str, Any], where: str) -> dict[str, FileEntry]:
    """The ``files`` table of a manifest, names and values checked."""
    table = manifest.get("files")
    if not isinstance(table, Mapping):
        raise BundleCorruptError(f"{where}: {MANIFEST} has no table 'files'")
    check_file_names(table, where)
    if any(name.casefold() == MANIFEST for name in table):
        raise BundleCorruptError(f"{where}: {MANIFEST} lists itself, which no manifest can")
    entries = {}
    for name, entry in table.items():
        digest = entry.get("sha256") if isinstance(entry, Mapping) else None
        size = entry.get("bytes") if isinstance(entry, Mapping) else None
        if not (isinstance(digest, str) and _HEX.fullmatch(digest) and type(size) is int and size >= 0):
            raise BundleCorruptError(f"{where}: {MANIFEST} has no valid sha256 and size for {name!r}")
        entries[name] = FileEntry(digest, size)
    return entries
