"""A result on disk: written whole or not at all, read with every field held to `records`."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import stat
from pathlib import Path
from typing import Any, cast

from kpl_engine.bench.fields import check_fields
from kpl_engine.bench.records import FORMAT, Result, Scenario
from kpl_engine.bundle.swap import fsync_folder
from kpl_engine.errors import InputError, KplError
from kpl_engine.strict_json import StrictJsonError, parse_strict

__all__ = ["MAX_BYTES", "check_writable", "read_result", "tells_speed", "without_speed", "write_result"]

MAX_BYTES = 64 << 20  # the fullest result, with 20,000 latencies of each kind, has about 6 MB
_NOT_SPEED = Result.__optional_keys__ - {"scenarios", "probes", "peak_qps", "batches", "stages", "cold_start"}
_NOT_SPEED_OF_SCENARIO = {"scenario", "how", "is_speed_told", "check_before", "check_after", "error", "notes"}


def check_writable(path: Path) -> None:
    """Make the folder of ``path`` and try a file in it: before a run of an hour, not after it.

    Raises
    ------
    InputError
        The folder cannot be made or written, or ``path`` is a folder itself.
    """
    if path.is_dir():
        raise InputError(f"cannot write the result {str(path)!r}: expected a file, that is a folder; name a file in it")
    trial = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(trial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        trial.unlink()
    except OSError as error:
        raise InputError(
            f"cannot write the result {str(path)!r}: {error.strerror} in the folder {str(path.parent)!r}; "
            "choose one that you may write to"
        ) from error


def write_result(path: Path, result: Result) -> None:
    """Replace ``path`` by ``result`` in one step: a reader, or a power cut, meets the old file or the new one.

    Raises
    ------
    KplError
        A number that is not finite, with its place, or a disk that refuses; what was at ``path`` is still there.
    """
    data = _encode(result)
    draft = _beside(path)
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(draft, path)
        fsync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink()
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
    try:
        value = parse_strict(_read(path), MAX_BYTES)
        _check_format(value)
        check_fields(value, Result)
    except (StrictJsonError, InputError) as error:
        raise InputError(f"cannot read the result {str(path)!r}: {error}") from error
    return cast(Result, value)


def tells_speed(result: Result) -> bool:
    """False where an answer was wrong: such a run has no speed, whatever was measured."""
    return result["status"] != "wrong" and all(each.get("is_speed_told", True) for each in result.get("scenarios", ()))


def without_speed(result: Result) -> Result:
    """What is left to tell of a run with wrong answers: what it was, and which answers were wrong."""
    told = cast(Result, {key: value for key, value in result.items() if key in _NOT_SPEED})
    told["scenarios"] = [
        cast(Scenario, {key: value for key, value in each.items() if key in _NOT_SPEED_OF_SCENARIO})
        for each in result.get("scenarios", ())
    ]
    return told


def _read(path: Path) -> bytes:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would keep the reader waiting
        try:
            data = _bytes_of(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise InputError(f"{error.strerror}; name the result.json that kpl-engine bench wrote") from error
    text = data.strip()
    if not text:
        raise InputError("the file is empty; copy it again, or run kpl-engine bench again")
    if text[:1] == b"{" and text[-1:] != b"}":
        raise InputError("the file ends in the middle: it was cut off; copy it again, or run kpl-engine bench again")
    return data


def _bytes_of(handle: int) -> bytes:
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        raise InputError("expected a plain file; name the result.json that kpl-engine bench wrote")
    if status.st_size > MAX_BYTES:
        raise InputError(f"{status.st_size} bytes, more than a result can have ({MAX_BYTES}); name another file")
    with open(handle, "rb", closefd=False) as stream:
        return stream.read(MAX_BYTES + 1)


def _check_format(value: Any) -> None:
    found = value.get("kpl_engine_bench") if isinstance(value, dict) else None
    if type(found) is not int:
        raise InputError("expected a result of kpl-engine bench (an object with kpl_engine_bench), got other JSON")
    if found > FORMAT:
        raise InputError(
            f"expected format {FORMAT}, got {found}, of a newer kpl-engine; upgrade this one, or measure again"
        )
    if found < FORMAT:
        raise InputError(f"expected format {FORMAT}, got {found}, of an older kpl-engine; measure again")


def _encode(result: Result) -> bytes:
    """A line for each field of the top: short enough to look at, and a change of one part is a change of one line."""
    lines = []
    for key, item in result.items():
        try:
            lines.append(f'"{key}": {json.dumps(item, allow_nan=False)}')
        except (TypeError, ValueError) as error:
            raise KplError(f"the result cannot be written: {_place_of_fault(item, key) or error}") from error
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode("ascii")


def _place_of_fault(value: Any, place: str) -> str:
    if isinstance(value, float):
        return "" if math.isfinite(value) else f"{place} is {value}, which is no measurement"
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    return next(filter(None, (_place_of_fault(item, f"{place}.{key}") for key, item in items)), "")


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
