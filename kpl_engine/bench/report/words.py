"""Numbers and texts of a report, the same in the terminal and in HTML."""

from __future__ import annotations

import math

from kpl_engine.bench.records import Check, Interval, Result, Scenario

__all__ = ["answers", "checks_of", "count", "number", "printable", "range_of", "share", "size", "subject_of", "verdict"]

_MOST_TEXT = 2000  # characters of one text out of a file
_NOTHING = "–"


def printable(text: str) -> str:
    """``text`` without what could move a cursor, colour a terminal or turn the direction of writing; cut when long."""
    shown = text if len(text) <= _MOST_TEXT else text[:_MOST_TEXT] + " ..."
    return shown if shown.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in shown)


def number(value: float | None) -> str:
    """Three digits that count: 0.0123, 1.23, 12.3, 123, 1,234."""
    if value is None or not math.isfinite(value):
        return _NOTHING
    if value == 0.0:
        return "0"
    digits = 2 - math.floor(math.log10(abs(float(f"{value:.2e}"))))
    return f"{value:,.{min(max(digits, 0), 9)}f}"


def count(value: int) -> str:
    return f"{value:,}"


def range_of(interval: Interval) -> str:
    """The 95 % interval, or a dash where the values are too few for one."""
    if interval["low"] is None or interval["high"] is None:
        return _NOTHING
    return f"{number(interval['low'])} to {number(interval['high'])}"


def share(value: float) -> str:
    return f"{100.0 * value:.1f} %"


def size(value: float) -> str:
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"


def verdict(scenario: Scenario) -> str:
    """LoadGen's, in a word."""
    if "is_valid" not in scenario:
        return "not reached"
    return "VALID" if scenario["is_valid"] else "INVALID"


def checks_of(scenario: Scenario) -> list[Check]:
    """Those that were made: before, then after."""
    found = [scenario["check_before"]] if "check_before" in scenario else []
    return [*found, scenario["check_after"]] if "check_after" in scenario else found


def answers(scenario: Scenario) -> str:
    """What the checks before and after found, in some words."""
    found = checks_of(scenario)
    if not all(check["is_right"] for check in found):
        return "WRONG"
    return ("not checked", "right before", "right")[len(found)]


def subject_of(result: Result) -> str:
    """What was measured, in a line."""
    of = result["subject"]
    where = "" if of["where"] == "in process" else f" at {of['where']}"
    return (
        f"{of['encoder']}, {of['method']} {of['mode']}, {of['device']}, {of['threads']} threads{where}; "
        f"{of['input']}: {of['samples']}"
    )
