"""Plain data from a file held to the fields of `records`, which say it once."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints, is_typeddict

from kpl_engine.bench.intervals import MOST_KEPT, PERCENTILES
from kpl_engine.bench.records import Distribution, Interval, Result, Scenario
from kpl_engine.errors import InputError

__all__ = ["STATUSES", "check_fields"]

STATUSES = ("complete", "failed", "wrong")
# A partial result has few fields; without these it is none.
_NEEDED: Mapping[type, tuple[str, ...]] = {
    Result: ("status", "date", "command", "versions", "machine", "subject", "settings"),
    Scenario: ("scenario",),
}
_WORDS: Mapping[type, str] = {
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    type(None): "null",
}


def check_fields(value: Any, hint: Any, place: str = "") -> None:
    """Raise `InputError` at the first field of ``value`` that is missing, unknown, or not what ``hint`` says.

    Parameters
    ----------
    value
        As `strict_json.parse_strict` gives it: numbers are finite.
    hint
        A class of `records`, or what its fields are annotated with.
    place : str
        Where ``value`` stands; the message begins with it.
    """
    origin = get_origin(hint)
    if hint is Any:
        return
    if is_typeddict(hint):
        _check_record(value, hint, place)
    elif origin in (Union, types.UnionType):
        _check_choice(value, get_args(hint), place)
    elif origin is list:
        _check_list(value, get_args(hint)[0], place)
    elif origin is dict:
        if not isinstance(value, dict):
            raise _unexpected(place, "an object", value)
        for key, item in value.items():
            check_fields(item, get_args(hint)[1], f"{place}.{key}")
    elif not _is_plain(value, hint):
        raise _unexpected(place, _WORDS[hint], value)


def _check_record(value: Any, record: Any, place: str) -> None:
    if not isinstance(value, dict):
        raise _unexpected(place, "an object", value)
    fields = get_type_hints(record)
    needed = {*record.__required_keys__, *_NEEDED.get(record, ())}
    for key in sorted(needed):
        if key not in value:
            raise InputError(f"{_join(place, key)}: the field is missing")
    for key, item in value.items():
        if key not in fields:
            raise InputError(f"{_join(place, key[:80])}: there is no such field in this format")
        check_fields(item, fields[key], _join(place, key))
    if record in _RULES:
        _RULES[record](value, place)


def _check_choice(value: Any, choices: tuple[Any, ...], place: str) -> None:
    """Plain kinds only: a number or null, a number or a text."""
    if not any(value is None if each is type(None) else _is_plain(value, each) for each in choices):
        raise _unexpected(place, " or ".join(_WORDS[each] for each in choices), value)


def _check_list(value: Any, inner: Any, place: str) -> None:
    if not isinstance(value, list):
        raise _unexpected(place, "a list", value)
    for index, item in enumerate(value):
        if not _is_plain(item, inner):
            check_fields(item, inner, f"{place}[{index}]")


def _is_plain(value: Any, hint: Any) -> bool:
    if hint is float:
        return type(value) in (int, float)  # JSON has one kind of number; true and false are none
    return hint in (str, bool, int) and type(value) is hint


def _check_interval(value: dict[str, Any], place: str) -> None:
    low, high = value["low"], value["high"]
    if (low is None) != (high is None) or (low is not None and low > high):
        raise InputError(f"{place}: expected low <= high or null for both, got {low} and {high}")


def _check_distribution(value: dict[str, Any], place: str) -> None:
    other = set(value["percentiles"]) - set(PERCENTILES)
    if other:
        raise InputError(f"{place}.percentiles: expected some of {', '.join(PERCENTILES)}, got {min(other)[:40]!r}")
    if value["count"] < 1 or value["every"] < 1 or not 1 <= len(value["samples"]) <= MOST_KEPT:
        raise InputError(
            f"{place}: expected a count and every of at least 1 and 1 to {MOST_KEPT} samples, "
            f"got {value['count']}, {value['every']} and {len(value['samples'])}"
        )


def _check_status(value: dict[str, Any], place: str) -> None:
    if value["status"] not in STATUSES:
        raise InputError(
            f"{_join(place, 'status')}: expected one of {', '.join(STATUSES)}, got {value['status'][:40]!r}"
        )


_RULES: Mapping[type, Callable[[dict[str, Any], str], None]] = {
    Interval: _check_interval,
    Distribution: _check_distribution,
    Result: _check_status,
}


def _join(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key


def _unexpected(place: str, expected: str, value: Any) -> InputError:
    got = "null" if value is None else f"{'an object' if isinstance(value, dict) else 'a list'}"
    if isinstance(value, (str, int, float)):
        got = repr(value)[:60]
    return InputError(f"{place or 'the file'}: expected {expected}, got {got}")
