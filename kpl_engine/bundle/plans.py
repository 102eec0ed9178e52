"""Adding a TensorRT plan to a bundle, atomically; what else the bundle holds stays."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kpl_engine.bundle.reader import Bundle
from kpl_engine.bundle.writer import Source, write_bundle
from kpl_engine.errors import BundleChangedError
from kpl_engine.strict_json import thaw

__all__ = ["add_plan"]

_MAX_TRIES = 4


def add_plan(
    bundle_path: str | os.PathLike[str],
    name: str,
    entry: Mapping[str, Any],
    files: Mapping[str, Path | bytes],
) -> Path:
    """Store a plan under ``name``, replacing an earlier one of that name; plans of other GPUs are kept.

    Parameters
    ----------
    entry : mapping
        The manifest's entry; its ``graph`` is the fingerprint of the image graph the plan was built from.
    files : mapping
        The files the entry names, by their names in the bundle.

    Raises
    ------
    BundleChangedError
        The image graph was replaced while the plan was built. What else another writer changed is kept.
    BundleError
        The bundle cannot be written; nothing was changed.
    """
    for _ in range(_MAX_TRIES - 1):
        with contextlib.suppress(BundleChangedError):
            return _add_plan(bundle_path, name, entry, files)
    return _add_plan(bundle_path, name, entry, files)


def _add_plan(
    bundle_path: str | os.PathLike[str], name: str, entry: Mapping[str, Any], files: Mapping[str, Path | bytes]
) -> Path:
    with Bundle.open(bundle_path, verify=False) as bundle:  # each file is hashed while it is copied
        manifest = thaw(bundle.manifest)
        image = (manifest.get("encoder") or {}).get("image") or {}
        if image.get("fingerprint") != entry["graph"]:
            raise BundleChangedError(
                f"{bundle_path}: the image graph was replaced while a plan was built from it; build the plan again"
            )
        replaced = manifest.setdefault("plans", {}).get(name) or {}
        manifest["plans"][name] = thaw(entry)
        content: dict[str, Source] = dict.fromkeys(bundle.names, bundle)
        content.pop(replaced.get("file", ""), None)
        content.update(files)
        expected = bundle.manifest["manifest_sha256"]
        write_bundle(bundle.path, manifest, content, overwrite=True, expected_sha256=expected).close()
        return bundle.path
