"""A result on disk: written whole or not at all, read with every field held to `records`."""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
import tempfile
import types
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints, is_typeddict

from kpl_engine.bench import records
from kpl_engine.bench.records import FORMAT, Result
from kpl_engine.errors import InputError, KplError
from kpl_engine.strict_json import StrictJsonError, parse_strict

__all__ = ["MAX_BYTES", "STATUSES", "check_writable", "read_result", "write_result"]

MAX_BYTES = 64 << 20  # the fullest result, with 20,000 latencies of each kind, has about 6 MB
STATUSES = ("complete", "failed", "wrong")
_NEEDED = ("status", "date", "command", "versions", "machine", "subject", "settings")


def check_writable(path: Path) -> None:
    """Make the folder of ``path`` and try a file in it: before a run of an hour, not after it.

    Raises
    ------
    InputError
        The folder cannot be made or written, or ``path`` is a folder itself.
    """
    if path.is_dir():
        raise InputError(f"cannot write the result {str(path)!r}: expected a file, that is a folder; name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        os.unlink(name)
    except OSError as error:
        raise InputError(
            f"cannot write the result {str(path)!r}: {error.strerror} at {str(path.parent)!r}; "
            "choose a folder that you may write to"
        ) from error


def write_result(path: Path, result: Result) -> None:
    """Replace ``path`` by ``result`` in one step; a reader, or a power cut, meets the old file or the new one.

    Raises
    ------
    KplError
        A number that is not finite, with its place, or a disk that refuses; what was at ``path`` is still there.
    """
    data = _encode(result)
    name = ""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(handle, "wb") as stream:
            os.fchmod(handle, 0o666 & ~_umask())
            stream.write(data)
            stream.flush()
            os.fsync(handle)
        os.replace(name, path)
        fsync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise KplError(
            f"cannot write the result {str(path)!r}: {error.strerror}; what it held before is still there. "
            "Free space or choose another folder, and run again"
        ) from error


def read_result(path: Path) -> Result:
    """The result in ``path``, complete or partial.

    Raises
    ------
    InputError
        No plain file, over 64 MB, not JSON or cut off, of another format, or a field that is missing, unknown, or of
        another type than `records` says.
    """
    raise NotImplementedError
