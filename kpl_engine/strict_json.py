"""JSON without its loose ends: no duplicate keys, no NaN, no bottomless nesting, no half-formed text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NoReturn

__all__ = ["StrictJsonError", "dump_canonical", "freeze", "parse_strict", "thaw"]

_MAX_DEPTH = 64
_MAX_DIGITS = 40  # longer integers are no measurement of anything, and parsing them is quadratic


class StrictJsonError(ValueError):
    """The text is not JSON in the strict sense; the message says where. Callers turn it into their own error."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise StrictJsonError(f"the key {key[:80]!r} stands twice in one object")
        found[key] = value
    return found


def _constant(text: str) -> NoReturn:
    raise StrictJsonError(f"{text} is not a JSON number")


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise StrictJsonError(f"an integer of {len(text)} digits; at most {_MAX_DIGITS} are read")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise StrictJsonError(f"the number {text[:40]} does not fit a float64")
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(_MAX_DEPTH):
        inner: list[Any] = []
        for node in level:
            inner.extend(node.values() if isinstance(node, dict) else node if isinstance(node, list) else ())
        level = inner
        if not level:
            return
    raise StrictJsonError(f"nested deeper than {_MAX_DEPTH} levels")


def parse_strict(data: bytes, max_bytes: int) -> Any:
    """Parse UTF-8 JSON (a byte order mark is skipped) of at most ``max_bytes`` bytes.

    Raises `StrictJsonError` on bad UTF-8 (with the byte offset), bad JSON (with line and column),
    duplicate keys, NaN or infinity, integers of more than 40 digits, unpaired surrogates and
    nesting deeper than 64 levels.
    """
    if len(data) > max_bytes:
        raise StrictJsonError(f"{len(data)} bytes; at most {max_bytes} are read")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        offset = error.start + len(data) - len(error.object)  # utf-8-sig counts from after the mark
        raise StrictJsonError(
            f"not UTF-8: byte 0x{error.object[error.start]:02x} at offset {offset}; save the file as UTF-8"
        ) from error
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer, parse_float=_float
        )
    except json.JSONDecodeError as error:
        raise StrictJsonError(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from error
    except RecursionError as error:
        raise StrictJsonError(f"nested deeper than {_MAX_DEPTH} levels") from error
    _check_depth(value)
    if "\\u" in text:  # only an escape can smuggle in a surrogate: decoding refused the raw ones
        _check_surrogates(value)
    return value


def _check_surrogates(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise StrictJsonError("a \\u escape that is half of a surrogate pair, which is no character") from error


def dump_canonical(value: Any) -> bytes:
    """The one serialisation of ``value``: sorted keys, two-space indentation, ASCII, a final newline.

    Raises `StrictJsonError` when ``value`` holds NaN, non-string keys or anything JSON has no word for.
    """
    plain = thaw(value)
    try:
        return (json.dumps(plain, sort_keys=True, indent=2, ensure_ascii=True, allow_nan=False) + "\n").encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise StrictJsonError(f"cannot be written as JSON: {error}") from error


def freeze(value: Any) -> Any:
    """A deep read-only view: mappings become proxies of copies, lists become tuples."""
    if isinstance(value, Mapping):
        return MappingProxyType({key: freeze(item) for key, item in value.items()})
    if isinstance(value, (list, tuple)):
        return tuple(freeze(item) for item in value)
    return value


def thaw(value: Any) -> Any:
    """The opposite of `freeze`: fresh dicts and lists that may be changed and serialised."""
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise StrictJsonError(f"object keys must be strings, got {key!r}")
        return {key: thaw(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [thaw(item) for item in value]
    return value
